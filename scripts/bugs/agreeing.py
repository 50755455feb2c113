"""Bugs in how replicas agree: messages, barriers, divisions of the state."""

from bug import Bug

DISAGREE = "contracts/test_wire.py::test_replicas_that_disagree_get_an_error_and_no_garbage"
COPIES = "contracts/test_strategies.py::test_copies_of_the_moments_change_no_bit"
FRAMES = "wire/frames.py"
GATHER = (
    "        news = self._exchange.gather(self.commits, write, buffers, buckets)\n"
    "        self._open = rate, buffers, present, buckets, news\n"
)

BUGS = [
    Bug(
        "what arrives is not compared with what is due",
        FRAMES,
        "if sent != due:",
        "if False:",
        DISAGREE,
    ),
    Bug(
        "a message may be of another step",
        FRAMES,
        "HEADER.pack(generation, *tag, DTYPES",
        "HEADER.pack(generation, 0, *tag[1:], DTYPES",
        DISAGREE,
    ),
    Bug(
        "a message may be of another bucket",
        FRAMES,
        "HEADER.pack(generation, *tag, DTYPES",
        "HEADER.pack(generation, *tag[:2], 0, DTYPES",
        DISAGREE,
    ),
    Bug(
        "a message may be of another operation",
        FRAMES,
        "HEADER.pack(generation, *tag, DTYPES",
        "HEADER.pack(generation, tag[0], 1, tag[2], DTYPES",
        DISAGREE,
    ),
    Bug(
        "a message may be of another dtype",
        FRAMES,
        "DTYPES[tensor.dtype], tensor.nbytes",
        "1, tensor.nbytes",
        DISAGREE,
    ),
    Bug(
        "a message may be of another size",
        FRAMES,
        "if sent != due:",
        "if sent[:-8] != due[:-8]:",
        DISAGREE,
    ),
    Bug(
        "a message may be of another generation",
        FRAMES,
        "HEADER.pack(generation,",
        "HEADER.pack(0,",
        "wire/test_sockets.py",
    ),
    Bug(
        "a lost peer is taken for a failure of one's own",
        "wire/sockets.py",
        'self._fail(PeerLost(f"replica {peer.replica} went',
        'self._fail(ClusterError(f"replica {peer.replica} went',
        "contracts/test_wire.py::test_a_peer_that_closes_is_lost_to_those_that_wait_for_it",
    ),
    Bug(
        "a step is committed without a barrier",
        "replica/agreement.py",
        "        everybody_ready(self.wire, Tag(self.commits, Operation.READY))\n",
        "",
        "replica/test_step.py",
    ),
    Bug(
        "a step is committed before the barrier",
        "replica/agreement.py",
        "        everybody_ready(self.wire, Tag(self.commits, Operation.READY))\n        self.apply()\n",
        "        self.apply()\n        everybody_ready(self.wire, Tag(self.commits - 1, Operation.READY))\n",
        "replica/test_step.py",
    ),
    Bug(
        "a replica is ready before it has everything",
        "replica/agreement.py",
        GATHER + "        self.check(looked)\n        self.ready = True\n",
        "        self.ready = True\n" + GATHER + "        self.check(looked)\n",
        "replica/test_step.py",
    ),
    Bug(
        "a survivor commits one step too many",
        "replica/agreement.py",
        "        if commits > self.commits:\n",
        "        if commits >= self.commits:\n",
        "replica/test_step.py",
    ),
    Bug(
        "a survivor does not make the step that others have made",
        "replica/agreement.py",
        "        if commits > self.commits:\n",
        "        if commits > self.commits + 1:\n",
        "replica/test_step.py",
    ),
    Bug(
        "a replica stops by what it alone has been told",
        "replica/agreement.py",
        "Wish(int(wished.max()))",
        "wish",
        "replica/test_step.py",
    ),
    Bug(
        "computing new weights moves the moments",
        "replica/state.py",
        "[cut(kept, within).clone() for kept in self.moments[whole]]",
        "[cut(kept, within) for kept in self.moments[whole]]",
        "same/test_abandoned_step.py",
    ),
    Bug(
        "a mirror's moments stay behind",
        "replica/state.py",
        "self._update(region, weights, gradient, moments, rate, present)",
        "mine = region == self._share.owned[bucket]\n"
        "                    kept = [m if mine else m.clone() for m in moments]\n"
        "                    self._update(region, weights, gradient, kept, rate, present)",
        COPIES,
    ),
    Bug(
        "a mirror gets the new weights in place of the gradient",
        "sync/exact.py",
        "[gradient if r in self._holders else new]",
        "[new]",
        COPIES,
    ),
    Bug(
        "a mirror stands on the wrong side",
        "sync/share.py",
        "(owner + k) % size",
        "(owner - k) % size",
        "sync/test_share.py",
    ),
    Bug(
        "state is asked of a replica that never held it",
        "recover/transfer.py",
        "holders(owner, len(before), copies)",
        "holders(owner, len(before), copies + 1)",
        "recover/test_transfer.py",
    ),
    Bug(
        "state that is handed over is not compared",
        "replica/handover.py",
        "if tensor.tolist() != list(map(_digest, self._wanted[peer])):",
        "if False:",
        "replica/test_handover.py::test_state_that_arrives_changed_is_refused",
    ),
    Bug(
        "one that joins gets no counts of updates",
        "replica/crew.py",
        'step.number, step.state.updates = known["step"], known["updates"]',
        'step.number = known["step"]',
        "same/test_survivors_go_on.py::test_one_that_is_lost_is_replaced_while_the_others_go_on",
    ),
    Bug(
        "replicas with other kernels are let in",
        "replica/kernels.py",
        "if other.get(key) != value:",
        "if False:",
        "replica/test_kernels.py",
    ),
]
