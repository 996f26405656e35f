#!/usr/bin/env bash
# On a GPU host: first whether the regularized step is right there, then how fast it is.
# Needs Python 3.11+ with torch and torchvision; PYTHON=... names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" -m benchmarks.check
for batch_size in 128 512; do
    "$python" -m benchmarks.step --dtype bf16 --batch-size "$batch_size" --rounds 15 --engines
done
