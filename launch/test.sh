#!/usr/bin/env bash
# Checks everything, as CI does: bash launch/test.sh [--quick] [arguments of pytest ...]
#
# Format, lint, floors (imports), types, then all tests; --quick leaves the slow tests out. PyTorch,
# the reference of the parity tests, comes in its small build with
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

failed=()

# step NAME COMMAND...: runs a check, goes on if it fails; Ctrl-C ends all.
step() {
    local name="$1" start=$SECONDS status=0
    shift
    printf '\n== %s\n' "$name"
    "$@" || status=$?
    ((status < 128)) || exit "$status"
    ((status == 0)) || failed+=("$name")
    printf '== %s: %s in %s s\n' "$name" "$( ((status)) && echo failed || echo passed)" \
        "$((SECONDS - start))"
}

chosen=()
if [[ "${1:-}" == "--quick" ]]; then
    chosen=(-m "not slow")
    shift
fi

prepare test
cd "$root"
workers="$(nproc)"
step format ruff format --check .
step lint ruff check .
step floors lint-imports --no-cache
step types pyright
step tests python -m pytest --numprocesses "$((workers < 8 ? workers : 8))" --dist loadfile \
    --no-loadscope-reorder --durations 10 --durations-min 10 \
    "${chosen[@]}" "$@"

((${#failed[@]} == 0)) || fail "failed: ${failed[*]}"
