#!/usr/bin/env bash
# Train a recipe, or carry out a sweep, on Slurm nodes:
#   sbatch --nodes=4 cluster/slurm.sh FILE [KEY=VALUE ...]
# Set STSSL_VENV to the folder of the virtual environment (on a disk that all nodes share) that has stssl.
#SBATCH --job-name=stssl
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=4
#SBATCH --cpus-per-task=32
#SBATCH --requeue
set -euo pipefail

if [ "$#" -lt 1 ]; then
  echo "usage: sbatch --nodes=N cluster/slurm.sh FILE [KEY=VALUE ...]" >&2
  exit 2
fi
if [ ! -r "$1" ]; then
  echo "cannot read $1: give a recipe or sweep file" >&2
  exit 2
fi
if [ -n "${STSSL_VENV:-}" ]; then
  export PATH="$STSSL_VENV/bin:$PATH"
fi

# The same rule as `stssl submit`: what a file is for shows in its keys, or in those of the file that is its base.
command=train
file="$1"
for _ in 1 2 3 4 5 6 7 8; do
  base="$(sed -n "s/^base:[[:space:]]*[\"']\{0,1\}\([^\"'#]*[^\"'#[:space:]]\).*/\1/p" "$file")"
  if grep -q '^search:' "$file"; then
    command=sweep
  elif grep -q '^pretext:' "$file"; then
    command=pretrain
  fi
  case "$base" in
    "") break ;;
    /*) file="$base" ;;
    *) file="$(dirname "$file")/$base" ;;
  esac
  if [ "$command" != train ] || [ ! -r "$file" ]; then
    break
  fi
done

nodes="${SLURM_JOB_NUM_NODES:?start this with sbatch}"
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
address="${head_node}:$((20000 + SLURM_JOB_ID % 10000))"

# One token for this job only: nodes and clients without it are refused.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export RAY_TMPDIR="/tmp/stssl-$SLURM_JOB_ID"
RAY_AUTH_TOKEN="$(python3 -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_TOKEN

# symmetric-run starts Ray on every node, runs the command on the first once all are there, and stops Ray after it. It
# returns 0 when Ray itself does not start, so the command leaves a mark that it ran.
mark="$PWD/.stssl-$SLURM_JOB_ID"
rm -f "$mark"
trap 'rm -f "$mark"' EXIT
# shellcheck disable=SC2016
srun --nodes="$nodes" --ntasks="$nodes" \
  ray symmetric-run --address "$address" --min-nodes "$nodes" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" -- \
  sh -c ': > "$1"; export RAY_ADDRESS="$2"; shift 2; exec stssl "$@"' start "$mark" "$address" "$command" "$@"
if [ ! -e "$mark" ]; then
  echo "Ray did not start on all $nodes nodes; nothing was run" >&2
  exit 1
fi
