"""What comes before any replica: the recipe read, the model folder checked, the corpus tokenized and planned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samestep.data import pack
from samestep.data.order import check_rows, steps_for
from samestep.data.tokenize import Corpus
from samestep.data.tokenize import prepare as prepare_corpus
from samestep.model.folder import check_config, check_vocabulary, resolve
from samestep.recipe.load import load
from samestep.recipe.schema import Recipe
from samestep.replica.job import Job

CACHE = Path.home() / ".cache" / "samestep"


@dataclass(frozen=True)
class Prepared:
    recipe: Recipe
    base: Path
    corpus: Corpus
    rows: int
    rows_digest: str  # of the packing plan
    steps: int

    def job(self, kind: str, run: Path) -> Job:
        return Job(kind, self.recipe, self.base, self.corpus.folder, run, self.steps, self.steps)


def prepare(path: Path, overrides: Sequence[str], say: Callable[[str], None]) -> Prepared:
    """RecipeError or DataError for whatever can be known to be wrong before a replica is started."""
    recipe = load(path, overrides)
    base = path.resolve().parent
    corpus = _corpus(recipe, base, say)
    rows = pack.plan(corpus.train.ends, recipe.data.context, recipe.data.packing)
    check_rows(len(rows), recipe.rows_per_step, recipe.data.context)
    steps = steps_for(
        recipe.steps,
        recipe.tokens,
        recipe.epochs,
        rows=len(rows),
        rows_per_step=recipe.rows_per_step,
        context=recipe.data.context,
    )
    return Prepared(recipe, base, corpus, len(rows), pack.digest(rows), steps)


def _corpus(recipe: Recipe, base: Path, say: Callable[[str], None]) -> Corpus:
    folder = resolve(recipe.model, base)
    tokenizer, vocabulary = folder, recipe.model.vocabulary
    if recipe.data.tokenizer is not None:
        tokenizer = base / recipe.data.tokenizer
    if recipe.model.config is not None:
        vocabulary = int(check_config(base / recipe.model.config).get("vocab_size", vocabulary))
    cache = Path(recipe.run.cache).expanduser() if recipe.run.cache else CACHE
    corpus = prepare_corpus(recipe.data, vocabulary, base, cache, tokenizer, say)
    described = base / recipe.model.config if recipe.model.config else folder and folder / "config.json"
    if described:
        check_vocabulary(check_config(described), corpus.vocabulary, described)
    return corpus
