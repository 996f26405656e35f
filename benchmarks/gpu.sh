#!/usr/bin/env bash
# On a GPU host: benchmarks/gpu.sh checks | pilot FOLDER [MINUTES] [ROWS] | speed; without a word, checks and speed.
# checks: whether the regularized step is right there. pilot: trainings on CIFAR-100's Parquet files in FOLDER, of which
# none starts after MINUTES (8); finished ones are added to ROWS. Needs Python 3.11+ with torch and torchvision;
# PYTHON=... names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

checks() { "$python" -m benchmarks.check; }
pilot() {
    "$python" -m benchmarks.pilot --data "${1:?pilot needs the folder of CIFAR-100}" --workers 10 --minutes "${2:-8}" --rows "${3:-benchmarks/data/pilot.jsonl}"
}
speed() {
    for batch_size in 128 512; do
        "$python" -m benchmarks.step --dtype bf16 --batch-size "$batch_size" --rounds 15 --engines
    done
}

case ${1:-} in
checks | pilot | speed) "$@" ;;
"") checks && speed ;;
*) echo "gpu.sh: unknown part $1; choose checks, pilot or speed" >&2 && exit 2 ;;
esac
