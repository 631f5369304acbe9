#!/usr/bin/env bash
# Train a recipe on Slurm nodes:  sbatch --nodes=4 cluster/slurm.sh RECIPE [KEY=VALUE ...]
#SBATCH --job-name=stssl
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=4
#SBATCH --cpus-per-task=32
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

if [ "$#" -lt 1 ]; then
  echo "usage: sbatch --nodes=N cluster/slurm.sh RECIPE [KEY=VALUE ...]" >&2
  exit 2
fi

nodes="${SLURM_JOB_NUM_NODES:?start this with sbatch}"
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
port="$((20000 + SLURM_JOB_ID % 10000))"

# One token for this job only: nodes and clients without it are refused.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN="$(python3 -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_TOKEN

# Starts Ray on every node, runs the command on the first once all are there, and stops Ray after it.
# A requeued job goes on from the run's last checkpoint.
exec srun --nodes="$nodes" --ntasks="$nodes" \
  ray symmetric-run --address "${head_node}:${port}" --min-nodes "$nodes" -- \
  stssl train "$@" launch.address=auto
