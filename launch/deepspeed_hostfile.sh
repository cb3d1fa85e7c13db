#!/usr/bin/env bash
# Train on several machines under the deepspeed launcher, which starts the processes over pdsh and ssh.
#
#   launch/deepspeed_hostfile.sh CONFIG [key=value ...] [--resume auto]
#
# HOSTFILE     a line "host slots=8" per machine; ranks are numbered in this order, so the policy comes first.
#              The slots together are as many as the topology has ranks. Default: ./hostfile
# MASTER_ADDR  how the others reach the first machine; default: its name in the hostfile
# MASTER_PORT  default 29500
# SSH_PORT     default: that of ssh's configuration
# OPTIONS      more options for deepspeed, apart by spaces: "--no_ssh_check --launcher openmpi"
# PYTHON       the interpreter that has mrpo-ds, at the same path on every machine; default python
#
# Every machine needs this directory at the same path, and an sshd that lets you in without a password. Variables that
# the processes need (HF_HOME, OMP_NUM_THREADS, ...) go into ./.deepspeed_env, one NAME=value a line: of this shell
# only PYTHON*, NCCL* and the like reach the other machines. MRPO_DS_TOKEN belongs there too (docs/security.md).
set -euo pipefail

hostfile=${HOSTFILE:-hostfile}
if (($# == 0)); then
    echo "usage: HOSTFILE=file $0 CONFIG [key=value ...] [--resume auto]" >&2
    exit 2
fi
if [[ ! -r $hostfile ]]; then # deepspeed itself would go on with this machine alone
    echo "$0: HOSTFILE is '$hostfile', which cannot be read; write a line 'host slots=8' per machine into it" >&2
    exit 2
fi
first=$(awk '!/^[[:space:]]*(#|$)/ { print $1; exit }' "$hostfile")
options=(--hostfile "$hostfile" --master_addr "${MASTER_ADDR:-$first}" --master_port "${MASTER_PORT:-29500}")
if [[ -n ${SSH_PORT:-} ]]; then options+=(--ssh_port "$SSH_PORT"); fi
read -ra more <<< "${OPTIONS:-}"
exec "${PYTHON:-python}" -m deepspeed.launcher.runner --launcher pdsh "${options[@]}" "${more[@]}" \
    --module mrpo_ds train "$@"
