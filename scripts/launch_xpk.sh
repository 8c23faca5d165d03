#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, through XPK (pip install xpk).
#
#   scripts/launch_xpk.sh --cluster C --tpu_type v5p-128 --docker_image I \
#       -- FLAGS OF `ul2 train`
#
# The image holds ul2 with jax[tpu]; MODEL_DIR and DATA lie on a volume that all pods
# see. GKE tells each process who it is. XPK starts the job again after exit code 75,
# or when a pod dies.
#
#   --cluster NAME            of XPK
#   --tpu_type TYPE           as XPK names it: v5p-128, v5litepod-256, v6e-256
#   --num_slices N            slices, joined by the data centre's network (1)
#   --docker_image IMAGE      an image that is there; or
#   --base_docker_image IMAGE XPK adds this folder to it
#   --workload NAME           (ul2-USER)
#   --project P, --zone Z     of Google Cloud; gcloud's own by default
#   --priority P              of XPK
#   --storage NAME            a volume that XPK knows (`xpk storage`)
#   --setup COMMAND           run in each pod first
#   --heartbeat SECONDS       after so long without a sign of life a process is dead (60)
#   --max_restarts N          how often to start again (10)
#   --ul2 COMMAND             the command in the image (ul2)
#   --dry_run                 print what would be run

set -euo pipefail
source "$(dirname "$0")/launching.sh"

cluster='' tpu_type='' num_slices=1 docker_image='' base_docker_image=''
workload=ul2-${USER:-run} project='' zone='' priority='' storage='' setup=''
heartbeat=60 max_restarts=10 ul2=ul2
read_flags "cluster tpu_type num_slices docker_image base_docker_image workload project \
zone priority storage setup heartbeat max_restarts ul2" "$@"
need cluster tpu_type
need_number num_slices heartbeat max_restarts
[ -n "$docker_image$base_docker_image" ] || die "--docker_image or --base_docker_image is needed; see --help."

command="${setup:+$setup && }export UL2_HEARTBEAT_SECONDS=$heartbeat && $(quote_all "$ul2" train "${train[@]}")"
create=(xpk workload create --cluster="$cluster" --workload="$workload" --tpu-type="$tpu_type"
  --num-slices="$num_slices" --max-restarts="$max_restarts" --restart-on-exit-codes="$EXIT_RESTART")
optional() { [ -z "$2" ] || create+=("--$1=$2"); }
optional docker-image "$docker_image"
optional base-docker-image "$base_docker_image"
optional project "$project"
optional zone "$zone"
optional priority "$priority"
optional storage "$storage"
create+=(--command="$command")

if [ -n "$dry_run" ]; then
  quote_all "${create[@]}"
  echo
else
  "${create[@]}"
fi
