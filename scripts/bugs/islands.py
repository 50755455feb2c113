"""Bugs in islands: what they learn, when they meet, and where they are."""

from bug import Bug

FILE, TEST = "replica/islands.py", "replica/test_islands.py::"
PLAIN = TEST + "test_the_weights_are_nearly_those_of_plain_torch"

BUGS = [
    Bug(
        "an island's gradient is its part of the whole step's",
        FILE,
        "            gradient.mul_(self.units)\n",
        "",
        PLAIN,
    ),
    Bug("what islands have learnt is added up, not averaged", FILE, ".div_(self.units)", "", PLAIN),
    Bug(
        "the outer step is plain momentum",
        "model/optim.py",
        "weight.sub_(moment.mul(self.momentum).add_(gradient).mul_(rate))",
        "weight.sub_(moment.mul(rate))",
        PLAIN,
    ),
    Bug("islands go on from their own weights", FILE, "else own.copy_(common)", "else None", PLAIN),
    Bug(
        "the last leg brings only a fragment together",
        "sync/legs.py",
        "return None if self.whole(number) else self._leg(number)",
        "return number",
        "sync/test_legs.py",
    ),
    Bug(
        "all lanes are computed with the weights of one island",
        FILE,
        "            self._show(self._views[unit])\n",
        "            self._show(self._views[self._mine.start])\n",
        TEST + "test_any_number_of_replicas_has_the_bits_of_one",
    ),
    Bug(
        "the loss of a leg's first steps is not looked at",
        FILE,
        "if not math.isfinite(loss + norm):",
        "if not math.isfinite(loss + norm) and number == self.number:",
        TEST + "test_a_loss_that_is_not_finite_in_any_step_of_a_leg_is_not_applied_and_names_step_and_lane",
    ),
    Bug(
        "an island that moves begins anew",
        "replica/handover.py",
        "receives = {source: new[unit]}",
        "receives = {source: [tensor.clone() for tensor in new[unit]]}",
        "same/test_islands_have_one_digest.py::test_one_that_joins_is_handed_islands_while_the_run_goes_on",
    ),
]
