"""Held-out loss of a run's model and of what was exported from it, both through plain transformers in float32.

    samestep export RUN --merge --to DIR
    python benchmarks/exported.py RUN DIR > exported.json

The rows are those that the run was evaluated on, several samples a row, told apart by their positions. Beside them
stands the journal's own last held-out loss, computed in the recipe's dtype by samestep's model.
"""

import argparse
import json
import math
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("exported", type=Path)
    arguments = parser.parse_args()
    rows = held_out(arguments.run)
    losses = {
        name: loss(load(folder), rows)
        for name, folder in {"run": arguments.run / "model", "exported": arguments.exported}.items()
    }
    evaluated = [event for event in events(arguments.run) if event["event"] == "evaluated"]
    print(
        json.dumps(
            {"float32": losses, "apart": abs(losses["run"] - losses["exported"]), "journal": evaluated}, indent=1
        )
    )


def events(run: Path) -> list[dict]:
    from samestep.recover.journal import read

    return read(run / "journal.jsonl")


def held_out(run: Path):
    """The rows of the run's held-out part, as its evaluation reads them."""
    from samestep.data.corpus import load
    from samestep.data.feed import Fixed, Source
    from samestep.data.rows import rows_of
    from samestep.recipe.load import load as load_recipe
    from samestep.verbs.prepare import CACHE

    recipe = load_recipe(run / "recipe.yaml")
    cache = Path(recipe.run.cache).expanduser() if recipe.run.cache else CACHE
    corpora = [load(cache / source["corpus"]) for source in events(run)[0]["sources"].values()]
    sources = [Source(c.held_out, rows_of(c.held_out, recipe.data, recipe.objective.kind)) for c in corpora]
    return Fixed(sources, context=recipe.data.context, micro_batch=recipe.batch.micro_batch, eos=corpora[0].eos)


def load(folder: Path):
    """A Hugging Face folder, or an adapter with its base."""
    import torch
    import transformers

    if (folder / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM as Auto
    else:
        from transformers import AutoModelForCausalLM as Auto
    transformers.logging.set_verbosity_error()
    return Auto.from_pretrained(folder, dtype=torch.float32).eval()


def loss(model, rows) -> float:
    """Nats a trained token."""
    import torch
    import torch.nn.functional as F

    sums, count = [], 0
    with torch.no_grad():
        for number in range(len(rows)):
            batch = rows.micro_batch(number)
            logits = model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False).logits
            sums.append(float(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")))
            count += int((batch.targets != -100).sum())
    return math.fsum(sums) / count


if __name__ == "__main__":
    main()
