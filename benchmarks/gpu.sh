#!/usr/bin/env bash
# The whole GPU table on one GPU in under nine minutes, without installing the package: benchmarks/gpu.sh [options of gpu.py]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=. PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec timeout --signal=INT 535 "${PYTHON:-python3}" benchmarks/gpu.py "$@"
