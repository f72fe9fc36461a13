#!/usr/bin/env bash
# Fine-tunes and reinforces a small model and reports: bash launch/quickstart.sh [--minutes N] [--seed N] ...
#
# Installs the package where needed (with CUDA where there is an NVIDIA driver), then hands all its
# arguments to `seg-jax quickstart`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

extras="train"
[[ -e /dev/nvidiactl ]] && extras="train,cuda"
prepare "$extras"
# Larger pages of memory, where glibc may ask for them; seg_jax/cli/host_memory.py does the rest.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec seg-jax quickstart "$@"
