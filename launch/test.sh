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

# checked_meanwhile: tells what a check has found that began in the background.
checked_meanwhile() {
    local status=0
    wait "$meanwhile" || status=$?
    meanwhile=""
    cat "$found"
    return "$status"
}

# browser: Debian's chromium for the tests of the page, which are skipped without it.
browser() {
    command -v chromium >/dev/null && return
    if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium && return
    fi >/dev/null 2>&1
    printf 'launch: no chromium, tests of the page are skipped, do: apt-get install chromium\n' >&2
}

chosen=()
if [[ "${1:-}" == "--quick" ]]; then
    chosen=(-m "not slow")
    shift
fi

# Bytecode of all that is installed takes longer to make than of what is imported, which is kept (an
# option of pip that says no is turned on by a false value).
export PIP_NO_COMPILE=no
unset PYTHONDONTWRITEBYTECODE
prepare test
browser
cd "$root"
workers="$(nproc)"
found="$(mktemp)"
meanwhile=""
trap 'kill "$meanwhile" 2>/dev/null || true; rm -f "$found"' EXIT
step format ruff format --check .
step lint ruff check .
step floors lint-imports --no-cache
# One core is enough for it, and tests wait now and then.
pyright >"$found" 2>&1 &
meanwhile=$!
step tests python -m pytest --numprocesses "$((workers < 8 ? workers : 8))" --dist loadfile \
    --no-loadscope-reorder --durations 10 --durations-min 10 \
    "${chosen[@]}" "$@"
step types checked_meanwhile

((${#failed[@]} == 0)) || fail "failed: ${failed[*]}"
