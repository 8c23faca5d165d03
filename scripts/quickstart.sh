#!/usr/bin/env bash
# UL2 from nothing: install, tokenize the documentation inside Python, pre-train a tiny
# model on the full seven-denoiser mixture, stop and resume, score held-out text per
# denoiser, fill a blank. Runs again in seconds: what is done is not done twice.
#
#   scripts/quickstart.sh                  encoder-decoder
#   scripts/quickstart.sh --decoder_only   the same objective, the other architecture

set -euo pipefail
cd "$(dirname "$0")/.."

model=enc_dec_tiny
case "${1:-}" in
  "") ;;
  --decoder_only) model=dec_only_tiny ;;
  *) echo "usage: scripts/quickstart.sh [--decoder_only]" >&2; exit 2 ;;
esac
store=stores/embedded
run=runs/quickstart_$model
half=200
steps=400

say() { printf '\n== %s\n' "$*"; }
ul2() { .venv/bin/ul2 "$@"; }

say "install"
source scripts/install.sh
install files
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv/jax_cache}

say "tokenize the documentation inside Python"
[ -e $store ] || ul2 tokenize --text embedded --train_vocab 4096 --held_out 0.05 --out $store

recipe=(
  --gin_file=configs/models/$model.gin
  --gin_file=configs/objectives/ul2.gin
  --gin_file=configs/runs/quickstart.gin
  --gin.DATA=$store
  --gin.MODEL_DIR=$run
)

say "check what this recipe will really do"
ul2 check "${recipe[@]}" --gin.TOTAL_STEPS=$steps

say "pre-train $half updates, and stop"
[ -e $run/checkpoints/$half ] || ul2 train "${recipe[@]}" --gin.TOTAL_STEPS=$half

say "resume where it stopped, up to update $steps"
ul2 train "${recipe[@]}" --gin.TOTAL_STEPS=$steps

say "fill a blank"
ul2 infer --checkpoint $run --mode R --max_tokens 16 \
  --text 'Return a new ___ from the given arguments.'
