#!/usr/bin/env bash
# Trains on this machine, and starts again what died (exit code 75, or a signal).
#
#   scripts/launch_local.sh [flags] -- FLAGS OF `ul2 train`
#
#   scripts/launch_local.sh -- --gin_file=configs/models/enc_dec_base.gin ...
#       one process that drives every GPU or TPU of the machine: the usual choice
#   scripts/launch_local.sh --processes 8 --gpus 8 -- ...
#       one process per GPU
#   scripts/launch_local.sh --processes 2 --cpu 4 -- ... --gin.MESH=fsdp=8
#       a trial without accelerators: two processes of four CPU devices that talk by gloo
#
#   --processes N      how many processes (1)
#   --gpus N           of the machine, shared evenly by the processes; all by default
#   --cpu N            no accelerator: so many CPU devices per process
#   --port N           where the processes meet (8476)
#   --max_restarts N   how often to start again (3)
#   --ul2 COMMAND      the command, where it is not on the path (ul2)
#   --dry_run          print what would be run

set -euo pipefail
source "$(dirname "$0")/launching.sh"

processes=1 gpus='' cpu='' port=8476 max_restarts=3 ul2=ul2
read_flags "processes gpus cpu port max_restarts ul2" "$@"
need_number processes port max_restarts
[ "$processes" -ge 1 ] || die "--processes=$processes must be at least 1."
if [ -n "$gpus" ]; then
  need_number gpus
  [ $((gpus % processes)) -eq 0 ] || die "--gpus=$gpus do not divide over --processes=$processes."
fi

# Prints the environment of process $1.
variables() {
  local share first
  if [ -n "$cpu" ]; then
    printf '%s\n' JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=$cpu"
  fi
  if [ "$processes" -gt 1 ]; then
    printf '%s\n' "UL2_COORDINATOR=127.0.0.1:$port" "UL2_NUM_PROCESSES=$processes" "UL2_PROCESS_ID=$1"
  fi
  if [ -n "$gpus" ]; then
    share=$((gpus / processes)) first=$(($1 * (gpus / processes)))
    printf 'UL2_LOCAL_DEVICE_IDS=%s\n' "$(seq -s , "$first" $((first + share - 1)))"
  fi
}

if [ -n "$dry_run" ]; then
  for ((index = 0; index < processes; index++)); do
    mapfile -t environment < <(variables "$index")
    quote_all env "${environment[@]}" "$ul2" train "${train[@]}"
    echo
  done
  exit 0
fi

workers=() stopped=
stop() {
  stopped=1
  kill -TERM "${workers[@]}" 2>/dev/null || true
}
trap stop TERM INT

# Runs all processes once; the exit code is the worst of theirs, an error before a death.
run_once() {
  local index worker code worst=0
  workers=()
  for ((index = 0; index < processes; index++)); do
    mapfile -t environment < <(variables "$index")
    env "${environment[@]}" "$ul2" train "${train[@]}" &
    workers+=($!)
  done
  for worker in "${workers[@]}"; do
    code=0
    wait "$worker" || code=$?
    # A trapped signal ends `wait`, not the process.
    while kill -0 "$worker" 2>/dev/null; do code=0; wait "$worker" || code=$?; done
    if [ $code -eq 1 ] || [ $code -eq 2 ]; then
      worst=$code
    elif [ $worst -ne 1 ] && [ $worst -ne 2 ] && [ $code -gt $worst ]; then
      worst=$code
    fi
  done
  return $worst
}

for ((try = 0; ; try++)); do
  code=0
  run_once || code=$?
  if [ -n "$stopped" ] || { [ $code -ne $EXIT_RESTART ] && [ $code -lt 128 ]; }; then
    exit $code
  fi
  if [ "$try" -ge "$max_restarts" ]; then
    printf 'error: exit code %s; started %s times (--max_restarts=%s).\n' "$code" $((try + 1)) "$max_restarts" >&2
    exit $code
  fi
  printf 'exit code %s; starting again (%s of %s).\n' "$code" $((try + 1)) "$max_restarts" >&2
  sleep 1
done
