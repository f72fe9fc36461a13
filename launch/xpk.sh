#!/usr/bin/env bash
# Runs a program on a GKE cluster by xpk: bash launch/xpk.sh [--dry-run] CLUSTER NAME TYPE PROGRAM ...
#
#   PROJECT=p ZONE=us-west4-a bash launch/xpk.sh cluster sft v5litepod-256 finetune configs/simpleseg/qwen25_vl_7b_sft.py --out /runs/sft
#
# In the environment: PROJECT and ZONE of the cluster, SLICES (1), IMAGE (an image with Python 3.11
# or newer, python:3.12 unless told; the repository is laid over it and installed when it starts),
# COMPILED (a folder of compiled programs that all hosts share, as /runs/.compiled).
# --out lies on a volume that all hosts share; --resume is always given, so a restart goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for_dry_run "${1:-}" && shift
(($# > 3)) || fail "expected CLUSTER NAME TYPE PROGRAM, got '$*'," \
    "do: bash launch/xpk.sh cluster sft v5litepod-256 finetune CONFIG --out /runs/sft"
cluster="$1" name="$2" type="$3"
shift 3
[[ -n "${PROJECT:-}" && -n "${ZONE:-}" ]] ||
    fail "expected PROJECT and ZONE of the cluster in the environment," \
        "got '${PROJECT:-}' and '${ZONE:-}', do: PROJECT=p ZONE=z bash launch/xpk.sh .."
[[ -n "$dry" ]] || command -v xpk >/dev/null || fail "expected xpk, got none, do: pip install xpk"

program="$(printf '%q ' "$@" --resume)"
run xpk workload create --cluster "$cluster" --workload "$name" --tpu-type "$type" \
    --num-slices "${SLICES:-1}" --project "$PROJECT" --zone "$ZONE" \
    --base-docker-image "${IMAGE:-python:3.12}" --script-dir "$root" \
    --command "${COMPILED:+JAX_COMPILATION_CACHE_DIR=$(printf %q "$COMPILED") }bash launch/run.sh $program"
