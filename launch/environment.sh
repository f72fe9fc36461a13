# Finds or makes the Python environment of the other scripts; they source it and call `prepare`.
#
# An active virtual environment is used as it is; else `.venv` beside the code is made once. What
# was installed is remembered beside it, so that a second start costs nothing. With SEG_JAX_PREPARED
# in the environment nothing is installed, as in an image that has all of it.
# shellcheck shell=bash
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    printf 'launch: %s\n' "$*" >&2
    exit 1
}

dry=""

# for_dry_run ARGUMENT: remembers that nothing is to be done if the argument is --dry-run.
for_dry_run() {
    [[ "$1" == "--dry-run" ]] && dry=1
}

# run COMMAND...: runs a command; in a dry run it prints it instead.
run() {
    if [[ -z "$dry" ]]; then
        "$@"
        return
    fi
    printf '%q ' "$@"
    printf '\n'
}

# Prints what this machine computes with: tpu, cuda or cpu.
accelerator() {
    if compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        echo tpu
    elif [[ -e /dev/nvidiactl ]]; then
        echo cuda
    else
        echo cpu
    fi
}

# Prints the first Python on the path that is new enough.
python_command() {
    local name found=""
    for name in python3 python3.13 python3.12 python3.11 python; do
        command -v "$name" >/dev/null || continue
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$name"
            return
        fi
        found="${found:-$("$name" --version 2>&1)}"
    done
    fail "expected Python 3.11 or newer, got ${found:-none}, do: install Python 3.11 to 3.13" \
        "(Debian: apt-get install python3 python3-venv)"
}

# prepare EXTRAS: the package with these extras is installed and its programs are on the path.
prepare() {
    local extras="$1" environment python stamp wanted
    [[ -z "${SEG_JAX_PREPARED:-}" ]] || return 0
    environment="${VIRTUAL_ENV:-}"
    [[ -x "$environment/bin/python" ]] || environment="$root/.venv"
    if [[ ! -x "$environment/bin/python" ]]; then
        python="$(python_command)"
        printf 'launch: making %s\n' "$environment" >&2
        if ! "$python" -m venv "$environment"; then
            rm -rf "$environment"
            fail "expected a Python that can make virtual environments," \
                "do: apt-get install python3-venv"
        fi
        # The one that comes with Python would do; a new one installs in half the time.
        "$environment/bin/python" -m pip install --quiet --upgrade pip || true
    fi
    python="$environment/bin/python"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "expected Python 3.11 or newer in $environment, got $("$python" --version)," \
            "do: remove or leave this environment and start again"
    stamp="$environment/.seg-jax-${extras//,/-}"
    wanted="$root $("$python" --version) $(cksum <"$root/pyproject.toml")"
    if [[ ! -f "$stamp" || "$(<"$stamp")" != "$wanted" ]]; then
        printf 'launch: installing seg-jax[%s]; this takes some minutes, once\n' "$extras" >&2
        export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
        (cd "$root" && "$python" -m pip install --quiet --editable ".[$extras]") ||
            fail "the installation failed, see above, do: check the network and start again"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    export VIRTUAL_ENV="$environment" PATH="$environment/bin:$PATH"
}

# prepare_for KIND: the package is installed with what an `accelerator` needs.
prepare_for() {
    local extras="train"
    [[ "$1" == cpu ]] || extras="train,$1"
    prepare "$extras"
}
