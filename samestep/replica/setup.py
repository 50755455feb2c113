"""From a job to the objects of the loop. The same on every replica: seeds and folders, no ranks."""

from samestep.data.feed import Feed, Fixed
from samestep.data.order import mix
from samestep.data.pack import plan
from samestep.data.tokenize import Corpus, load
from samestep.model.task import Task, build
from samestep.replica.job import Job

INITIAL_WEIGHTS, SAMPLE = 1 << 62, (1 << 62) + 1  # in the place of a step number when seeds are mixed


def feed_of(job: Job) -> Feed:
    recipe, corpus = job.recipe, load(job.corpus)
    return Feed(
        corpus.train,
        plan(corpus.train.ends, recipe.data.context, recipe.data.packing),
        context=recipe.data.context,
        seed=recipe.seed,
        shape=(recipe.lanes, recipe.batch.accumulate, recipe.batch.micro_batch),
        eos=corpus.eos,
    )


def held_out_of(job: Job, corpus: Corpus) -> Fixed:
    recipe = job.recipe
    rows = plan(corpus.held_out.ends, recipe.data.context, recipe.data.packing)
    return Fixed(
        corpus.held_out, rows, context=recipe.data.context, micro_batch=recipe.batch.micro_batch, eos=corpus.eos
    )


def task_of(job: Job) -> Task:
    corpus = load(job.corpus)
    return build(
        job.recipe,
        seed=mix(job.recipe.seed, INITIAL_WEIGHTS),
        vocabulary=corpus.vocabulary,
        eos=corpus.eos,
        tokenizer_file=corpus.tokenizer_file,
        base=job.base,
    )
