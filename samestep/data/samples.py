"""A source's samples, one after the other: what a chunk of rows holds, judged by format and policy."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from samestep.data.formats import Sample, Turns, read
from samestep.data.source import Chunk, Invalid, Row, chunks, rows
from samestep.errors import DataError
from samestep.recipe.schema import Data

GROUP = 1 << 19  # bytes of a source that a worker takes at least at once

TAKEN = {  # the formats that each objective can learn from
    "causal": ("text",),
    "sft": ("text", "prompt_completion", "messages"),
    "dpo": ("preference",),
    "reward": ("preference",),
}
WAYS_OUT = {
    "text": "set objective.kind=causal or sft",
    "prompt_completion": "set objective.kind=sft",
    "messages": "set objective.kind=sft",
    "preference": "set objective.kind=dpo or reward",
}

Found = tuple[Row, Sample | Invalid]


def read_rows(chunk: Chunk, data: Data) -> Iterator[Found]:
    """The rows of a chunk in their order, each with its sample or why it is none."""
    for row in rows(chunk):
        yield row, row.fields if isinstance(row.fields, Invalid) else read(row.fields, data, row.where)


def read_samples(chunk: Chunk, data: Data) -> Iterator[Found]:
    """The rows of a chunk that are no empty text."""
    return (found for found in read_rows(chunk, data) if isinstance(found[1], Invalid) or not found[1].empty)


def first_sample(source: str, data: Data, base: Path) -> Sample:
    """The first sample that can be used: its format is that of the source.

    Raises DataError where there is none, and for an invalid one before it under `data.invalid: fail`.
    """
    why = ""
    for chunk in chunks(source, data, base):
        for _, sample in read_samples(chunk, data):
            if isinstance(sample, Sample):
                return sample
            if data.invalid == "fail":
                raise refusal(sample.message)
            why = why or f" (the first row: {sample.message})"
    raise DataError(f"data.source {source} under data.format {data.format} holds no sample{why}; name one with some")


def refusal(message: str) -> DataError:
    """The error of an invalid sample that `data.invalid: fail` does not let pass."""
    return DataError(f"{message}; set data.invalid=skip to leave such samples out")


def check_taken(format: str, objective: str, source: str) -> None:
    """Raises DataError where the objective cannot learn from samples of this format."""
    if format not in TAKEN[objective]:
        raise DataError(
            f"data.source {source} holds {format} samples, but objective.kind {objective} learns from "
            f"{' or '.join(TAKEN[objective])}; {WAYS_OUT[format]}, or name another source"
        )


def same_format(sample: Sample | Invalid, first: Sample) -> Sample | Invalid:
    """The sample itself, or an Invalid where its format is not that of the source's first sample."""
    if isinstance(sample, Invalid) or sample.format == first.format:
        return sample
    return Invalid(
        f"{sample.where}: a {sample.format} sample in a source that begins with a {first.format} sample "
        f"({first.where}); keep one format in each source"
    )


def groups(found: Iterable[Chunk], size: int = GROUP) -> Iterator[list[Chunk]]:
    """Chunks together until they have `size` bytes: the portions of the workers."""
    group: list[Chunk] = []
    held = 0
    for chunk in found:
        group.append(chunk)
        held += len(chunk.payload)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def plain(sample: Sample) -> str:
    """All that the sample says, as one text without roles."""
    parts = (part if isinstance(part, str) else _contents(part) for part in (sample.prompt, *sample.answers))
    return "\n".join(part for part in parts if part)


def _contents(turns: Turns) -> str:
    return "\n".join(turn.content for turn in turns)
