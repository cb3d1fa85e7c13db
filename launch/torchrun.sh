#!/usr/bin/env bash
# Train under torchrun, on one machine or on several.
#
#   launch/torchrun.sh CONFIG [key=value ...] [--resume auto]
#
# On several machines run the same command on each of them, with NODES, NODE_RANK and MASTER_ADDR set:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=node1 launch/torchrun.sh CONFIG      on node1
#   NODES=2 NODE_RANK=1 MASTER_ADDR=node1 launch/torchrun.sh CONFIG      on node2
#
# RANKS        processes on each machine; default: the number of its GPUs
# NODES        machines, default 1; NODES x RANKS is what the topology has
# NODE_RANK    which of them this is, 0 for the first, where the policy begins; default 0
# MASTER_ADDR  how the others reach the first machine; default 127.0.0.1, for one machine
# MASTER_PORT  default 29500; a second run on a machine needs another one
# PYTHON       the interpreter that has mrpo-ds; default python
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 CONFIG [key=value ...] [--resume auto]" >&2
    exit 2
fi
nodes=${NODES:-1}
if ((nodes > 1)) && [[ -z ${MASTER_ADDR:-} || -z ${NODE_RANK:-} ]]; then
    echo "$0: NODES is $nodes, so MASTER_ADDR (the first machine) and NODE_RANK (0 to $((nodes - 1))) must be set" >&2
    exit 2
fi
ranks=${RANKS:-$(nvidia-smi --list-gpus 2> /dev/null | wc -l || true)}
if ((ranks == 0)); then
    echo "$0: no GPU is seen here; set RANKS to the number of processes" >&2
    exit 2
fi
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "$nodes" --node_rank "${NODE_RANK:-0}" \
    --nproc_per_node "$ranks" --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
    -m mrpo_ds train "$@"
