"""What belongs to one unit alone, an island or a lane: it lies with the replica that computes the unit, nowhere else.

Each value is a flat float32 tensor as long as the weights. It moves with its unit, and is lost with its replica.
"""

from collections.abc import Sequence

from torch import Tensor

from samestep.recover.shards import Part
from samestep.sync.flat import cut
from samestep.sync.slices import Layout, Region

Units = dict[int, list[Tensor]]  # by unit, one tensor a kind
FEEDBACK = "feedback"  # what was rounded off a unit's gradient; the last kind, where there is any


class Carried:
    """The kinds of values that each of so many units has. what: the unit's name, for parts of checkpoints."""

    def __init__(self, layout: Layout, what: str, kinds: Sequence[str], units: int) -> None:
        self._layout, self._kinds, self.units = layout, kinds, units
        self._places = {f"{what}{unit}_{kind}": (unit, at) for unit in range(units) for at, kind in enumerate(kinds)}

    def names(self) -> list[str]:
        """Of all values of all units, as parts of a checkpoint are named by."""
        return list(self._places)

    def blank(self, span: range, like: Tensor) -> Units:
        return {unit: [like.new_zeros(self._layout.total) for _ in self._kinds] for unit in span}

    def feedback(self, values: Units) -> dict[int, Tensor]:
        """By unit, where they have any."""
        return {unit: kinds[-1] for unit, kinds in values.items()} if self._kinds[-1] == FEEDBACK else {}

    def snapshot(self, values: Units, names: Sequence[str]) -> dict[Part, Tensor]:
        """Copies on the CPU. names: of the parameters, in the order of their registration."""
        return {
            Part(kind, name, 0, region.size): cut(values[unit][at], region).cpu().clone()
            for kind, (unit, at) in self._places.items()
            if unit in values
            for name, region in zip(names, self._layout.regions, strict=True)
        }

    def take(self, values: Units, part: Part, parameter: int, data: Tensor) -> bool:
        """Copy a part of a checkpoint to where it belongs, if its unit is here. False where it is of no unit."""
        if part.kind not in self._places:
            return False
        unit, at = self._places[part.kind]
        if unit in values:
            start = self._layout.regions[parameter].start
            cut(values[unit][at], Region(start + part.start, start + part.stop)).copy_(data)
        return True
