#!/usr/bin/env bash
# Runs a program as several processes of this machine: bash launch/local_processes.sh [--dry-run] N PROGRAM ...
#
# With NVIDIA GPUs each process gets one; else each has DEVICES (1) virtual CPU devices, and they
# speak by gloo. Ctrl-C and SIGTERM reach all: they save and end. The exit status is that of the
# first process that failed by itself, 75 where one was lost, 0 if all is well. For example
#   bash launch/local_processes.sh 2 finetune configs/simpleseg/tiny_sft.py --loop.steps 20
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for_dry_run "${1:-}" && shift
count="${1:-}"
[[ "$count" =~ ^[1-9][0-9]*$ && $# -gt 1 ]] ||
    fail "expected a number of processes and a program, got '$*'," \
        "do: bash launch/local_processes.sh 2 finetune configs/simpleseg/tiny_sft.py"
shift
# Any port that nobody listens on.
port="${PORT:-$((20000 + RANDOM % 20000))}"
kind="$(accelerator)"
[[ -n "$dry" ]] || prepare_for "$kind"

pids=()
trap 'for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done' TERM
trap : INT # The terminal tells them all.
for ((index = 0; index < count; index++)); do
    # The last flag of a name counts.
    flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=${DEVICES:-1}"
    own=(JAX_PLATFORMS=cpu "XLA_FLAGS=$flags")
    [[ "$kind" != cuda ]] || own=("CUDA_VISIBLE_DEVICES=$index")
    command=(env "${own[@]}" bash "$root/launch/run.sh" "$@"
        --processes.coordinator "localhost:$port" --processes.count "$count" --processes.index "$index")
    if [[ -n "$dry" ]]; then
        run "${command[@]}"
    else
        "${command[@]}" &
        pids+=("$!")
    fi
done

status=0
for pid in "${pids[@]}"; do
    ended=0
    wait "$pid" || ended=$?
    # A trapped signal ends `wait` early, not the process.
    while kill -0 "$pid" 2>/dev/null; do
        ended=0
        wait "$pid" || ended=$?
    done
    ((ended == 0 || (status != 0 && status != 75))) || status=$ended
done
exit "$status"
