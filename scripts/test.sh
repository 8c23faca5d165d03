#!/usr/bin/env bash
# Lint, types, import layers and all tests, from a fresh checkout.
#
#   scripts/test.sh                     everything but tests/peers
#   scripts/test.sh --peers             also those, against torch and transformers
#   scripts/test.sh -m 'not slow'       further arguments go to pytest
#
# pip takes torch's CPU build where it finds one (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL);
# the one with CUDA does as well, but is some gigabytes larger.

set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh
extras=test
if [ "${1:-}" = --peers ]; then
  extras=test,peers
  shift
fi
install "$extras"
if [ "$extras" = test,peers ]; then
  # Tests skip what cannot be imported; here nothing may be missing.
  .venv/bin/python -c 'import torch, transformers'
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports --no-logo
# Whole files to a worker: their tests share models and programs.
.venv/bin/python -m pytest -n 2 --dist loadfile "$@"
