"""What comes before any replica: the recipe read, the model folder checked, the corpus tokenized and planned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samestep.data import pack
from samestep.data.order import check_rows, steps_for
from samestep.data.tokenize import Corpus
from samestep.data.tokenize import prepare as prepare_corpus
from samestep.errors import DataError
from samestep.model.folder import check_folder, resolve
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
    cache = Path(recipe.run.cache) if recipe.run.cache else CACHE
    tokenizer = Path(base, recipe.data.tokenizer) if recipe.data.tokenizer else None
    raise DataError(f"{cache} {tokenizer}")
