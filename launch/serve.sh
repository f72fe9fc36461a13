#!/usr/bin/env bash
# Serves a model, a page included: bash launch/serve.sh [--checkpoint DIR] [--port 8000] ...
#
# Installs the package where needed (with CUDA where there is an NVIDIA driver), then hands all its
# arguments to `seg-jax serve`. With --dry-run first it prints the command only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for_dry_run "${1:-}" && shift
extras="serve"
[[ -e /dev/nvidiactl ]] && extras="serve,cuda"
[[ -n "$dry" ]] || prepare "$extras"
# What one start has compiled the next one finds.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/seg-jax/compiled}"
run exec seg-jax serve "$@"
