#!/usr/bin/env bash
# Gathers what `gpu.sh` needs and a machine with torch, torchvision, scikit-learn, matplotlib and pytest lacks, as wheels
# in .wheels, for a machine that can download nothing: Python 3.12, Linux, x86-64.
#
#     bash benchmarks/gpu_wheels.sh
#
# ArviZ 0.x is one package; 1.x would be four.
set -eu
cd "$(dirname "$0")/.."
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest .wheels \
    pyro-ppl pyro-api opt-einsum tqdm "arviz<1" xarray xarray-einstats h5netcdf h5py pandas platformdirs execnet pytest-xdist
ls -sh .wheels
