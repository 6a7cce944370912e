#!/usr/bin/env bash
# The part of the suite for a machine with JAX, one GPU and no TensorFlow: about four minutes.
#
#   tests/gpu.sh [PYTEST-ARGUMENTS...]     PYTHON: an interpreter with kgarden's JAX and test dependencies
#
# First with TF32, as networks run by default: geometry, targets and losses at their usual tolerances, parts
# with convolutions at the second one of tests/support/golden.py. Then whole models in true float32, because
# a rounded score may decide differently.
set -u -o pipefail
cd "$(dirname "$0")/.."
export KERAS_BACKEND=jax PYTHONPATH=$PWD XLA_PYTHON_CLIENT_PREALLOCATE=false
export XLA_FLAGS=${XLA_FLAGS:-} # those of tests/conftest.py compile quickly for CPUs, and slow kernels down
unset JAX_PLATFORMS
pytest=("${PYTHON:-python3}" -m pytest -q --durations=10 "$@")

"${PYTHON:-python3}" - <<'PYTHON' || exit 2
import sys, jax

sys.exit(None if jax.default_backend() == "gpu" else f"JAX finds no GPU: {jax.devices()}")
PYTHON

failed=0
"${pytest[@]}" tests/ops tests/targets tests/losses tests/layers tests/necks tests/backbones || failed=1
JAX_DEFAULT_MATMUL_PRECISION=highest "${pytest[@]}" -k golden tests/models || failed=1
exit $failed
