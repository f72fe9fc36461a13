#!/usr/bin/env bash
# Trains a small model from nothing and reports: bash launch/quickstart.sh [--minutes N] [--seed N] ...
#
# Installs the package where needed (with CUDA where there is an NVIDIA driver), then hands all its
# arguments to `seg-jax quickstart`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

extras="train"
[[ -e /dev/nvidiactl ]] && extras="train,cuda"
prepare "$extras"
exec seg-jax quickstart "$@"
