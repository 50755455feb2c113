"""From a job to the objects of the loop. The same on every replica: seeds and folders, no ranks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from samestep.data.corpus import Corpus, load
from samestep.data.feed import Feed, Fixed, Source
from samestep.data.order import mix
from samestep.data.rows import rows_of
from samestep.model.optim import rule
from samestep.model.task import Task, build
from samestep.replica.islands import Islands
from samestep.replica.job import Job, copies
from samestep.replica.place import Place
from samestep.replica.split import WHOLE, Split, over
from samestep.replica.step import Step
from samestep.wire.collective import Collective
from samestep.wire.formats import Formats

INITIAL_WEIGHTS, SAMPLE = 1 << 62, (1 << 62) + 1  # in the place of a step number when seeds are mixed


def feed_of(job: Job) -> Feed:
    recipe = job.recipe
    return Feed(
        _sources(job, "train"),
        list(recipe.data.weights.values()),
        context=recipe.data.context,
        seed=recipe.seed,
        shape=(recipe.lanes, recipe.batch.accumulate, recipe.batch.micro_batch),
        eos=corpora_of(job)[0].eos,
    )


def fixed_of(job: Job, part: str) -> Fixed:
    """The rows of a part, train or held_out, in their own order."""
    recipe = job.recipe
    return Fixed(
        _sources(job, part),
        context=recipe.data.context,
        micro_batch=recipe.batch.micro_batch,
        eos=corpora_of(job)[0].eos,
    )


def task_of(job: Job) -> Task:
    corpora = corpora_of(job)
    return build(
        job.recipe,
        seed=mix(job.recipe.seed, INITIAL_WEIGHTS),
        vocabulary=max(corpus.vocabulary for corpus in corpora),
        eos=corpora[0].eos,
        tokenizer_file=corpora[0].tokenizer_file,
        base=job.base,
    )


def corpora_of(job: Job) -> list[Corpus]:
    """Of each source; arrays are mapped, so that opening them again costs nothing."""
    return [load(folder) for folder in job.corpora]


def _sources(job: Job, part: str) -> list[Source]:
    data, kind = job.recipe.data, job.recipe.objective.kind
    parts = [corpus.train if part == "train" else corpus.held_out for corpus in corpora_of(job)]
    return [Source(tokens, rows_of(tokens, data, kind)) for tokens in parts]


def split_of(job: Job, place: Place) -> tuple[Task, Split]:
    """The task, of which this process has a part where the recipe says so."""
    how, count = job.recipe.compute.shard, job.recipe.compute.shards
    if how == "none":
        return task_of(job), WHOLE

    from samestep.wire.torch_backend import Shards

    shards = Shards(place.shard, count, Path(f"/proc/self/fd/{place.meeting}"), place.replica)
    return over(shards, how, partial(task_of, job))


def step_of(job: Job, task: Task, wire: Collective, split: Split = WHOLE) -> Step | Islands:
    return STEPS[job.recipe.sync.strategy](job, task, wire, split)


def _islands(job: Job, task: Task, wire: Collective, _split: Split) -> Islands:
    recipe = job.recipe
    return Islands(
        task.module,
        wire,
        rule(recipe.optimizer),
        recipe.sync.diloco,
        lanes=recipe.lanes,
        steps=job.steps,
        clip=recipe.optimizer.clip,
        accumulate=recipe.batch.accumulate,
        scrub=recipe.recover.scrub_every,
        formats=Formats(recipe.sync.wire, recipe.sync.told),
    )


def _lanes(job: Job, task: Task, wire: Collective, split: Split) -> Step:
    recipe = job.recipe
    return Step(
        task.module,
        wire,
        rule(recipe.optimizer),
        lanes=recipe.lanes,
        clip=recipe.optimizer.clip,
        accumulate=recipe.batch.accumulate,
        strategy=recipe.sync.strategy,
        copies=copies(recipe),
        scrub=recipe.recover.scrub_every,
        formats=Formats(recipe.sync.wire, recipe.sync.told),
        recompute=recipe.recover.recompute_every,
        split=split,
    )


STEPS: dict[str, Callable[[Job, Task, Collective, Split], Step | Islands]] = {
    "exact": _lanes,
    "fast": _lanes,
    "diloco": _islands,
}
