#!/usr/bin/env bash
# Trains on nodes of a SLURM cluster: writes an sbatch file and submits it.
#
#   scripts/launch_slurm.sh --nodes 4 --gpus_per_node 8 -- FLAGS OF `ul2 train`
#
# MODEL_DIR and DATA must lie where all nodes see them. The job asks to be told two
# minutes before its time is over; it then saves, ends with exit code 75, and is queued
# again, as it is after the death of a process or a node.
#
#   --nodes N               how many nodes (1)
#   --processes_per_node N  1 drives all GPUs of a node; or as many as there are (1)
#   --gpus_per_node N       none by default
#   --cpus_per_task N       SLURM's default
#   --time T                SLURM's default
#   --partition NAME        SLURM's default
#   --account NAME          SLURM's default
#   --job_name NAME         (ul2)
#   --output FILE           (ul2-%j.out)
#   --setup COMMAND         run on each node first, e.g. '. .venv/bin/activate'
#   --heartbeat SECONDS     after so long without a sign of life a process is dead (60)
#   --max_restarts N        how often to queue the job again (10)
#   --ul2 COMMAND           the command (ul2)
#   --dry_run               print the sbatch file instead of submitting it

set -euo pipefail
source "$(dirname "$0")/launching.sh"

nodes=1 processes_per_node=1 gpus_per_node='' cpus_per_task='' time='' partition=''
account='' job_name=ul2 output=ul2-%j.out setup='' heartbeat=60 max_restarts=10 ul2=ul2
read_flags "nodes processes_per_node gpus_per_node cpus_per_task time partition account \
job_name output setup heartbeat max_restarts ul2" "$@"
need_number nodes processes_per_node heartbeat max_restarts
[ "$nodes" -ge 1 ] || die "--nodes=$nodes must be at least 1."

# Each task runs this; `exec`, so that signals reach it.
task="${setup:+$setup && }exec $(quote_all "$ul2" train "${train[@]}")"

directive() { [ -z "$2" ] || printf '#SBATCH --%s=%s\n' "$1" "$2"; }
sbatch_file() {
  echo '#!/usr/bin/env bash'
  directive job-name "$job_name"
  directive nodes "$nodes"
  directive ntasks-per-node "$processes_per_node"
  directive gpus-per-node "$gpus_per_node"
  directive cpus-per-task "$cpus_per_task"
  directive time "$time"
  directive partition "$partition"
  directive account "$account"
  directive output "$output"
  cat <<END
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120

export UL2_HEARTBEAT_SECONDS=$heartbeat
# The others end by themselves, with a message, when a task dies.
srun --kill-on-bad-exit=0 --wait=$((heartbeat * 2 + 60)) bash -c $(quote "$task")
code=\$?
if [ \$code -eq $EXIT_RESTART ] || [ \$code -ge 128 ]; then
  if [ "\${SLURM_RESTART_COUNT:-0}" -lt $max_restarts ]; then
    echo "exit code \$code; the job is queued again." >&2
    scontrol requeue "\$SLURM_JOB_ID"
  fi
fi
exit \$code
END
}

if [ -n "$dry_run" ]; then
  sbatch_file
else
  sbatch < <(sbatch_file)
fi
