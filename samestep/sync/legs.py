"""When islands meet: pure functions of step numbers.

A run of `steps` is cut into *legs* of equal length; at the end of each the islands bring one fragment of the weights
together, and at the end of the last one all of them. What is brought together may be on its way for the last `overlap`
steps of its leg, while training goes on. The first `together` steps are legs of one step, which bring all together.
"""

from typing import NamedTuple


class Legs(NamedTuple):
    """every: steps between two meetings about the same weights. fragments: parts that meet in turn. steps, together:
    see above.
    """

    every: int
    fragments: int
    overlap: int
    steps: int
    together: int = 0

    @property
    def length(self) -> int:
        return self.every // self.fragments

    def end(self, number: int) -> int:
        """The steps committed at the end of the leg that step `number` (from 0) is in."""
        if number < self.together:
            return number + 1
        return min(self.steps, self.together + (self._leg(number) + 1) * self.length)

    def meets(self, number: int) -> bool:
        """Whether the leg ends with this step."""
        return number + 1 == self.end(number)

    def leaves(self, number: int) -> bool:
        """Whether what the leg brings together sets off after this step."""
        return number + 1 + (0 if self.whole(number) else self.overlap) == self.end(number)

    def fragment(self, number: int) -> int | None:
        """The part that the leg of this step brings together; None: all of them."""
        return None if self.whole(number) else self._leg(number) % self.fragments

    def whole(self, number: int) -> bool:
        """Whether the leg makes all islands one: the last one does, and each of the first ones."""
        return number < self.together or self.end(number) == self.steps

    def commits(self, number: int) -> int:
        """How many legs are over once `number` steps are committed."""
        return min(number, self.together) + -(-max(0, number - self.together) // self.length)

    def since(self, number: int) -> int:
        """The steps committed before the leg that ended with `number` of them; -1 before the first."""
        if number <= self.together:
            return number - 1
        return self.together + (self.commits(number) - self.together - 1) * self.length

    def _leg(self, number: int) -> int:
        """Which of those after the first ones a step is in."""
        return (number - self.together) // self.length


def buckets(fragment: int | None, fragments: int, count: int) -> range:
    """Those of `count` buckets that belong to a fragment; None: all."""
    if fragment is None:
        return range(count)
    return range(count * fragment // fragments, count * (fragment + 1) // fragments)


def passed(every: int, since: int, number: int) -> bool:
    """Whether a multiple of `every` lies after step `since`, up to `number`. Never where every is 0."""
    return every > 0 and number // every > since // every
