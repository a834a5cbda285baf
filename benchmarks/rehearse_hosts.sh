#!/usr/bin/env bash
# Runs on several machines, rehearsed on this one with network namespaces (root): benchmarks/rehearse_hosts.sh [CASE ...]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" benchmarks/rehearse_hosts.py "$@"
