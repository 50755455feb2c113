#!/bin/bash
#SBATCH --job-name=samestep-tiny
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output="/shared/runs/launch/slurm-%A_%a.log"
#SBATCH --no-kill
#SBATCH --array=0-1
#SBATCH --time=1-12:00:00
#SBATCH --partition=gpu
#SBATCH --account=physics

set -u
recipes=(/shared/recipes/tiny.yaml '/shared/it'"'"'s $HOME.yaml')
runs=(/shared/runs/tiny '/shared/runs/a b')
recipe=${recipes[${SLURM_ARRAY_TASK_ID:-0}]}
run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
mkdir -p -- "$run/launch"
cd -- '/shared/work dir' || exit 4

step= cut=
stop() {
  cut=1
  echo "$(date +%FT%T) SIGTERM: preempted, requeued, or 120 s before the time limit; stopping with a checkpoint"
  [ -z "$step" ] || kill -TERM "$step"
}
trap stop TERM

echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restarted ${SLURM_RESTART_COUNT:-0} times," \
  "ends by $(squeue --noheader --job "$SLURM_JOB_ID" --format %e)"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
head="$run/launch/ray-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
srun --cpus-per-task=16 --no-kill --wait=0 --kill-on-bad-exit=0 --open-mode=append \
  --output="$run/launch/ray-%j-%N.log" \
  '/opt/my python/bin/python' -m samestep.launch.raynode "$head" 16 "/tmp/samestep-ray-$SLURM_JOB_ID" &
cluster=$!
while [ ! -s "$head" ] && [ -z "$cut" ] && kill -0 "$cluster" 2>/dev/null; do sleep 1; done
if [ -n "$cut" ]; then
  sh -c 'exit 75' &
elif [ -s "$head" ]; then
  '/opt/my python/bin/python' -m samestep.cli train "$recipe" --run "$run" --engine ray --address "$(cat "$head")" --resume \
    run.replicas=8 run.minimum=1 optimizer.clip=0.5 'sample.prompt="$(rm -rf ~)"' &
else
  echo "the Ray cluster of the job did not start; look at $run/launch/ray-$SLURM_JOB_ID-*.log"
  sh -c 'exit 4' &
fi
step=$!
code=0 cut=1
while [ -n "$cut" ]; do  # a trap cuts the wait short
  cut=
  wait "$step"
  code=$?
done
rm -f "$head"
kill -USR1 "$cluster" 2>/dev/null && wait "$cluster"

state=$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)
echo "$(date +%FT%T) ended with code $code ($state); logs by node: $run/launch"
if [ "$code" -eq 75 ] && [ "$state" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
