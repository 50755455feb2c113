"""samestep simulate: what failures would cost a run that nobody has rented the machines for."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from samestep import units
from samestep.errors import RecipeError
from samestep.plan.failures import Goodput, goodput
from samestep.plan.simulate import POLICIES, Outcome, Price, every, quantile, simulate, summary
from samestep.plan.world import CAUSES, Setup
from samestep.recipe.load import load
from samestep.report.simulated import picture

HOLDERS = {"sharded": 1, "mirrored": 2, "replicated": None, "auto": 2}
CURVE = 200  # points of a curve in the JSON, at most


@dataclass(frozen=True)
class Simulation:
    """outcomes: by policy, one a seed, in the order of the seeds. expected: in closed form. seconds: that it took."""

    setup: Setup
    price: Price
    outcomes: dict[str, list[Outcome]]
    expected: Goodput
    seconds: float


def of_recipe(recipe: Path | None, replicas: int | None, lanes: int | None) -> dict[str, Any]:
    """What a recipe says of replicas, lanes and holders of the state, unless it is given here."""
    if recipe is None:
        if replicas is None:
            raise RecipeError("a simulation needs a recipe or --replicas N")
        return {"replicas": replicas, "lanes": lanes}
    found = load(recipe, [])
    copies = 1 if found.sync.alone else HOLDERS[found.sync.state]
    return {"replicas": replicas or found.run.replicas, "lanes": lanes or found.most_replicas, "copies": copies}


def run(setup: Setup, price: Price, policies: Sequence[str], seeds: range, to: Path | None = None) -> Simulation:
    """All policies under the same failures, seed by seed, on all processors. to: a new file for the picture."""
    for policy in policies:
        if policy not in POLICIES:
            raise RecipeError(f"--policy {policy} is none of {', '.join(POLICIES)}")
    if to is not None and to.exists():
        raise RecipeError(f"--picture {to} is there already; give a new file, or delete it first")
    began, pairs = time.monotonic(), list(product(policies, seeds))
    tasks = sorted(pairs, key=lambda pair: pair[0] != "survivors")  # the longest first
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(tasks))) as pool:
        made = [pool.submit(simulate, setup, policy, seed, price) for policy, seed in tasks]
        found = dict(zip(tasks, (each.result() for each in made), strict=True))
    outcomes = {policy: [found[policy, seed] for seed in seeds] for policy in policies}
    simulation = Simulation(setup, price, outcomes, expected(setup), time.monotonic() - began)
    if to is not None:
        to.write_text(drawn(simulation))
    return simulation


def expected(setup: Setup) -> Goodput:
    hazards = setup.hazards
    return goodput(
        setup.replicas,
        setup.step_seconds,
        hazards.failures + hazards.preemptions,
        setup.save,
        setup.restart,
        devices=setup.devices,
        detect_seconds=setup.detect,
        form_seconds=setup.form,
        join_seconds=setup.join,
        replace_seconds=hazards.replace,
        spares=setup.spares,
        lanes=setup.shared,
        survivors_save_every=every(setup, "survivors"),
    )


def drawn(simulation: Simulation) -> str:
    """Of the seed whose steps are the median's, of the first policy."""
    setup, first = simulation.setup, next(iter(simulation.outcomes.values()))
    middle = quantile([each.steps for each in first], 0.5)
    number = min(range(len(first)), key=lambda n: abs(first[n].steps - middle))
    one = {policy: outcomes[number] for policy, outcomes in simulation.outcomes.items()}
    blows = max((each.marks for each in one.values()), key=len)
    title = f"{setup.replicas:,} replicas over {setup.days:g} days: committed steps"
    under = f"a step takes {units.duration(setup.step_seconds)}; seed {first[number].seed}; marks: replicas lost"
    ideal = int(setup.seconds / setup.step_seconds)
    return picture(title, under, setup.days, ideal, {policy: each.curve for policy, each in one.items()}, blows)


def as_dict(simulation: Simulation) -> dict[str, Any]:
    policies = {policy: _of_policy(outcomes) for policy, outcomes in simulation.outcomes.items()}
    setup = asdict(simulation.setup) | {"lanes": simulation.setup.shared}
    return {
        "setup": setup,
        "price": asdict(simulation.price),
        "seconds": round(simulation.seconds, 1),
        "policies": {
            policy: found | {"save_every": every(simulation.setup, policy)} for policy, found in policies.items()
        },
        "expected": asdict(simulation.expected),
    }


def _of_policy(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "summary": summary(outcomes),
        "hours": {cause: sum(each.hours[cause] for each in outcomes) / len(outcomes) for cause in CAUSES},
        "runs": [_of_run(each) for each in outcomes],
    }


def _of_run(one: Outcome) -> dict[str, Any]:
    """Without the marks, and with few points of the curve."""
    step = max(1, -(-len(one.curve) // CURVE))
    kept = asdict(replace(one, curve=[*one.curve[::step], one.curve[-1]], marks=[]))
    del kept["marks"]
    return kept


def lines(simulation: Simulation) -> list[str]:
    """A table for a terminal."""
    names = f"{'policy':<10} {'goodput':>9} {'5 to 95 %':>19} {'steps':>9} {'expected':>9} {'lost':>7}"
    rows = [line for policy in simulation.outcomes for line in _policy(simulation, policy)]
    return [_setup(simulation), f"{names}  time also went into", *rows]


def _setup(simulation: Simulation) -> str:
    setup, expected = simulation.setup, simulation.expected
    seeds = len(next(iter(simulation.outcomes.values())))
    spares = f" and {setup.spares:,} spares" if setup.spares else ""
    return (
        f"{setup.replicas:,} replicas of {setup.devices} device(s){spares} for {setup.days:g} days, {seeds} seed(s); "
        f"a loss somewhere every {units.duration(expected.mtbf)}; a step takes {units.duration(setup.step_seconds)}"
    )


def _policy(simulation: Simulation, policy: str) -> list[str]:
    setup, outcomes = simulation.setup, simulation.outcomes[policy]
    found, hours = summary(outcomes), _of_policy(outcomes)["hours"]
    total = setup.places * setup.devices * setup.days * 24
    spent = sorted((cause for cause in CAUSES if cause not in ("useful", "lost")), key=lambda cause: -hours[cause])
    said = ", ".join(f"{cause} {units.share(hours[cause] / total)}" for cause in spent[:4] if hours[cause])
    good, guess = found["goodput"], getattr(simulation.expected, policy) * setup.seconds / setup.step_seconds
    between = f"{units.share(good['p5'])} to {units.share(good['p95'])}"
    rows = [
        f"{policy:<10} {units.share(good['p50']):>9} {between:>19} {found['steps']['p50']:>9,.0f} {guess:>9,.0f} "
        f"{units.share(hours['lost'] / total):>7}  {said}"
    ]
    if found["dollars"]["p50"]:
        dollars, each = found["dollars"], found["dollars_a_step"]["p50"]
        between = f"${dollars['p5']:,.0f} to ${dollars['p95']:,.0f}"
        rows.append(f"{'':<10} ${dollars['p50']:,.0f} ({between}), ${each:,.2f} a step")
    return rows
