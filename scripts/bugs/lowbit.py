"""Bugs in wire formats of few bits: what is rounded, where, and what becomes of the rest."""

from bug import Bug

LAWS = "contracts/test_formats.py::"
ONE = LAWS + "test_any_number_of_replicas_has_the_bits_of_one"

BUGS = [
    Bug(
        "what was rounded off is not kept",
        "replica/agreement.py",
        "        self.state.feedback.keep(buffers, present, buckets)\n",
        "",
        LAWS + "test_nothing_changes_before_the_commit",
    ),
    Bug(
        "what was rounded off is not added again",
        "replica/agreement.py",
        "        self.state.feedback.recall(bucket, buffers)\n",
        "",
        LAWS + "test_what_was_rounded_off_comes_with_the_next_step",
    ),
    Bug(
        "each replica rounds by scales of its own",
        "sync/wholes.py",
        "torch.stack(scaling.codes).amax(0)",
        "scaling.codes[self._wire.rank]",
        ONE,
    ),
    Bug(
        "sums over lanes take the bits of one",
        "sync/wholes.py",
        "bits(LIMITS[format] * count)",
        "bits(LIMITS[format])",
        ONE,
    ),
    Bug(
        "nodes of the tree inside a replica are not rounded",
        "sync/halves.py",
        "tree.fold(part, lanes,",
        "tree.fold(part, {node: lane.float() for node, lane in lanes.items()},",
        ONE,
    ),
    Bug(
        "a scale is that of a finite block though it is not",
        "wire/codec.py",
        ".masked_fill_(codes == ILL, torch.nan)",
        "",
        LAWS + "test_a_gradient_of_one_lane_that_is_not_finite_ends_the_step",
    ),
    Bug(
        "a parameter that is left alone uses up its feedback",
        "replica/feedback.py",
        "if there and whole",
        "if whole",
        "replica/test_feedback.py",
    ),
    Bug(
        "new weights are computed from those that were told",
        "replica/state.py",
        "new.copy_(copies.pop() if self._told.masters else weights)",
        "del copies[self._rule.moments :]\n            new.copy_(weights)",
        LAWS + "test_copies_of_moments_and_masters_change_no_bit",
    ),
    Bug(
        "the owner computes with its masters",
        "replica/told.py",
        "        news = master.clone()\n",
        "        return weights.copy_(master) and None\n        news = master.clone()\n",
        LAWS + "test_copies_of_moments_and_masters_change_no_bit",
    ),
    Bug(
        "masters begin at zero",
        "replica/told.py",
        "[*zeros, weights.clone()]",
        "[*zeros, torch.zeros_like(weights)]",
        LAWS + "test_what_is_rounded_is_near_float32",
    ),
    Bug(
        "one that takes over a lane begins without its feedback",
        "replica/handover.py",
        "receives = {source: new[unit]}",
        "receives = {source: [tensor.clone() for tensor in new[unit]]}",
        "replica/test_handover.py::test_what_belongs_to_a_unit_goes_with_it",
    ),
]
