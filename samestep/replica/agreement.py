"""How the replicas of a generation make one step of their partial sums: added up, agreed on, proposed, committed.

Where the sums come from is another matter: the gradients of lanes (step.py), or what islands have learnt (islands.py).
Until `commit` weights and moments are those of the step before: abandoning a step is forgetting it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from samestep.errors import Corrupted, NotFinite, RecipeError
from samestep.model import optim
from samestep.replica.board import Wish
from samestep.replica.seal import Frozen, Rest
from samestep.replica.split import WHOLE, Split
from samestep.replica.state import Kept, State
from samestep.sync import relays, vote
from samestep.sync.exact import Exact
from samestep.sync.exchange import Exchange
from samestep.sync.fast import Fast
from samestep.sync.flat import here, trainable
from samestep.sync.hierarchical import Hierarchical
from samestep.sync.rounded import Rounded
from samestep.sync.scalars import told
from samestep.sync.share import Share
from samestep.sync.slices import Layout, Region, layout
from samestep.wire.collective import Collective, Operation, Tag, everybody_ready
from samestep.wire.formats import EXACT, Formats

STRATEGIES: dict[str, Callable[[Any, Layout, int, int, torch.device], Exchange]] = {"exact": Exact, "fast": Fast}


class Sums(NamedTuple):
    """What a step adds up over its lanes: the same at any number of replicas."""

    loss: float
    gradient_norm: float
    wish: Wish = Wish.NONE


class Numbers(NamedTuple):
    """What replicas tell each other beside the sums. losses: one of each replica's is not zero, at each place.

    norms: the sum of squares of each slice. present: whether any replica had a gradient, by parameter.
    """

    losses: Tensor
    norms: list[float]
    present: list[bool]
    wish: Wish
    computed: list[list[int]]


class Agreement:
    """One replica's part. The module's trainable parameters move into one flat float32 buffer, `state.weights`.

    units: of which each replica has a span, lanes or islands; the leaves of the tree.
    copies: replicas that keep the moments of each slice; with more than one, a replica can be lost.
    scrub: commits within which all weights are looked at for flipped bits; what is held is at each. 0: never. Then
    nothing but this may write to the module's tensors.
    formats: in which numbers travel; in fewer bits than float32 they are rounded, the same at any number of replicas.
    split: how the module's parameters are cut, where replicas are several processes.
    commits: how often all replicas have moved on together. number: of the steps of the run that have been made.
    """

    number: int

    def __init__(
        self,
        module: nn.Module,
        rule: optim.Rule,
        *,
        units: int,
        strategy: str,
        copies: int,
        scrub: int,
        formats: Formats,
        bucket: int | None = None,
        split: Split = WHOLE,
    ) -> None:
        if formats.rounded and strategy == "fast":
            raise RecipeError(f"fast was asked to send {' and '.join(formats)}, but it adds up float32 only; use exact")
        self.named = trainable(module)
        self.parameters = list(self.named.values())
        self.split = split
        self.shapes = {name: split.shape(name, parameter) for name, parameter in self.named.items()}
        self.layout = layout([here(p).numel() for p in self.parameters], units, bucket=bucket)
        elsewhere = {index for index, name in enumerate(self.named) if split.counted_elsewhere(name)}
        self.state = State(self.parameters, self.layout, rule, formats.weights, elsewhere)
        self.copies, self.commits = copies, 0
        self.units, self._strategy, self._formats = units, strategy, formats
        self._scrub, self._frozen = scrub, Frozen(module, scrub) if scrub else None

    def begin(self, wire: Collective, kept: Kept | None) -> Share:
        """Take part in a generation, with what is kept of this replica's share in it; None: it is the first step."""
        self.wire = wire
        terms = wire, self.layout, self.units, self.copies, self.parameters[0].device
        if self._formats.rounded:
            self._exchange: Exchange = Rounded(*terms, self._formats)
        elif self._strategy == "exact" and relays.several(wire.hosts):
            self._exchange = Hierarchical(*terms)  # the same bits by a shorter way
        else:
            self._exchange = STRATEGIES[self._strategy](*terms)
        self.state.adopt(self._exchange.share, kept)
        self.ready = False  # whether all that the commit of the open step needs is here
        return self._exchange.share

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """The trained parameters by name, one after the other. To be called by all shards of a replica together."""
        return ((name, self.split.whole(name, here(parameter.detach()))) for name, parameter in self.named.items())

    def memory(self, count: int, like: Tensor) -> Tensor:
        """Zeros, for buffers of sums. Lanes that are rounded first are not sent as they are."""
        return self.wire.memory(count, like) if self._formats.sums == EXACT.sums else like.new_zeros(count)

    def free(self) -> None:
        """Give the buffers of a generation back before those of the next are made."""
        del self._exchange

    def start(self, bucket: int, buffers: Sequence[Tensor]) -> None:
        """A bucket of this replica's sums is complete."""
        self.state.feedback.recall(bucket, buffers)
        self._exchange.start(self.commits, bucket, buffers)

    def add_up(
        self, buffers: Sequence[Tensor], losses: Tensor, present: Tensor, wish: Wish, computed: Tensor
    ) -> Numbers:
        """Complete all buckets that were started, and compare what several replicas keep.

        losses: float64 [n], zero where another replica has the loss. present: bool [parameters]. computed: int64.
        """
        self._exchange.finish()
        scalars = [losses, self.state.norms(buffers[0]), present.double(), torch.tensor([float(wish)])]
        (claims, others), (lost, norms, there, wished) = told(
            self.wire, self.commits, [self._claims(), computed], [each.double() for each in scalars]
        )
        self._vote(claims)
        # Of each loss and slice one replica has the number (all, in `fast`); the others hold zeros there.
        present_anywhere = [bool(each) for each in there.amax(0)]
        return Numbers(lost.sum(0), norms.amax(0).tolist(), present_anywhere, Wish(int(wished.max())), others)

    def refuse(self, error: NotFinite) -> None:
        """Raise it, unless what rests here has changed on one of the replicas: then that is the cause."""
        self.check()
        everybody_ready(self.wire, Tag(self.commits, Operation.INTACT))
        raise error

    def offer(self, rate: float, buffers: Sequence[Tensor], present: Sequence[bool], buckets: Sequence[int]) -> None:
        """Compute the new weights in these buckets and bring everybody's together, without changing any."""
        looked: list[Region] = []

        def write(bucket: int, out: Tensor) -> None:
            """What is to be read in any case is looked at first: that it comes from memory is then paid once."""
            looked.append(self.layout.bucket_region(bucket))
            self.check_within(looked[-1])
            self.state.propose(bucket, out, buffers[0], rate, present)

        news = self._exchange.gather(self.commits, write, buffers, buckets)
        self._open = rate, buffers, present, buckets, news
        self.check(looked)
        self.ready = True

    def commit(self) -> None:
        """Make the proposed weights the weights, once every replica has them all: then no death can part them."""
        everybody_ready(self.wire, Tag(self.commits, Operation.READY))
        self.apply()

    def settle(self, commits: int) -> None:
        """After a peer was lost: commit what is open alone where others have, so that there are `commits`."""
        if commits > self.commits:
            self.apply()

    def apply(self) -> None:
        rate, buffers, present, buckets, news = self._open
        self.commits += 1
        self._rest()
        self.state.commit(buffers[0], news, rate, present, buckets)
        self._exchange.release()
        self.state.feedback.keep(buffers, present, buckets)
        self.ready = False
        if self.state.seal:
            self.state.seal.renew([self.layout.bucket_region(bucket) for bucket in buckets])

    def seal(self) -> None:
        """Note what rests until the next commit. To be called where weights or moments have been set otherwise."""
        self._rest()
        if self.state.seal:
            self.state.seal.renew()

    def _rest(self) -> None:
        if self._scrub:
            self.state.rest(self.commits % self._scrub, self._scrub)

    def check_within(self, region: Region) -> None:
        """Corrupted where what rests in a region of the flat buffer has changed."""
        self._refuse(self.state.seal.broken_within(region) if self.state.seal else [])

    def check(self, looked: Sequence[Region] = ()) -> None:
        """Corrupted where what rests here has changed. looked: regions that have been looked at in this step."""
        broken = self.state.seal.broken(looked) if self.state.seal else []
        self._refuse(broken + (self._frozen.broken(self.commits) if self._frozen else []))

    def _refuse(self, broken: Sequence[Rest]) -> None:
        if broken:
            raise _corrupted(self.number, self._what(broken[0]))

    def _what(self, rest: Rest) -> str:
        if rest.region is None:
            return rest.kind
        start, stop = rest.region
        names = [n for n, r in zip(self.named, self.layout.regions, strict=True) if r.start < stop and start < r.stop]
        return f"{rest.kind} of {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "")

    def _claims(self) -> Tensor:
        """What is kept once needs no comparison."""
        size, seal = self.wire.size, self.state.seal if self.copies > 1 else None
        return seal.claims(size) if seal else torch.zeros(size, dtype=torch.int64)

    def _vote(self, claims: Sequence[Sequence[int]]) -> None:
        """Corrupted where what this replica keeps is not what the others keep of the same."""
        for dispute in vote.disputes(claims, self.copies):
            if self.wire.rank in dispute.odd:
                raise _differs(self.number, dispute)


def norm_of(squares: Sequence[float]) -> float:
    return math.sqrt(math.fsum(squares))


def not_finite(step: int, losses: Sequence[float], norm: float) -> NotFinite:
    """step: from 0. losses: by lane."""
    lane = next((lane for lane, loss in enumerate(losses) if not math.isfinite(loss)), None)
    what = f"the gradient norm is {norm}" if lane is None else f"the loss of lane {lane} is {losses[lane]}"
    error = NotFinite(
        f"step {step + 1}: {what}; nothing was applied; lower optimizer.learning_rate or look at that step's samples"
    )
    error.what, error.lane = what, lane
    return error


def _corrupted(step: int, what: str) -> Corrupted:
    return Corrupted(
        f"{what} changed while it rested after step {step}: a bit has flipped; nothing of it was applied; look at the "
        f"memory of this host if it happens again"
    )


def _differs(step: int, dispute: vote.Dispute) -> Corrupted:
    whose = "of most others" if dispute.outvoted else "of the other, and nobody can tell which is right"
    return Corrupted(
        f"the state of the slices of rank {dispute.owner} after step {step} is not that {whose}; nothing more was "
        f"applied; look at the memory and the processor of this host if it happens again"
    )
