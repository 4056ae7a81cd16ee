#!/usr/bin/env bash
# A run on machines of a SLURM cluster, one task for each card; goes on by itself where its time ends.
#
#   sbatch --nodes 2 conf/launch/slurm.sh --config conf/real/run.yaml --with sd35_large 8x80gb
#
# Options are those of `uae run`; `--nodes` and the lines below are sbatch's. The folder of the run, its data and weights
# lie where all machines see them. Five minutes before its time is over SLURM sends USR1 to this script, which ends the
# run as Ctrl-C would and puts the job back into the queue; `--resume` goes on from the last checkpoint
# (checkpoint.every_n_train_steps).
# Hardware: as the YAML says, times the number of machines. Not run on a cluster yet: a test runs it with a stand-in for
# srun and scontrol.
#
#SBATCH --job-name=uae
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail

again() {
  kill -TERM "$child"
  wait "$child" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again USR1

srun --kill-on-bad-exit=1 uae run "$@" --resume \
  --trainer.num_nodes="$SLURM_NNODES" --trainer.devices="$SLURM_NTASKS_PER_NODE" &
child=$!
wait "$child"
