#!/usr/bin/env bash
# The UL2 paper's ablation: six objectives in two architectures, pre-trained alike on the
# same text, scored on held-out text, and on a task, fine-tuned and from one example.
# Writes OUT/ablation.md and OUT/ablation.json. Runs again where it stopped; what is done
# is not done twice. The toy takes about an hour on two cores, half of it with STEPS=100
# FINETUNE_STEPS=60 (benchmarks/ablation_2026-11.md).
#
#   scripts/ablation.sh                           toy scale: the text inside Python
#   SIZE=base STEPS=500000 DATA=stores/c4 TASK=superglue scripts/ablation.sh
#
#   SIZE              tiny | small | base | ...: configs/models/{enc_dec,dec_only}_SIZE.gin
#   STEPS             updates of pre-training
#   FINETUNE_STEPS    updates of fine-tuning
#   TASK              a task or mixture of `ul2 eval`
#   MODULE            the Python module that registers it, where ul2 does not
#   OBJECTIVES        some of: causal_lm prefix_lm span_corruption sclm unilm ul2
#   ARCHITECTURES     some of: enc_dec dec_only
#   DATA              a token store, made from the embedded text if it is not there
#   LIMIT             examples of the task that are scored
#   OUT               where everything goes
#   UL2               the command, where it is installed already

set -euo pipefail
cd "$(dirname "$0")/.."

SIZE=${SIZE:-tiny}
STEPS=${STEPS:-200}
FINETUNE_STEPS=${FINETUNE_STEPS:-100}
TASK=${TASK:-docstring_to_name}
MODULE=${MODULE-ul2.tasks.code_names}
OBJECTIVES=${OBJECTIVES:-causal_lm prefix_lm span_corruption sclm unilm ul2}
ARCHITECTURES=${ARCHITECTURES:-enc_dec dec_only}
DATA=${DATA:-stores/embedded}
LIMIT=${LIMIT:-200}
OUT=${OUT:-runs/ablation_$SIZE}

say() { printf '\n== %s\n' "$*"; }
if [ -z "${UL2:-}" ]; then
  say "install"
  source scripts/install.sh
  install files
  UL2=$PWD/.venv/bin/ul2
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv/jax_cache}
fi
ul2() { "$UL2" "$@"; }
# A toy fits two CPU cores; any other size is the paper's, or the mesh file's, to choose.
sizes=() batches=() finetune_batches=()
if [ "$SIZE" = tiny ]; then
  sizes=(--gin.INPUTS_LENGTH=128 --gin.LOG_EVERY_STEPS=20)
  batches=(--gin.TARGETS_LENGTH=128 --gin.BATCH_SIZE=56 --gin.EVAL_BATCHES=4)
  finetune_batches=(--gin.TARGETS_LENGTH=32 --gin.BATCH_SIZE=32 --gin.EVAL_BATCHES=4)
fi

module=()
[ -z "$MODULE" ] || module=(--import_module="$MODULE")

say "tokenize"
[ -e "$DATA" ] || ul2 tokenize --text embedded --train_vocab 4096 --held_out 0.05 --out "$DATA"

# UL2 is asked in the mode that suits writing; the others know none.
mode_of() { if [ "$1" = ul2 ]; then echo S; else echo none; fi; }

for architecture in $ARCHITECTURES; do
  for objective in $OBJECTIVES; do
    name=${architecture}_$objective
    say "$name"
    model=configs/models/${architecture}_$SIZE.gin
    if [ ! -e "$OUT/pretrained/$name/checkpoints/$STEPS" ]; then
      ul2 train --gin_file="$model" --gin_file="configs/objectives/$objective.gin" \
        --gin_file=configs/runs/ablation.gin "${sizes[@]}" "${batches[@]}" \
        --gin.DATA="$DATA" --gin.TOTAL_STEPS="$STEPS" --gin.EVAL_EVERY_STEPS="$STEPS" \
        --gin.MODEL_DIR="$OUT/pretrained/$name"
    fi
    if [ ! -e "$OUT/finetuned/$name/checkpoints/$FINETUNE_STEPS" ]; then
      mode=$(mode_of "$objective")
      ul2 train "${module[@]}" --gin_file=configs/runs/finetune.gin "${sizes[@]}" "${finetune_batches[@]}" \
        --gin.TASK="$TASK" --gin.MODE="${mode/none/None}" \
        --gin.EXAMPLES_DIR="$OUT/examples" \
        --gin.INITIAL_CHECKPOINT="$OUT/pretrained/$name" \
        --gin.TOTAL_STEPS="$FINETUNE_STEPS" --gin.EVAL_EVERY_STEPS="$FINETUNE_STEPS" \
        --gin.MODEL_DIR="$OUT/finetuned/$name"
    fi
  done
done

# Each way of scoring is one process per mode, over all models that are asked in it.
evaluate() { # NAME STAGE MODE FLAGS; of the models whose mode that is
  local out=$1 stage=$2 mode=$3 checkpoints=()
  shift 3
  for architecture in $ARCHITECTURES; do
    for objective in $OBJECTIVES; do
      if [ "$(mode_of "$objective")" = "$mode" ]; then
        checkpoints+=(--checkpoint "$OUT/$stage/${architecture}_$objective")
      fi
    done
  done
  if [ ${#checkpoints[@]} -gt 0 ]; then
    say "$out, mode $mode"
    ul2 eval "${checkpoints[@]}" --out "$OUT/eval/$out" "$@"
  fi
}
text=(--data "$DATA" --gin_file=configs/objectives/ul2.gin)
task=("${module[@]}" --task "$TASK" --limit "$LIMIT")
evaluate text pretrained none "${text[@]}" --mode none
evaluate text pretrained S "${text[@]}" --mode own
for mode in none S; do
  evaluate one_shot pretrained $mode "${task[@]}" --mode $mode --shots 1
  evaluate finetuned finetuned $mode "${task[@]}" --mode $mode
done

say "the table"
"$(dirname "$UL2")/python" scripts/ablation_table.py "$OUT"
