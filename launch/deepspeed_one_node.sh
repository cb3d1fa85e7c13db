#!/usr/bin/env bash
# Train on the GPUs of this machine under the deepspeed launcher.
#
#   launch/deepspeed_one_node.sh CONFIG [key=value ...] [--resume auto]
#
# RANKS        processes to start, as many as the topology has ranks; default: the number of GPUs
# MASTER_PORT  default 29500; a second run on the machine needs another one
# PYTHON       the interpreter that has mrpo-ds; default python
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 CONFIG [key=value ...] [--resume auto]" >&2
    exit 2
fi
ranks=${RANKS:-$(nvidia-smi --list-gpus 2> /dev/null | wc -l || true)}
if ((ranks == 0)); then
    echo "$0: no GPU is seen here; set RANKS to the number of processes" >&2
    exit 2
fi
exec "${PYTHON:-python}" -m deepspeed.launcher.runner --num_gpus "$ranks" --master_port "${MASTER_PORT:-29500}" \
    --module mrpo_ds train "$@"
