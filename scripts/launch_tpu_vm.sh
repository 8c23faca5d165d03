#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU (a TPU VM, of one host or a pod), through gcloud.
#
#   scripts/launch_tpu_vm.sh --name my-tpu --zone us-east5-a -- FLAGS OF `ul2 train`
#
# Each host runs the same command; the metadata of the TPU tell it which it is. MODEL_DIR
# and DATA must lie where all hosts see them. A host starts its process again after exit
# code 75 or a signal; they meet as they did at first.
#
#   --name NAME          of the TPU
#   --zone ZONE          of Google Cloud
#   --project P          gcloud's own by default
#   --setup COMMAND      run on each host first, e.g. 'cd ul2 && . .venv/bin/activate'
#   --heartbeat SECONDS  after so long without a sign of life a process is dead (60)
#   --max_restarts N     how often each host starts again (10)
#   --ul2 COMMAND        the command on the hosts (ul2)
#   --dry_run            print what would be run

set -euo pipefail
source "$(dirname "$0")/launching.sh"

name='' zone='' project='' setup='' heartbeat=60 max_restarts=10 ul2=ul2
read_flags "name zone project setup heartbeat max_restarts ul2" "$@"
need name zone
need_number heartbeat max_restarts

on_host="${setup:+$setup && }export UL2_HEARTBEAT_SECONDS=$heartbeat; "
on_host+=$(restart_loop "$(quote_all "$ul2" train "${train[@]}")" "$max_restarts")
ssh=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all)
[ -z "$project" ] || ssh+=(--project="$project")
ssh+=(--command="bash -c $(quote "$on_host")")

if [ -n "$dry_run" ]; then
  quote_all "${ssh[@]}"
  echo
else
  "${ssh[@]}"
fi
