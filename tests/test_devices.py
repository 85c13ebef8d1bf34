"""No tensor of the library stays on the CPU: tried without a GPU, on tensors that have a device and no memory."""

import warnings

import pyro
import pytest
import torch
from problems.pairs import ADMISSIBLE, SHAPE, J, build
from torch import nn
from torch._subclasses import FakeTensorMode

import vsc_pyro as vsc
from vsc_pyro.gates import GATES
from vsc_pyro.objectives import get_objective


def moved(model):
    """The model's parameters and buffers as fake tensors on a GPU."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return model


def loss_on_fakes(model, elbo, data_shape=SHAPE):
    """The loss of the model on a GPU that is not there; an error where a tensor is on the CPU."""
    with FakeTensorMode(), pyro.validation_enabled(False):
        model = moved(model)
        x = torch.empty(7, *data_shape, device="cuda")
        with pyro.get_param_store().scope(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the KL divergence at site 'z' has no closed form and is sampled")
            return elbo.differentiable_loss(model.model, model.guide, x)


# A draw from a Beta is a kernel's own, for which a fake tensor will not do.
WITHOUT_GAMMAS = [pair for pair in ADMISSIBLE if not pair[1].endswith("beta")]


@pytest.mark.parametrize("name", ["trace", "analytic"])
@pytest.mark.parametrize(("encoder_name", "prior_name", "kind"), WITHOUT_GAMMAS)
def test_every_pair_stays_on_the_device(encoder_name, prior_name, kind, name):
    loss = loss_on_fakes(build(encoder_name, prior_name), get_objective(name))
    assert loss.device.type == "cuda"


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ["trace", "analytic"])
def test_every_gate_stays_on_the_device(gate, name):
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, gate=gate)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(J, SHAPE), vsc.SpikeSlabPrior(J))
    num_draws = 2 if gate in ("score", "disarm") else 1
    assert loss_on_fakes(model, get_objective(name, num_draws)).device.type == "cuda"


def test_importance_weights_stay_on_the_device():
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, gate="score")
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(J, SHAPE), vsc.SpikeSlabPrior(J))
    assert loss_on_fakes(model, get_objective("importance-weighted", 3)).device.type == "cuda"


def test_the_exact_objective_stays_on_the_device():
    encoder = vsc.SpikeSlabEncoder((9,), J)
    model = vsc.VAE(encoder, vsc.NormalDecoder(J, (9,), hidden=()), vsc.SpikeSlabPrior(J))
    assert loss_on_fakes(model, get_objective("exact"), (9,)).device.type == "cuda"


def test_a_tensor_on_the_cpu_is_found():
    class Offset(nn.Module):
        offset = torch.ones(J)

        def forward(self, z):
            return z + self.offset

    model = build("normal", "normal")
    model.decoder.network = nn.Sequential(Offset(), model.decoder.network)
    with pytest.raises((AssertionError, RuntimeError), match=r"FakeTensor|at least two devices"):
        loss_on_fakes(model, get_objective("analytic"))
