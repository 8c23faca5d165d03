#!/usr/bin/env bash
# Lets every call of a run that writes fail once, and checks that nothing is lost.
#
#     scripts/disk_faults.sh              all of some 1,250 calls: half an hour or more
#     scripts/disk_faults.sh --calls 60   a sample (--seed chooses which)
#     scripts/disk_faults.sh --kill ...   kills there instead, and starts again
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/training" exec python tests/training/disk_faults.py "$@"
