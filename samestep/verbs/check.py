"""samestep check: what the data of a recipe is, before anything is trained on it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from samestep.data import encode, survey
from samestep.data.pool import ordered
from samestep.data.samples import first_sample, groups, read_samples
from samestep.data.source import Invalid, chunks
from samestep.data.summary import Summary, refusals, sequences_of, summary
from samestep.data.survey import Found, Seen, Surveyor
from samestep.data.tokenize import Job, ready
from samestep.data.vocabulary import Vocabulary, parse
from samestep.recipe.load import load
from samestep.recipe.schema import Data, Recipe, Sft
from samestep.verbs.prepare import vocabulary_of

SHOWN = 3  # samples
STRETCH = 80  # tokens of a trained or untrained stretch that are shown, half of them from its end
BAR = 40  # characters

Say = Callable[[str], None]
Stretch = tuple[bool, str]  # whether it is trained, and its text


@dataclass(frozen=True)
class Check:
    """What every source holds, some of its samples as they are trained on, and why a run would be refused."""

    context: int
    too_long: str
    refused: list[str]
    sources: list[Summary]
    shown: dict[str, list[list[Stretch]]]


def check(path: Path, overrides: Sequence[str], say: Say) -> Check:
    """Reads every source of the recipe once, invalid samples and all.

    Raises RecipeError for a recipe that cannot be read and DataError for a source without any sample, or one that
    the tokenizer and the chat template cannot encode.
    """
    recipe, base = load(path, overrides), path.resolve().parent
    data = recipe.data.model_copy(update={"invalid": "skip"})  # so that all of them are seen
    vocabulary = vocabulary_of(recipe, data, base, say)
    parse(vocabulary)
    jobs = {source: _job(source, recipe, data, base, vocabulary) for source in data.weights}
    seen = {}
    for source, job in jobs.items():
        say(f"reading {source}")
        seen[source] = _seen(source, job, base)
    training = np.concatenate([one.digests[~one.held_out] for one in seen.values()])
    sources = [summary(source, jobs[source].first.format, one, recipe, training) for source, one in seen.items()]
    refused = [sentence for one in sources for sentence in refusals(one, recipe)]
    shown = {source: _shown(source, job, base) for source, job in jobs.items()}
    return Check(data.context, data.too_long, refused, sources, shown)


def _job(source: str, recipe: Recipe, data: Data, base: Path, vocabulary: Vocabulary) -> Job:
    train_on = recipe.objective.train_on if isinstance(recipe.objective, Sft) else "answers"
    return Job(data, vocabulary, train_on, first_sample(source, data, base), "I")


def _seen(source: str, job: Job, base: Path) -> Seen:
    make = partial(Surveyor, job, job.data.context // sequences_of(job.first.format))
    portions = groups(chunks(source, job.data, base))
    with closing(ordered(make, portions, os.cpu_count() or 1)) as results:
        return survey.together([one for portion in results for one in portion])


def _shown(source: str, job: Job, base: Path) -> list[list[Stretch]]:
    """The first samples, the two sequences of a preference one after the other."""
    from tokenizers import Tokenizer

    tokenizer, encoder = Tokenizer.from_str(job.vocabulary.text), job.encoder()
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    rows = chain.from_iterable(read_samples(chunk, job.data) for chunk in chunks(source, job.data, base))
    usable = (found for found in ready(rows, job, encoder) if not isinstance(found, Invalid))
    return [
        [stretch for sequence in found.sequences for stretch in stretches(sequence, decode)]
        for found in islice(usable, SHOWN)
    ]


def stretches(sequence: encode.Sequence, decode: Callable[[list[int]], str]) -> Iterator[Stretch]:
    """The text of a sequence, cut where trained tokens begin and end; the middle of a long stretch is left out."""
    marks = sequence.trained or [True] * len(sequence.ids)
    half = STRETCH // 2
    for mark, pairs in groupby(zip(marks, sequence.ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in pairs]
        yield mark, decode(ids) if len(ids) <= STRETCH else f"{decode(ids[:half])} ... {decode(ids[-half:])}"


def as_dict(check: Check) -> dict[str, Any]:
    return asdict(check)


def lines(check: Check, colour: bool = False) -> list[str]:
    """The report as a terminal shows it; trained tokens green with `colour`, else in [[ ]]."""
    found = [line for one in check.sources for line in _source(one, check)]
    samples = [line for one in check.sources for line in _samples(check.shown[one.source], colour)]
    verdict = [f"would be refused: {sentence}" for sentence in check.refused] or ["a run would take it"]
    return [*found, *samples, *(visible(line) for line in verdict)]


def _source(one: Summary, check: Check) -> Iterator[str]:
    yield visible(f"{one.source}: {one.format}, {one.samples:,} samples, {one.held_out:,} of them held out")
    yield f"  {one.tokens:,} tokens in {one.sequences:,} sequences, {one.trained:,} trained"
    yield f"  tokens a sample: {one.shortest:,} to {one.longest:,}, median {one.median:,}"
    yield from bars(one.histogram)
    if one.too_long:
        yield f"  longer than the context of {check.context}: {one.too_long:,} (data.too_long: {check.too_long})"
    yield f"  {one.rows:,} rows of {check.context} positions to train on, {one.padding:.1%} of them padding"
    counts = {"empty": one.empty, "without a trained token": one.untrained}
    yield from (f"  {name}: {count:,}" for name, count in counts.items() if count)
    for name, found in {
        "duplicates": one.duplicates,
        "held out but also trained on": one.overlap,
        **one.secrets,
    }.items():
        if found.count:
            yield visible(f"  {name}: {_named(found)}")
    if one.invalid.count:
        yield f"  invalid: {one.invalid.count:,}"
        yield from (visible(f"    {sentence}") for sentence in one.invalid.places)


def bars(histogram: dict[int, int]) -> Iterator[str]:
    most = max(histogram.values(), default=1)
    for size, count in histogram.items():
        yield f"  {f'<= {size:,}':>10} {count:>9,} {'#' * -(-count * BAR // most)}"


def _named(found: Found) -> str:
    return f"{found.count:,} ({', '.join(found.places)}{', ...' if found.count > len(found.places) else ''})"


def _samples(samples: Iterable[list[Stretch]], colour: bool) -> Iterator[str]:
    begin, end = ("\x1b[32m", "\x1b[0m") if colour else ("[[", "]]")
    for number, sample in enumerate(samples, 1):
        yield f"--- sample {number}, trained tokens {'green' if colour else 'in [[ ]]'}"
        yield "".join(f"{begin}{visible(text)}{end}" if mark else visible(text) for mark, text in sample)


def visible(text: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
