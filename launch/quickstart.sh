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
# Small arrays by the thousand: an allocator that gives pages back at once costs a tenth of the time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000:glibc.malloc.arena_max=1}"
exec seg-jax quickstart "$@"
