"""What a replica is told to do: the resolved recipe and the folders that the verb has prepared."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samestep.recipe.schema import Recipe
from samestep.recover import checkpoint


@dataclass(frozen=True)
class Job:
    kind: str  # train | repeat | pilot
    recipe: Recipe
    base: Path  # relative paths of the recipe start here
    corpora: list[Path]  # the prepared ones, one a source
    run: Path
    steps: int  # of the whole run; the learning rate follows them
    stop: int  # steps after which this job ends
    finish: bool = True  # evaluate, save and sample at the end
    tensors: bool = False  # journal a digest of each tensor beside that of all
    checkpoint: Path | None = None  # the folder of the checkpoint that the run goes on from

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders of its checkpoints, the run's own first."""
        return checkpoint.places(self.run, self.recipe.run.alternate)

    def dump(self) -> dict[str, Any]:
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        corpora = [str(folder) for folder in self.corpora]
        return plain | {"recipe": self.recipe.model_dump(mode="json"), "corpora": corpora}


def copies(recipe: Recipe) -> int:
    """Replicas that hold each part of the state, at most. `sync.state` has been decided by the verb, for all replicas.

    What islands have is with one replica only, whatever that says, and so is what was rounded off a lane's gradient.
    """
    if recipe.sync.alone:
        return 1
    return {"sharded": 1, "mirrored": 2, "replicated": recipe.lanes}[recipe.sync.state]


def parse(fields: dict[str, Any]) -> Job:
    paths: dict[str, Path | None] = {key: Path(fields[key]) for key in ("base", "run")}
    corpora = [Path(folder) for folder in fields["corpora"]]
    paths["checkpoint"] = Path(fields["checkpoint"]) if fields["checkpoint"] else None
    return Job(**(fields | paths | {"corpora": corpora} | {"recipe": Recipe.model_validate(fields["recipe"])}))
