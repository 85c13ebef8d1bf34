#!/usr/bin/env bash
# Runs on a GPU, most valuable first, in at most 8 minutes: the tests that use a device, the main example, a step and an
# epoch, a dictionary, and the importance-weighted bound.
#
#     bash benchmarks/gpu.sh [--quick] [--data-root FOLDER] [--output FOLDER]
#
# Each part has a time limit and writes its results as it goes, to benchmarks/results or FOLDER. A part that fails is
# reported at the end and does not stop the others. $PYTHON names the interpreter, by default `python`. If it has no
# Pyro, the wheels from `gpu_wheels.sh` are installed. --quick tries the benchmarks on the CPU, with tiny sizes.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
device=cuda data=() output=benchmarks/results size=() tests=(-p no:benchmark -n 8 -m "cuda or device") job=(--dataset mnist --epochs 3)
rounds=(--rounds 15 --epoch-rounds 1) draws=(--images 10000 --draws 5000)
while [ $# -gt 0 ]; do
    case $1 in
        --quick)
            device=cpu size=(--quick --threads 1) rounds=() draws=()
            shift
            ;;
        --data-root) data=(--data-root "${2:?names no folder}") && export VSC_PYRO_DATA=$2 && shift 2 ;;
        --output) output=${2:?names no folder} && shift 2 ;;
        *) echo "gpu.sh: unknown option $1" >&2 && exit 2 ;;
    esac
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! "$python" -c 'import pyro' 2>/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$scratch/site" .wheels/*.whl || exit 1
    export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ "$device" = cuda ]; then
    if ! name=$("$python" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
        echo "gpu.sh: torch of '$python' finds no CUDA device here (torch.cuda.is_available() is false, or torch is not" \
            "installed); there is nothing to run" >&2
        exit 1
    fi
    slug=$(echo "$name" | tr '[:upper:]' '[:lower:]' | sed -E 's/[^a-z0-9]+/-/g')
else
    name="the CPU, to see whether it runs" slug=quick
fi
echo "on $name"

failed=()
run() { # time limit in seconds, command
    local limit=$1 start=$SECONDS
    shift
    echo
    echo "== $*"
    timeout --kill-after=10 "$limit" "$@" || failed+=("$* (status $?)")
    echo "== $((SECONDS - start)) s"
}
benchmark() { # time limit in seconds, benchmark, name of its results, options
    local limit=$1 script=$2 called=$3
    shift 3
    run "$limit" "$python" "benchmarks/$script.py" --device "$device" "${size[@]}" --output "$output/$called-$slug.json" "$@"
}

if [ "$device" = cuda ]; then
    run 90 "$python" -m pytest --device "$device" "${tests[@]}"
    run 40 "$python" examples/mnist_vsc.py "${job[@]}" --device "$device" --quiet --output "$scratch/job" "${data[@]}"
fi
benchmark 110 step step --settings default --parts step "${rounds[@]}" "${data[@]}"
benchmark 60 dictionary dictionary
benchmark 65 evaluation evaluation --rounds 2 "${draws[@]}" "${data[@]}"
benchmark 110 step epoch --settings default --parts epoch "${rounds[@]}" "${data[@]}"

for command in "${failed[@]}"; do
    echo "== FAILED: $command" >&2
done
exit $((${#failed[@]} > 0))
