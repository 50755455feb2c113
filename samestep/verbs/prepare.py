"""What comes before any replica: the recipe read, the model folder checked, the sources tokenized and planned."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samestep.data import pack
from samestep.data.corpus import Corpus
from samestep.data.order import check_rows, rows_of_epoch, steps_for
from samestep.data.rows import refuse_long, rows_of
from samestep.data.tokenize import prepare as prepare_source
from samestep.data.vocabulary import Vocabulary, given, parse, trained
from samestep.errors import DataError
from samestep.model.folder import check_config, check_positions, check_vocabulary, resolve
from samestep.recipe.load import load
from samestep.recipe.schema import Data, Recipe, Sft
from samestep.recover.holding import Holding
from samestep.replica.job import Job
from samestep.verbs.places import anchored, cache_of
from samestep.verbs.room import held

Say = Callable[[str], None]
Progress = Callable[[str, int], None]  # source, bytes of it that are done


@dataclass(frozen=True)
class Prepared:
    recipe: Recipe
    base: Path
    corpora: dict[str, Corpus]  # by source
    rows: int  # an epoch reads
    rows_digest: str  # of the packing plans
    steps: int
    holding: Holding  # of the optimizer's moments

    @property
    def alternate(self) -> Path | None:
        return Path(self.recipe.run.alternate) if self.recipe.run.alternate else None

    def job(self, kind: str, run: Path, checkpoint: Path | None = None) -> Job:
        folders = [corpus.folder for corpus in self.corpora.values()]
        sync = self.recipe.sync.model_copy(update={"state": self.holding.state})
        recipe = self.recipe.model_copy(update={"sync": sync})
        return Job(kind, recipe, self.base, folders, run, self.steps, self.steps, checkpoint=checkpoint)


def prepare(
    path: Path,
    overrides: Sequence[str],
    say: Say,
    progress: Progress = lambda source, done: None,
    base: Path | None = None,
) -> Prepared:
    """RecipeError or DataError for whatever can be known to be wrong before a replica is started.

    base: where the recipe's relative paths start; default: its own folder.
    """
    base = base or path.resolve().parent
    recipe = anchored(load(path, overrides), base)
    corpora = _corpora(recipe, base, say, progress)
    for corpus in corpora.values():
        refuse_long(corpus, recipe.data, recipe.objective.kind)
    plans = [rows_of(corpus.train, recipe.data, recipe.objective.kind) for corpus in corpora.values()]
    _refuse_unused(dict(zip(corpora, plans, strict=True)), recipe.data.context)
    weights = recipe.data.weights.values()
    rows = sum(rows_of_epoch(weight, len(plan)) for weight, plan in zip(weights, plans, strict=True))
    check_rows(rows, recipe.rows_per_step, recipe.data.context)
    steps = steps_for(
        recipe.steps,
        recipe.tokens,
        recipe.epochs,
        rows=rows,
        rows_per_step=recipe.rows_per_step,
        context=recipe.data.context,
    )
    holding = held(recipe, base, max(corpus.vocabulary for corpus in corpora.values()))
    return Prepared(recipe, base, corpora, rows, _digest(plans), steps, holding)


def vocabulary_of(recipe: Recipe, data: Data, base: Path, say: Say) -> Vocabulary:
    """The tokenizer of `data.tokenizer`, else the model's own, else one trained on the sources."""
    folder = resolve(recipe.model, base)
    if data.tokenizer is not None:
        return given(base / data.tokenizer)
    if folder is not None:
        return given(folder)
    size = recipe.model.vocabulary
    if recipe.model.config is not None:
        size = int(check_config(base / recipe.model.config).get("vocab_size", size))
    return Vocabulary(trained(list(data.weights), data, base, size, cache_of(recipe), say))


def _corpora(recipe: Recipe, base: Path, say: Say, progress: Progress) -> dict[str, Corpus]:
    data, objective = recipe.data, recipe.objective
    vocabulary = vocabulary_of(recipe, data, base, say)
    _check_model(recipe, base, vocabulary)
    train_on = objective.train_on if isinstance(objective, Sft) else "answers"

    def corpus(source: str) -> Corpus:
        found = prepare_source(
            source,
            data,
            objective.kind,
            train_on,
            vocabulary,
            cache_of(recipe),
            base,
            say,
            progress=lambda done: progress(source, done),
        )
        if found.skipped_count:
            say(f"{found.skipped_count:,} samples of {source} cannot be used and are left out: {found.skipped[0]}, ...")
        return found

    return {source: corpus(source) for source in data.weights}


def _refuse_unused(plans: dict[str, pack.Rows], context: int) -> None:
    """Raises DataError for a source without a row."""
    for source, plan in plans.items():
        if not len(plan):
            raise DataError(
                f"no sample of {source} can be trained on: each is longer than data.context {context} or has no token "
                "to learn; raise it, set data.too_long to truncate, or leave the source out"
            )


def _check_model(recipe: Recipe, base: Path, vocabulary: Vocabulary) -> None:
    """Raises RecipeError where the data's tokens or rows do not fit a model that is described by files."""
    folder = resolve(recipe.model, base)
    described = base / recipe.model.config if recipe.model.config else folder and folder / "config.json"
    if described:
        check_vocabulary(check_config(described), parse(vocabulary)[0], described)
        check_positions(check_config(described), recipe.data.context, described)


def _digest(plans: Sequence[pack.Rows]) -> str:
    """Of one source the plan's own digest, of several one over theirs."""
    digests = [pack.digest(plan) for plan in plans]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
