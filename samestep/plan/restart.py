"""What trainers without membership do: whoever is lost, all stop and start again from the newest checkpoint."""

from collections.abc import Sequence

from samestep.plan.failures import Blow
from samestep.plan.world import ALWAYS, WORKING, Setup, World


class Restart(World):
    """As many replicas take part as at first. Spares stand by and take a place at once; else all wait for one."""

    def __init__(self, setup: Setup, blows: Sequence[Blow], price: Sequence[float], every: float) -> None:
        super().__init__(setup, blows, price, every)
        self.active = set(range(setup.replicas))
        self.standby = list(range(setup.replicas, setup.places))
        self.count()
        self.begin()

    def lives(self, place: int) -> bool:
        return place in self.active or place in self.standby

    def takes_part(self, place: int) -> bool:
        return place in self.active

    def lose(self, places: list[int], seconds: float) -> None:
        stopped = not self.active.isdisjoint(places)
        if stopped and self.phase in (WORKING, "saving"):
            self.close()
            self.roll_back()
        self.active.difference_update(places)
        self.standby = [place for place in self.standby if place not in places]
        self.after(seconds, self.replaced, places, epoch=ALWAYS)
        self.count()
        if stopped:
            self.enter("detecting")
            self.after(self.setup.detect, self.fill)

    def leave(self) -> None:
        """Nothing: nobody is let in between two starts."""

    def replaced(self, places: list[int]) -> None:
        self.standby += places
        self.count()
        if self.phase == "waiting":
            self.fill()

    def fill(self) -> None:
        short = self.setup.replicas - len(self.active)
        self.active.update(self.standby[:short])
        self.standby = self.standby[short:]
        self.count()
        if len(self.active) < self.setup.replicas:
            self.enter("waiting")
        else:
            self.enter("restarting")
            self.after(self.setup.restart, self.begin)

    def count(self) -> None:
        self.members, self.idle = len(self.active), len(self.standby)
