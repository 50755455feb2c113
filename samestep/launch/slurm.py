"""The text of a Slurm job: a batch script whose tasks become one run (launch/env.py), or the nodes of a Ray cluster for
it (launch/raynode.py). Pure.

Slurm sends SIGTERM where it preempts or requeues a job, and before its time limit (`--signal`). The tasks then end with
a checkpoint and code 75, the script puts the job into the queue again, and it goes on, on whatever nodes it gets.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samestep.errors import RecipeError

WARNING = 120  # seconds before the time limit
TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")  # as sbatch(1) has it

BODY = """
set -u
recipes=({recipes})
runs=({runs})
recipe=${{recipes[${{SLURM_ARRAY_TASK_ID:-0}}]}}
run=${{runs[${{SLURM_ARRAY_TASK_ID:-0}}]}}
mkdir -p -- "$run/launch"
cd -- {folder} || exit 4

step= cut=
stop() {{
  cut=1
  echo "$(date +%FT%T) SIGTERM: preempted, requeued, or {warning} s before the time limit; stopping with a checkpoint"
  {passed_on}
}}
trap stop TERM

echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restarted ${{SLURM_RESTART_COUNT:-0}} times," \\
  "ends by $(squeue --noheader --job "$SLURM_JOB_ID" --format %e)"
{start}
code=0 cut=1
while [ -n "$cut" ]; do  # a trap cuts the wait short
  cut=
  wait "$step"
  code=$?
done
{end}
state=$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)
echo "$(date +%FT%T) ended with code $code ($state); logs by node: $run/launch"
if [ "$code" -eq 75 ] && [ "$state" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
"""

TASKS = """\
srun --cpus-per-task={threads} --wait=60 --kill-on-bad-exit=0 --open-mode=append \\
  --output="$run/launch/slurm-%j-%N-%t.log" \\
  {command} train "$recipe" --run "$run" --engine env{overrides} &
step=$!"""

# The cluster is the job's first step; what trains is on the first node beside it, and what it starts is on all.
CLUSTER = """\
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
head="$run/launch/ray-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"
srun --cpus-per-task={cpus} --no-kill --wait=0 --kill-on-bad-exit=0 --open-mode=append \\
  --output="$run/launch/ray-%j-%N.log" \\
  {python} -m samestep.launch.raynode "$head" {cpus} "/tmp/samestep-ray-$SLURM_JOB_ID" &
cluster=$!
while [ ! -s "$head" ] && [ -z "$cut" ] && kill -0 "$cluster" 2>/dev/null; do sleep 1; done
if [ -n "$cut" ]; then
  sh -c 'exit 75' &
elif [ -s "$head" ]; then
  {command} train "$recipe" --run "$run" --engine ray --address "$(cat "$head")" --resume \\
    run.replicas={replicas} run.minimum=1{overrides} &
else
  echo "the Ray cluster of the job did not start; look at $run/launch/ray-$SLURM_JOB_ID-*.log"
  sh -c 'exit 4' &
fi
step=$!"""

END = """\
rm -f "$head"
kill -USR1 "$cluster" 2>/dev/null && wait "$cluster"
"""

STOP_TASKS = 'scancel --quiet --signal=TERM "$SLURM_JOB_ID"'
STOP_ONE = '[ -z "$step" ] || kill -TERM "$step"'

PARTS = {"env": (STOP_TASKS, TASKS, ""), "ray": (STOP_ONE, CLUSTER, END)}  # by engine: to stop, to start, at the end


@dataclass(frozen=True)
class Wanted:
    """recipes and runs: absolute paths, one run a recipe. command: of samestep, in words, the first a Python. also:
    further directives. engine: env, a task for each replica, or ray, a cluster inside the job.
    """

    name: str
    recipes: Sequence[Path]
    runs: Sequence[Path]
    log: Path  # folder of the script's own output
    nodes: int
    per_node: int
    threads: int
    command: Sequence[str]
    folder: Path  # where it works, as paths in overrides are relative to
    overrides: Sequence[str] = ()
    time: str | None = None
    partition: str | None = None
    also: Sequence[str] = ()
    engine: str = "env"


def script(wanted: Wanted) -> str:
    """RecipeError for what sbatch would read as something else."""
    for run in wanted.runs:
        _plain("--run", str(run))
    stop, start, end = PARTS[wanted.engine]
    body = BODY.format(
        recipes=shlex.join(map(str, wanted.recipes)),
        runs=shlex.join(map(str, wanted.runs)),
        folder=shlex.quote(str(wanted.folder)),
        warning=WARNING,
        passed_on=stop,
        start=_start(start, wanted),
        end=end,
    )
    return "#!/bin/bash\n" + "".join(f"#SBATCH {line}\n" for line in _directives(wanted)) + body


def _start(text: str, wanted: Wanted) -> str:
    return text.format(
        threads=wanted.threads,
        cpus=wanted.per_node * wanted.threads,
        replicas=wanted.nodes * wanted.per_node,
        python=shlex.quote(wanted.command[0]),
        command=shlex.join(wanted.command),
        overrides="".join(f" {shlex.quote(override)}" for override in wanted.overrides),
    )


def _directives(wanted: Wanted) -> list[str]:
    array, cluster = len(wanted.recipes) > 1, wanted.engine == "ray"
    lines = [
        f"--job-name={_plain('the name', wanted.name)}",
        f"--nodes={wanted.nodes}",
        f"--ntasks-per-node={1 if cluster else wanted.per_node}",
        f"--cpus-per-task={wanted.per_node * wanted.threads if cluster else wanted.threads}",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{WARNING}",
        f'--output="{_plain("--run", str(wanted.log))}/slurm-{"%A_%a" if array else "%j"}.log"',
    ]
    if cluster:
        lines.append("--no-kill")  # without a node the others go on
    if array:
        lines.append(f"--array=0-{len(wanted.recipes) - 1}")
    if wanted.time:
        lines.append(f"--time={_time(wanted.time)}")
    if wanted.partition:
        lines.append(f"--partition={_plain('--partition', wanted.partition)}")
    return lines + [_line(directive) for directive in wanted.also]


def _time(asked: str) -> str:
    if not TIME.fullmatch(asked):
        raise RecipeError(f"--time is {asked!r}, but must be minutes, or as in 2:30:00 or 1-12:00:00")
    return asked


def _plain(what: str, text: str) -> str:
    """sbatch has rules of its own for quotes, and % stands for a job's number."""
    if not text.isprintable() or set(text) & set("\"'\\%"):
        raise RecipeError(
            f"{what} is {text!r}, but sbatch takes no quotes, backslashes, % and line ends; leave them out"
        )
    return text


def _line(directive: str) -> str:
    if not directive.startswith("-") or not directive.isprintable():
        raise RecipeError(f"--sbatch is {directive!r}, but must be one option of sbatch, such as --account=physics")
    return directive
