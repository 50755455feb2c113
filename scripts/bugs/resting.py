"""Bugs in what finds a flipped bit: seals, votes, and what follows from them."""

from bug import Bug

SEAL = "replica/test_seal.py"
HELD = SEAL + "::test_every_bit_that_flips_in_what_a_replica_holds_is_found_in_its_step"
OTHERS = SEAL + "::test_weights_that_others_hold_are_found_with_the_odds_of_the_setting"
SUM = SEAL + "::test_any_flipped_bit_of_any_tensor_changes_its_sum"
TURNS = SEAL + "::test_what_is_not_trained_is_looked_at_in_turn"
WITNESS = "replica/test_witness.py::"
VOTE, FILE = "sync/test_vote.py", "sync/vote.py"
HEALED = "same/test_flipped_bits_are_healed.py::"

BUGS = [
    Bug(
        "what rests is not looked at before the commit",
        "replica/agreement.py",
        "        self.check(looked)\n        self.ready = True\n",
        "        self.ready = True\n",
        HELD,
    ),
    Bug(
        "what is updated is not looked at",
        "replica/agreement.py",
        "            self.check_within(looked[-1])\n",
        "",
        HELD,
    ),
    Bug(
        "a seal is not renewed by a commit",
        "replica/state.py",
        "            if self.seal:\n                self.seal.renew_within(self._layout.bucket_region(bucket))\n",
        "",
        SEAL,
    ),
    Bug(
        "what a commit has not written has no seal for the turn that begins",
        "replica/agreement.py",
        "            self.state.seal.renew([self.layout.bucket_region(bucket) for bucket in buckets])\n",
        "            pass\n",
        "replica/test_feedback.py",
    ),
    Bug(
        "moments have no seal",
        "replica/state.py",
        "values = [cut(self.weights, region), *self.moments[region]]\n"
        "                found += [Rest(*each, region, owner) for each in zip(self.kinds(), values, strict=True)]",
        'found.append(Rest("weights", cut(self.weights, region), region, owner))',
        HELD,
    ),
    Bug(
        "weights that others hold have no seal",
        "replica/state.py",
        "                if there.size > 0:\n                    found.append(",
        "                if False:\n                    found.append(",
        OTHERS,
    ),
    Bug(
        "it is always the same part of the weights that is looked at",
        "replica/agreement.py",
        "self.state.rest(self.commits % self._scrub, self._scrub)",
        "self.state.rest(0, self._scrub)",
        SEAL + "::test_all_weights_are_looked_at_within_as_many_steps_as_are_set",
    ),
    Bug(
        "the end of a tensor is not in its sum",
        "replica/seal.py",
        "return whole if words.tail is None else int(",
        "return whole if True else int(",
        SUM,
    ),
    Bug(
        "sums are taken in floating point",
        "replica/seal.py",
        "np.add.reduce(words.array))",
        "np.add.reduce(words.array.astype(float)))",
        SEAL,
    ),
    Bug(
        "of what is not trained it is always the same that is looked at",
        "replica/seal.py",
        "turn = range(number % self._every, len(self._rests), self._every)",
        "turn = range(0, len(self._rests), self._every)",
        TURNS,
    ),
    Bug(
        "a flipped bit is told as a loss that is not finite",
        "replica/agreement.py",
        "        self.check()\n        everybody_ready(self.wire, Tag(self.commits, Operation.INTACT))\n",
        "",
        SEAL + "::test_a_bit_that_makes_the_loss_infinite_is_no_fault_of_the_samples",
    ),
    Bug(
        "others do not wait for the one in which a bit has flipped",
        "replica/agreement.py",
        "        everybody_ready(self.wire, Tag(self.commits, Operation.INTACT))\n",
        "",
        SEAL + "::test_a_bit_that_makes_the_loss_infinite_is_no_fault_of_the_samples",
    ),
    Bug(
        "copies are not compared",
        "replica/agreement.py",
        "        self._vote(claims)\n",
        "",
        SEAL + "::test_of_three_copies_the_one_that_differs_ends",
    ),
    Bug(
        "a claim is on the slices of another owner",
        "replica/seal.py",
        "torch.tensor([owners if rest.owner is None else rest.owner for rest in self._rests])",
        "torch.tensor([owners if rest.owner is None else (rest.owner + 1) % owners for rest in self._rests])",
        SEAL,
    ),
    Bug("most are outvoted by one", FILE, "said[rank] != common", "said[rank] == common", VOTE),
    Bug("half is a majority", FILE, "2 * count > len(ranks)", "2 * count >= len(ranks)", VOTE),
    Bug("nobody is outvoted", FILE, "outvoted = 2 * count > len(ranks)", "outvoted = False", VOTE),
    Bug(
        "a copy is saved without a look at it",
        "replica/checkpoints.py",
        "        self._step.check()  # what was copied\n",
        "",
        "replica/test_checkpoints.py::test_what_has_changed_while_it_rested_is_not_saved",
    ),
    Bug(
        "a model is exported without a look at it",
        "replica/train.py",
        "    run.step.check()\n",
        "",
        "replica/test_train.py::test_what_has_changed_after_the_last_step_is_not_exported",
    ),
    Bug(
        "state is handed on without a look at it",
        "replica/crew.py",
        "        step.check()  # before it is handed on\n",
        "",
        HEALED + "test_a_bit_that_flips_before_the_state_is_handed_on_goes_nowhere",
    ),
    Bug(
        "a flipped bit ends the run",
        "errors.py",
        "    passing = True\n",
        "    passing = False\n",
        HEALED + "test_the_replica_is_named_and_the_others_go_on_from_memory",
    ),
    Bug(
        "an error of two replicas in one try is taken for one that comes again",
        "launch/cause.py",
        "(child.generation, child.replica if not child.generation else 0)",
        "(child.generation, child.replica)",
        HEALED + "test_of_two_copies_that_differ_a_replay_from_the_checkpoint_decides",
    ),
    Bug(
        "a lane that is computed again is added up",
        "sync/accumulate.py",
        "if gradient is not None and not self._over:",
        "if gradient is not None:",
        WITNESS + "test_what_is_computed_again_is_added_to_nothing",
    ),
    Bug(
        "a gradient that was computed twice is not compared",
        "replica/step.py",
        "        self._witness.check(self.number, numbers.computed)\n",
        "",
        WITNESS + "test_one_that_computes_wrongly_is_named_with_the_one_that_it_was_compared_to",
    ),
    Bug(
        "a replica computes its own lane again",
        "sync/again.py",
        "(carrier + size // 2) % size",
        "carrier",
        "sync/test_again.py",
    ),
    Bug(
        "neighbours, who keep the same, are compared",
        "sync/again.py",
        "(carrier + size // 2) % size",
        "(carrier + 1) % size",
        "sync/test_again.py::test_of_four_or_more_neighbours_are_not_compared",
    ),
]
