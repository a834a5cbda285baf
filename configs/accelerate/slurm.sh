#!/bin/bash
# Trains on 2 nodes of 8 GPUs under Slurm, and continues automatically after preemption, a lost node or the time limit.
#
#   sbatch configs/accelerate/slurm.sh whisper_large_v3_qwen3 train.micro_batches=16
#
# All arguments are passed to `uniaudio launch`, which must be available in the environment of the submission; nothing
# else from the repository is needed, so the script can be copied. It reads this environment variable:
#   ENGINE   ddp (default), zero1, zero2, zero3, fsdp2, or the path of a launch file
# Submit from the folder to which paths in the arguments are relative.
#
# How it stops: a process that gets SIGTERM finishes its step, all processes stop together, a checkpoint is written, and
# every launch ends with exit code 75 (stopped early, safe to continue with --resume).

#SBATCH --job-name=uniaudio
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
# One launch per node (ntasks-per-node=1), which starts one process per GPU. After a requeue, the log continues in the
# same file:
#SBATCH --open-mode=append
# Put the job back into the queue when it is preempted or a node fails (a failed node is down, so other nodes are used):
#SBATCH --requeue
# SIGTERM to the steps (not to this script: that would be B:TERM) 180 s before the time limit. On preemption, Slurm
# itself sends SIGTERM if the partition has a GraceTime, which should be at least as long as a step and a checkpoint.
#SBATCH --signal=TERM@180

set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: sbatch configs/accelerate/slurm.sh CONFIG [key.sub=value ...]" >&2
    exit 2
fi

STOPPED=75 # exit code of a run that was stopped early and can continue

# All launches meet at the first node; a port from the job's number keeps two jobs on one node apart.
NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # no pipe into head: the interrupted command would fail the script
ADDRESS=${NODES%%$'\n'*}
PORT=$((20000 + SLURM_JOB_ID % 20000))

# The cores of a node are for the data workers of its processes, so there are no additional thread pools.
export OMP_NUM_THREADS=1

echo "$(date -Is)  job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${ENGINE:-ddp} on $SLURM_JOB_NODELIST"

# --resume auto starts the run if there is no checkpoint and otherwise continues it, so the same line works for every
# start. SLURM_NODEID is known only on the node, hence the inner shell; exec lets the signal reach the launch itself.
# --kill-on-bad-exit=0: a launch that has ended must not stop another that is still writing its part of the checkpoint;
# if a node is lost, the others end by themselves within a minute.
status=0
srun --kill-on-bad-exit=0 bash -c '
    machines=()
    if [ "$1" -gt 1 ]; then
        machines=(--machines "$1" --rank "$SLURM_NODEID" --address "$2" --port "$3" --rendezvous c10d)
    fi
    exec uniaudio launch "$0" "${@:4}" "${machines[@]}" --resume auto
' "${ENGINE:-ddp}" "$SLURM_JOB_NUM_NODES" "$ADDRESS" "$PORT" "$@" || status=$?

if [ "$status" -eq 0 ]; then
    echo "$(date -Is)  finished"
elif [ "$status" -eq "$STOPPED" ]; then
    # Slurm does not requeue at the time limit, so do it here.
    echo "$(date -Is)  stopped early with a checkpoint; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
else
    # The run failed or was killed before the checkpoint was written. Requeueing could loop forever, so a person should
    # look first. The last complete checkpoint is intact, and the same sbatch line continues from it.
    echo "$(date -Is)  failed with status $status; not requeued" >&2
    exit "$status"
fi
