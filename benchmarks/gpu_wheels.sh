#!/usr/bin/env bash
# Downloads to .wheels the packages that `gpu.sh` needs beside torch, torchvision, scikit-learn, matplotlib and pytest,
# for a machine without a network: Python 3.12, Linux, x86-64.
#
#     bash benchmarks/gpu_wheels.sh
#
# ArviZ 0.x is one package; 1.x would be four.
set -eu
cd "$(dirname "$0")/.."
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest .wheels \
    pyro-ppl pyro-api opt-einsum tqdm beartype "arviz<1" xarray xarray-einstats h5netcdf h5py pandas platformdirs execnet pytest-xdist
ls -sh .wheels
