#!/usr/bin/env bash
# All there is to run on a GPU, in one command: every test, those marked `cuda` among them, and every benchmark.
#
#     bash benchmarks/gpu.sh [options of the benchmarks, such as --data-root data]
#
# Results are written to benchmarks/results. $PYTHON is the interpreter, if it is not `python`. What fails is told at the
# end, and does not keep the rest from being run.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}

if ! device=$("$python" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
    echo "gpu.sh: torch of '$python' finds no CUDA device here (torch.cuda.is_available() is false, or torch is not" \
        "installed); there is nothing to run" >&2
    exit 1
fi
echo "on $device"

failed=0
run() {
    echo
    echo "== $*"
    "$@" || { echo "== FAILED: $*" >&2; failed=1; }
}

run "$python" -m pytest -n 0 --device cuda
for benchmark in step scaling evaluation loading ensemble defaults; do
    run "$python" "benchmarks/$benchmark.py" --device cuda "$@"
done
exit $failed
