#!/usr/bin/env bash
# Slurm's script under a real Slurm on hosts in network namespaces of this machine (root): benchmarks/rehearse_slurm.sh
# Needs Debian's packages slurmctld, slurmd, slurm-client and munge; their own services need not run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
exec env PYTHONPATH="$PWD" "${PYTHON:-python3}" benchmarks/rehearse_slurm.py "$@"
