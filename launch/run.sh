#!/usr/bin/env bash
# Runs a program on this host as a member of its pod: bash launch/run.sh [--dry-run] PROGRAM ...
#
# The other scripts start it on every host. It installs the package with what the machine has (TPU,
# NVIDIA GPU or neither). The program finds the other processes by itself, as `processes` in
# `seg-jax finetune --help` says. Set before, these hold:
#   LIBTPU_INIT_ARGS  of TPUs: collectives of weights and gradients run beside products
#   XLA_FLAGS         of GPUs: work is ordered so that collectives run beside it
#   JAX_COMPILATION_CACHE_DIR  folder of compiled programs for the next start, of this host
#     (~/.cache/seg-jax/compiled) unless told; only the first process writes there: the other hosts
#     of a pod find them if all share the folder
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for_dry_run "${1:-}" && shift
(($# > 0)) || fail "expected a program, as: bash launch/run.sh finetune configs/simpleseg/tiny_sft.py"

kind="$(accelerator)"
case "$kind" in
tpu)
    # As MaxText sets them: gathers of the next layer's weights run beside this layer's products.
    : "${LIBTPU_INIT_ARGS:=--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true \
--xla_enable_async_all_gather=true \
--xla_tpu_enable_data_parallel_all_reduce_opt=true \
--xla_tpu_data_parallel_opt_different_sized_ops=true}"
    export LIBTPU_INIT_ARGS
    ;;
cuda) export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}" ;;
esac
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/seg-jax/compiled}"
if [[ -n "$dry" ]]; then
    printf 'env JAX_COMPILATION_CACHE_DIR=%q LIBTPU_INIT_ARGS=%q XLA_FLAGS=%q ' \
        "$JAX_COMPILATION_CACHE_DIR" "${LIBTPU_INIT_ARGS:-}" "${XLA_FLAGS:-}"
else
    prepare_for "$kind"
fi
cd "$root"
run exec seg-jax "$@"
