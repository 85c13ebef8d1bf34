"""Fixtures: real data, a clean Pyro, and a device chosen on the command line."""

import contextlib
import gc
import importlib
import os
import warnings
from pathlib import Path

import pyro
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.acceleration import missing_compiler

if "PYTEST_XDIST_WORKER" in os.environ:  # workers beside one another, and what they start, share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# One bound for every statistical assertion: a two-sided normal tail of 5 standard errors has probability 5.7e-7, so
# the few hundred of them in this suite together fail by chance in about one of 5,000 runs (and seeds are fixed).
Z_BOUND = 5.0


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device that the tests of training and evaluation run on")


@pytest.fixture
def device(request):
    return request.config.getoption("--device")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "device" in item.fixturenames:
            item.add_marker("device")
    if not config.getoption("--device").startswith("cuda"):
        skip = pytest.mark.skip(reason="needs a CUDA device: run with --device cuda")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish():
    gc.freeze()  # or each full collection looks through all modules, which stay to the end
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True)
def clean_pyro():
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def digits():
    return vsc.datasets.load("digits")


@pytest.fixture(scope="session")
def mnist_root():
    root = Path(os.environ.get("VSC_PYRO_DATA", ""))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip("real MNIST is not on this machine: set VSC_PYRO_DATA to the folder that holds MNIST/raw")
    return root


@pytest.fixture
def small_vae():
    """A factory of small models of the bundled 8x8 digits."""

    def make(gate="concrete", latent_dim=8, seed=0, **prior):
        torch.manual_seed(seed)
        return vsc.VAE(
            vsc.SpikeSlabEncoder((1, 8, 8), latent_dim, hidden=(32,), gate=gate),
            vsc.BernoulliDecoder(latent_dim, (1, 8, 8), hidden=(32,)),
            vsc.SpikeSlabPrior(latent_dim, **({"inclusion": 0.2} | prior)),
        )

    return make


@pytest.fixture(scope="session")
def trained(digits):
    """A model of the small digits, trained for a while; to be looked at and left as it is."""
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder((1, 8, 8), 6, hidden=(32,)),
        vsc.BernoulliDecoder(6, (1, 8, 8), hidden=(32,)),
        vsc.SpikeSlabPrior(6, inclusion=0.3),
    )
    vsc.fit(model, digits.train, epochs=60, lr=4e-3, progress=False)
    return model


@pytest.fixture
def unpainted(monkeypatch):
    """Figures are made and not painted, which takes most of their time."""

    def savefig(self, file, **settings):
        if hasattr(file, "write"):
            file.write(b"unpainted")
        else:
            Path(file).write_bytes(b"unpainted")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture
def compiler():
    if missing := missing_compiler(torch.device("cpu")):
        pytest.skip(missing)


@pytest.fixture
def no_compiler():
    config = importlib.import_module("torch._inductor.config")  # takes a second
    with config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        yield


@contextlib.contextmanager
def waiting_is_an_error():
    """Within, whatever would wait for the GPU raises."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_mean_equals(samples, expected, z_bound=Z_BOUND):
    """The mean over the first dimension of i.i.d. `samples` equals `expected` within `z_bound` standard errors."""
    samples = samples.double()
    error = samples.std(0) / len(samples) ** 0.5
    z = (samples.mean(0) - torch.as_tensor(expected, dtype=torch.float64)).abs() / error.clamp(min=1e-12)
    assert (z < z_bound).all(), f"mean {samples.mean(0)} differs from {expected} by {z} standard errors"
