#!/usr/bin/env bash
# SIGKILL at random instants of training, tokenizing, answering and converting; what comes
# out in the end has to be, bit by bit, what comes out undisturbed. See scripts/chaos.py.
#
#   scripts/chaos.sh                       60 kills: half an hour on two cores
#   scripts/chaos.sh --kills 8 --seed 3 --commands train,infer
#   scripts/chaos.sh --seconds 600         no kill after ten minutes
#   scripts/chaos.sh --keep                keep all files

set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh
install files
exec .venv/bin/python scripts/chaos.py "$@"
