#!/usr/bin/env bash
# Runs a program on a Cloud TPU pod: bash launch/tpu_vm.sh [--dry-run] NAME TYPE ZONE PROGRAM ...
#
#   bash launch/tpu_vm.sh pod v5litepod-256 us-west4-a finetune configs/simpleseg/qwen25_vl_7b_sft.py
#
# Asks for the pod as a queued resource, waits for it, brings the committed code to all workers and
# starts the program on all of them. In the environment: RUNTIME (v2-alpha-tpuv5-lite), SPOT (1 asks
# for spot capacity), SHARE (HOST:/PATH, an NFS share such as Filestore, mounted at ~/runs on every
# worker: the run's folder must be shared; --out runs/NAME is given; compiled programs are kept in
# ~/runs/.compiled). The same command again goes on where the run was. What it asked for costs money
# until it is deleted; the last line says how.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for_dry_run "${1:-}" && shift
(($# > 3)) || fail "expected NAME TYPE ZONE PROGRAM, got '$*'," \
    "do: bash launch/tpu_vm.sh pod v5litepod-256 us-west4-a finetune CONFIG"
name="$1" type="$2" zone="$3"
shift 3
[[ "$name" =~ ^[a-z][a-z0-9-]*$ ]] || fail "expected a name of a-z, 0-9 and -, got '$name'"
[[ -n "$dry" ]] || command -v gcloud >/dev/null ||
    fail "expected gcloud, got none, do: install the Google Cloud CLI and run gcloud auth login"

tpus=(gcloud compute tpus)
state() { "${tpus[@]}" queued-resources describe "$name" --zone "$zone" --format 'value(state.state)' 2>/dev/null; }

spot=()
[[ -z "${SPOT:-}" ]] || spot=(--spot)
if [[ -n "$dry" || -z "$(state)" ]]; then
    run "${tpus[@]}" queued-resources create "$name" --node-id "$name" --zone "$zone" \
        --accelerator-type "$type" --runtime-version "${RUNTIME:-v2-alpha-tpuv5-lite}" "${spot[@]}"
fi
until [[ -n "$dry" || "$(state)" == ACTIVE ]]; do
    case "$(state)" in
    FAILED | SUSPENDED) fail "the queued resource $name is $(state), do: delete it and ask again" ;;
    esac
    printf 'launch: %s is %s\n' "$name" "$(state)" >&2
    sleep 30
done

archive="$(mktemp -d)/seg-jax.tgz"
trap 'rm -rf "$(dirname "$archive")"' EXIT
run git -C "$root" archive --format tgz --output "$archive" HEAD
run "${tpus[@]}" tpu-vm scp "$archive" "$name:seg-jax.tgz" --worker all --zone "$zone"
mount=""
[[ -z "${SHARE:-}" ]] || mount="mkdir -p runs && { mountpoint -q runs || sudo mount -t nfs $(printf %q "$SHARE") runs; } && ln -sfn ~/runs seg-jax/runs && export JAX_COMPILATION_CACHE_DIR=~/runs/.compiled && "
program="$(printf '%q ' "$@" --out "runs/$name" --resume)"
run "${tpus[@]}" tpu-vm ssh "$name" --worker all --zone "$zone" --command \
    "mkdir -p seg-jax && tar xzf seg-jax.tgz -C seg-jax && ${mount}bash seg-jax/launch/run.sh $program"
printf 'launch: delete it with: gcloud compute tpus queued-resources delete %s --zone %s --force\n' \
    "$name" "$zone" >&2
