#!/usr/bin/env bash
# A run on several machines without a scheduler: this command on each of them, with its own NODE, 0 on the first.
#
#   NODES=2 NODE=0 HEAD=10.0.0.1 conf/launch/torchrun.sh --config conf/real/run.yaml --with sd35_large 8x80gb
#   NODES=2 NODE=1 HEAD=10.0.0.1 conf/launch/torchrun.sh --config conf/real/run.yaml --with sd35_large 8x80gb
#
# Options are those of `uae run`; CARDS (8) are the cards of each machine, PORT (29500) and the one above it are free on
# the first, whose address HEAD is. The folder of the run, its data and weights lie where all machines see them. The
# same commands with --resume go on after a stop.
# Hardware: as the YAML says, times the number of machines. The tests run two node ranks on one machine, on CPUs.
set -euo pipefail

exec torchrun --nnodes="${NODES:?how many machines}" --node-rank="${NODE:?which one this is, from 0}" \
  --nproc-per-node="${CARDS:-8}" --master-addr="${HEAD:?address of the first}" --master-port="${PORT:-29500}" \
  --no-python uae run "$@" --trainer.num_nodes="$NODES" --trainer.devices="${CARDS:-8}"
