#!/bin/bash
# Trains on 2 nodes of 8 GPUs under Slurm, and goes on by itself after preemption, a lost node or the time limit.
#
#   sbatch configs/accelerate/slurm.sh whisper_large_v3_qwen3 train.micro_batches=16
#
# All arguments go to `uniaudio train`. The environment says the rest:
#   ENGINE   launch file of configs/accelerate for two machines: ddp_2x8 (default) or zero1_2x8
#   RUN_DIR  the run's output_dir, on storage that all nodes see (default: as in the arguments, else runs/CONFIG)
# Submit from the root of the repository, with the environment activated; both are handed on to the nodes.
#
# How it stops: a worker that gets SIGTERM finishes its step, all ranks agree, a checkpoint is written, and every worker
# leaves with exit code 75: stopped early, safe to continue with --resume. The launcher does not pass that code on (it
# leaves with 1 for a signal and for a failure alike), so this script reads the outcome from the run's metrics.jsonl.

#SBATCH --job-name=uniaudio
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
# One launcher for each node (ntasks-per-node=1), which starts a process for each of its 8 GPUs.
# After a requeue the log goes on in the same file:
#SBATCH --open-mode=append
# Put the job back into the queue when it is preempted or a node fails:
#SBATCH --requeue
# SIGTERM to the steps (not to this script: that would be B:TERM) 180 s before the time limit. On preemption Slurm sends
# SIGTERM itself if the partition has a GraceTime; make that at least as long as a step and a checkpoint.
#SBATCH --signal=TERM@180

set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: sbatch configs/accelerate/slurm.sh CONFIG [key.sub=value ...]" >&2
    exit 2
fi

ENGINE=${ENGINE:-ddp_2x8}
folder=runs/$(basename "$1" .yaml)
for argument in "$@"; do
    case $argument in output_dir=*) folder=${argument#output_dir=} ;; esac
done
RUN_DIR=${RUN_DIR:-$folder}
METRICS=$RUN_DIR/metrics.jsonl

# All launchers meet at the first node; a port from the job's number keeps two jobs on one node apart.
MAIN_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))
PROCESSES=$((SLURM_JOB_NUM_NODES * 8))

# On SIGTERM the launcher (torchrun's agent) sends SIGTERM to its workers, and SIGKILL 30 s later. A step and a checkpoint
# take longer; this must stay below the 180 s of --signal, or Slurm kills first.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150
# The cores of a node belong to the data workers of 8 ranks: no thread pools on top.
export OMP_NUM_THREADS=1

stops() { # how often this run has been stopped in order
    if [ -f "$METRICS" ]; then grep -c '"event": "stopped"' "$METRICS" || true; else echo 0; fi
}

before=$(stops)
echo "$(date -Is)  job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $ENGINE on $SLURM_JOB_NODELIST"

# --resume auto starts where there is no checkpoint and continues where there is one: the same line for the first start
# and for every later one. SLURM_NODEID is known on the node only, hence the inner shell; exec lets the signal reach the
# launcher itself. --kill-on-bad-exit=0: a launcher that is done must not cost the other one its share of the
# checkpoint. (The price: when one node crashes, the other leaves only when its exchange times out.)
status=0
srun --kill-on-bad-exit=0 bash -c '
    exec accelerate launch --config_file "configs/accelerate/$0.yaml" \
        --num_machines "$1" --num_processes "$2" --machine_rank "$SLURM_NODEID" \
        --rdzv_backend c10d --main_process_ip "$3" --main_process_port "$4" \
        -m uniaudio.train "${@:5}" --resume auto
' "$ENGINE" "$SLURM_JOB_NUM_NODES" "$PROCESSES" "$MAIN_IP" "$MAIN_PORT" "$@" || status=$?

if [ "$status" -eq 0 ]; then
    echo "$(date -Is)  finished"
elif [ "$(stops)" -gt "$before" ]; then
    # Stopped in order (the workers left with 75). At the time limit Slurm requeues nothing by itself, so do it here.
    echo "$(date -Is)  stopped early with a checkpoint; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
else
    # A failure, or killed before the checkpoint was written: requeueing could go round for ever, so a person looks first.
    # The last whole checkpoint is intact, and the same sbatch line continues from it.
    echo "$(date -Is)  failed with status $status; not requeued" >&2
    exit "$status"
fi
