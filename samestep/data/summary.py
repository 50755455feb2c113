"""What was seen of a source and what a recipe makes of it: pure arithmetic on lengths and digests."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from samestep.data import pack
from samestep.data.samples import check_taken
from samestep.data.survey import Found, Seen, duplicates, histogram, overlap
from samestep.errors import DataError
from samestep.recipe.schema import Recipe


@dataclass(frozen=True)
class Summary:
    """Of one source. Lengths are in tokens; that of a preference is the sum of its two sequences.

    trained: tokens that are targets. histogram: the most tokens of each bar, and its samples. untrained: samples
    without a trained token in the positions that they have. empty: texts without a character, which are no samples.
    rows, padding: of the training part, and the share of their positions that no sample takes.
    """

    source: str
    format: str
    samples: int
    held_out: int
    sequences: int
    tokens: int
    trained: int
    shortest: int
    median: int
    longest: int
    histogram: dict[int, int]
    too_long: int
    untrained: int
    empty: int
    rows: int
    padding: float
    duplicates: Found
    overlap: Found
    invalid: Found
    secrets: dict[str, Found]


def sequences_of(format: str) -> int:
    """That a sample of a format has."""
    return 2 if format == "preference" else 1


def summary(source: str, format: str, seen: Seen, recipe: Recipe, training: NDArray[np.uint64]) -> Summary:
    """training: digests of the training samples of all sources."""
    sizes = seen.sizes.reshape(-1, sequences_of(format)).sum(1)
    long, untrained, rows = _rows(format, seen, recipe)
    positions = len(rows) * recipe.data.context
    return Summary(
        source,
        format,
        samples=len(sizes),
        held_out=int(seen.held_out.sum()),
        sequences=len(seen.sizes),
        tokens=int(seen.sizes.sum()),
        trained=int(seen.targets.sum()),
        shortest=int(sizes.min()),
        median=int(np.median(sizes)),
        longest=int(sizes.max()),
        histogram=histogram(sizes),
        too_long=long,
        untrained=untrained,
        empty=seen.empty,
        rows=len(rows),
        padding=1 - int(rows.lengths.sum()) / positions if positions else 0.0,
        duplicates=duplicates(seen),
        overlap=overlap(seen, training),
        invalid=seen.invalid,
        secrets=seen.secrets,
    )


def _rows(format: str, seen: Seen, recipe: Recipe) -> tuple[int, int, pack.Rows]:
    """Samples that are too long, those of which nothing is trained, and the rows of the training part."""
    kind, data, each = recipe.objective.kind, recipe.data, sequences_of(format)
    if kind == "causal":  # a stream, where nothing is too long
        ends = np.cumsum(seen.sizes[np.repeat(~seen.held_out, each)])
        return 0, 0, pack.stream(ends, data.context, data.packing)
    ends = np.cumsum(seen.sizes)
    fit = pack.fit(ends, None, data.context, together=each, score=kind == "reward", too_long=data.too_long)
    cut = np.repeat(fit.long, each) & (data.too_long == "truncate")
    untrained = (np.where(cut, seen.kept, seen.targets).reshape(-1, each) == 0).any(1)
    kept = fit.kept & ~untrained & ~seen.held_out
    rows = pack.apart(ends, replace(fit, kept=kept), data.context, together=each, packing=data.packing)
    return int(fit.long.sum()), int(untrained.sum()), rows


def refusals(one: Summary, recipe: Recipe) -> Iterator[str]:
    """Why a run with this recipe would not take the source: a sentence each."""
    try:
        check_taken(one.format, recipe.objective.kind, one.source)
    except DataError as error:
        yield str(error)
    data = recipe.data
    if one.invalid.count and data.invalid == "fail":
        yield (
            f"{one.source} has {one.invalid.count:,} samples that cannot be used and data.invalid is fail; "
            f"repair them, or set data.invalid=skip to leave them out"
        )
    if one.too_long and data.too_long == "fail":
        yield (
            f"{one.source} has {one.too_long:,} samples longer than data.context {data.context} and data.too_long is "
            f"fail; raise data.context, or set data.too_long to skip or truncate"
        )
    if not one.rows and one.held_out < one.samples:
        yield (
            f"no training sample of {one.source} can be trained on: each is longer than data.context {data.context} or "
            f"has no token to learn; raise it, set data.too_long to truncate, or leave the source out"
        )
    if data.held_out and not 0 < one.held_out < one.samples:
        yield (
            f"data.held_out {data.held_out} takes {one.held_out:,} of {one.samples:,} samples of {one.source}, but "
            f"training and the held-out set need one each; set it to 0 or to another share"
        )
