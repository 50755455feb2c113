"""Where a loss or a gradient that is not finite comes from: the step is computed again and looked at, lane by lane.

All replicas come to one answer, so that whoever is heard first says the same.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from samestep.data.corpus import Corpus
from samestep.data.feed import Reader, StepPlan
from samestep.data.order import MISSING, Integers, mix
from samestep.errors import NotFinite
from samestep.events import Event
from samestep.model import finite
from samestep.model.finite import LOSS
from samestep.replica.board import Phase
from samestep.replica.setup import corpora_of
from samestep.wire.collective import Collective, Operation, Tag, all_gather

if TYPE_CHECKING:
    from samestep.replica.run import Run

SHOWN = 3  # samples in an error


class Origin(NamedTuple):
    """The first micro-batch whose loss or gradient is not finite; see finite.Origin."""

    lane: int
    micro: int
    backward: bool
    layer: int


NOWHERE = Origin(1 << 62, 0, False, LOSS)  # after all others


@contextlib.contextmanager
def traced(run: "Run", plan: StepPlan) -> Iterator[None]:
    """Around the reduction of a step: a NotFinite is raised again with its micro-batch, samples and layer."""
    try:
        yield
    except NotFinite as found:
        if run.step.split.inside.size > 1:
            raise  # shards compute together, and one may stop at a layer where the others go on
        mine = search(run, plan, found.lane)
        run.control.phase(run.step.number + 1, Phase.EXCHANGE)
        origin = agreed(run.wire, run.step.number, mine)
        samples = [] if origin is None else samples_of(corpora_of(run.job), run.feed.reader, plan.rows[origin[:2]])
        layer = None if origin is None else layer_name(run.task.module, origin)
        run.control.send(event(run.step.number, found, origin, samples, layer))
        raise explained(run.step.number, found, origin, samples, _cause(run.task.module, origin, layer)) from found


def search(run: "Run", plan: StepPlan, lane: int | None) -> Origin | None:
    """Compute this replica's part of the open step again, or one lane of it, up to the first that is not finite."""
    run.step.close()  # the run ends here; these gradients are not to be added up
    lanes = [mine for mine in run.step.span if lane in (mine, None)]
    with _as_written(run.job.recipe.compute.compile):
        for mine, micro in itertools.product(lanes, range(run.job.recipe.batch.accumulate)):
            run.control.phase(run.step.number + 1, Phase.FORWARD)
            found = finite.first(run.task.module, partial(_loss, run, plan, mine, micro))
            if found is not None:
                return Origin(mine, micro, *found)
    return None


def _loss(run: "Run", plan: StepPlan, lane: int, micro: int) -> Tensor:
    """As in the loop of train.py."""
    batch = run.feed.micro_batch(plan, lane, micro)
    torch.manual_seed(mix(run.job.recipe.seed, run.step.number, lane, micro))
    return run.task.loss(batch) / run.task.terms(plan.targets, plan.pieces)


def agreed(wire: Collective, step: int, mine: Origin | None) -> Origin | None:
    """The first of what the replicas have found."""
    word = torch.tensor(mine or NOWHERE, dtype=torch.int64)
    words = [word if rank == wire.rank else torch.empty_like(word) for rank in range(wire.size)]
    all_gather(wire, Tag(step, Operation.ORIGIN), word, words).wait()
    lane, micro, backward, layer = min(word.tolist() for word in words)
    found = Origin(lane, micro, bool(backward), layer)
    return None if found == NOWHERE else found


def samples_of(corpora: Sequence[Corpus], reader: Reader, rows: Integers) -> list[str]:
    """`file:line` of each sample that stands in these rows, in their order, wholly or in part."""
    found = []
    for row in rows[rows != MISSING].tolist():
        source, sequences = reader.origin(row)
        corpus = corpora[source]
        found += [corpus.place(place) for place in corpus.train.places[sequences]]
    return list(dict.fromkeys(found))


def layer_name(module: nn.Module, origin: Origin) -> str | None:
    """None for the loss."""
    if origin.layer == LOSS:
        return None
    return [name for name, _ in module.named_modules()][origin.layer] or type(module).__name__


def event(step: int, found: NotFinite, origin: Origin | None, samples: Sequence[str], layer: str | None) -> Event:
    lane, micro, backward = (found.lane, None, None) if origin is None else origin[:3]
    where: Event = {"lane": lane, "micro": micro, "samples": samples, "layer": layer, "backward": backward}
    return {"event": "not_finite", "step": step + 1} | where


def explained(step: int, found: NotFinite, origin: Origin | None, samples: Sequence[str], cause: str) -> NotFinite:
    """The same error with all that is known. cause: of the micro-batch, in a few words."""
    advice = "lower optimizer.learning_rate"
    if origin is not None:
        lane = "" if found.lane == origin.lane else f"lane {origin.lane}, "
        more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
        why = f"{lane}micro-batch {origin.micro}; {cause}; samples: {', '.join(samples[:SHOWN])}{more}"
        advice += " or look at these samples"
    elif found.lane is None:
        why = "the gradient of every micro-batch is finite, so only their sum or its norm overflows"
    else:
        why = "computed again it is finite"
        advice = "look for kernels that do not repeat with samestep verify, or for faulty hardware"
    return NotFinite(f"step {step + 1}: {found.what} ({why}); nothing was applied; {advice}")


def _cause(module: nn.Module, origin: Origin | None, layer: str | None) -> str:
    if origin is None:
        return ""
    way = " in backward" if origin.backward else ""
    first = f"first{way} in {layer or 'the loss, after all layers'}"
    ill = next((name for name, weights in module.named_parameters() if not finite.is_finite(weights)), None)
    return first if ill is None else f"{first}; {ill} itself is not finite"


def _as_written(compiled: bool) -> contextlib.AbstractContextManager[object]:
    """Compiled code does not call the hooks."""
    stance = torch.compiler.set_stance
    return stance("force_eager") if compiled else contextlib.nullcontext()
