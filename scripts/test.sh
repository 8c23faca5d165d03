#!/usr/bin/env bash
# Lint, types, import layers and all tests, from a fresh checkout.
#
#   scripts/test.sh                     everything
#   scripts/test.sh -m 'not slow'       further arguments go to pytest

set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh
install test

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports --no-logo
.venv/bin/python -m pytest "$@"
