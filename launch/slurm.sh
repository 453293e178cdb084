#!/usr/bin/env bash
# A training on a SLURM cluster with GPUs, one process for each GPU:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --time=24:00:00 launch/slurm.sh \
#     --config=configs/stunet.py:if_m --config.init_from=weights/if_m --workdir=runs/if_m
#
# All flags after the script are those of `python -m lumiere_jax.train`; the workdir must be on a file system that all
# nodes share. Five minutes before the time limit, and when the job is pre-empted, SLURM sends SIGTERM: the run saves and
# ends, and the job is put back into the queue until the training is done. `PYTHON` names the interpreter (default:
# .venv/bin/python); submit from the checkout's directory.
#SBATCH --job-name=lumiere
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

if [[ $# -eq 0 ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
export LUMIERE_DISTRIBUTED=1 PYTHONUNBUFFERED=1
said=$(mktemp)
trap 'rm -f "$said"' EXIT
# Without `exec`: the batch shell itself gets no SIGTERM from --signal, and must see how the run ended.
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m lumiere_jax.train "$@" | tee "$said"
if grep -q 'The same command continues it' "$said"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
