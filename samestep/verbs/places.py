"""The folders that a recipe names beside its own, found from anywhere."""

from pathlib import Path

from samestep.recipe.schema import Recipe

CACHE = Path.home() / ".cache" / "samestep"


def anchored(recipe: Recipe, base: Path) -> Recipe:
    """With an alternate that is found from anywhere, also once the recipe stands in the run folder."""
    if recipe.run.alternate is None:
        return recipe
    alternate = (base / Path(recipe.run.alternate).expanduser()).resolve()
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"alternate": str(alternate)})})


def cache_of(recipe: Recipe) -> Path:
    """Of tokenized data."""
    return Path(recipe.run.cache).expanduser() if recipe.run.cache else CACHE
