import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI
from vsc_pyro.gates import GATES
from vsc_pyro.objectives import get_objective


class CountWaits(TorchDispatchMode):
    """Counts the operations for which the host has to wait for the device (`.item()`, `bool(tensor)`, `nonzero`)."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def make_svi(vae, objective="analytic"):
    elbo = get_objective(objective, draws_at_once=vae.encoder.gate.draws_at_once)
    return vsc.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3, fused=True), elbo)


@pytest.mark.parametrize("objective", ["trace", "analytic"])
@pytest.mark.parametrize("gate", GATES)
def test_no_step_waits_for_the_device(small_vae, digits, gate, objective):
    svi, x = make_svi(small_vae(gate), objective), digits.train.images[:50].round()
    with pyro.validation_enabled(False), CountWaits() as counter:
        loss = svi.step(x)
    assert counter.waits == 0
    assert isinstance(loss, torch.Tensor)
    assert not loss.requires_grad


def test_nor_does_one_without_sampling(digits):
    decoder = vsc.NormalDecoder(8, (1, 8, 8), hidden=(), variance="per-pixel")
    prior = vsc.SpikeSlabPrior(8, learn_inclusion=True, hyperprior=(1.0, 9.0))
    svi = make_svi(vsc.VAE(vsc.SpikeSlabEncoder((1, 8, 8), 8, (32,)), decoder, prior), "exact")
    with pyro.validation_enabled(False), CountWaits() as counter:
        svi.step(digits.train.images[:50])
    assert counter.waits == 0


def test_stock_objectives_wait_and_work_as_well(small_vae, digits):
    svi, x = make_svi(small_vae(), Trace_ELBO()), digits.train.images[:50].round()
    with pyro.validation_enabled(False), CountWaits() as counter:
        svi.step(x)
    assert counter.waits > 0  # the counter counts


def test_is_a_pyro_svi_of_one_optimizer(small_vae, digits):
    vae, x = small_vae(), digits.train.images[:50].round()
    svi = make_svi(vae)
    assert isinstance(svi, pyro.infer.SVI)
    before = svi.evaluate_loss(x)
    assert isinstance(before, float)
    for _ in range(100):
        svi.step(x)
    assert svi.evaluate_loss(x) < before


def test_what_is_no_optimiser_is_refused(small_vae):
    vae = small_vae()
    with pytest.raises(ValueError, match=r"optim must be a torch optimiser .* got dict.* or one of pyro.optim"):
        vsc.SVI(vae.model, vae.guide, {"lr": 1e-3}, vsc.TraceELBO())


def test_two_models_do_not_meet_in_the_parameter_store():
    # Not a VAE: two Pyro programs with one parameter name, of which the optimiser decides who learns.
    def program(parameter):
        def model():
            pyro.sample("x", dist.Normal(parameter, 1.0), obs=torch.tensor(3.0))

        return vsc.SVI(model, lambda: None, torch.optim.Adam([parameter], 0.1), vsc.TraceELBO())

    parameters = [torch.zeros((), requires_grad=True) for _ in range(2)]
    for parameter in parameters:
        svi = program(parameter)
        for _ in range(300):
            svi.step()
    for parameter in parameters:
        torch.testing.assert_close(parameter.detach(), torch.tensor(3.0), atol=0.05, rtol=0)


def first_step_with(stale):
    """Where a first step of two particles goes, of an SVI that makes its optimiser, with such a gradient there."""
    pyro.clear_param_store()

    def model():
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=torch.tensor(3.0))

    pyro.param("loc", torch.tensor(0.0)).unconstrained().grad = stale
    svi = vsc.SVI(model, lambda: None, functools.partial(torch.optim.SGD, lr=0.1), vsc.TraceELBO(num_particles=2))
    svi.step()
    return float(pyro.param("loc").detach())


def test_gradients_from_elsewhere_are_no_part_of_a_first_step():
    assert first_step_with(None) == first_step_with(torch.tensor(100.0)) == pytest.approx(0.3)


@pytest.mark.parametrize("cls", [vsc.SVI, functools.partial(CompiledSVI, backend="eager")])
def test_a_parameter_that_is_replaced_in_the_store_is_refused(cls):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    svi = cls(model, lambda x: None, functools.partial(torch.optim.SGD, lr=0.1), vsc.TraceELBO())
    x = torch.ones(3)
    for _ in range(3):
        svi.step(x)
    with torch.no_grad():
        pyro.param("loc").fill_(-2.0)  # in place is well
    svi.step(x)
    pyro.get_param_store()["loc"] = torch.tensor(-5.0)
    with pytest.raises(RuntimeError, match="another tensor under 'loc'"):
        svi.step(x)


def test_fit_leaves_no_gradient_behind(small_vae, digits):
    vae = small_vae()
    vsc.fit(vae, digits.train.images[:100].round(), epochs=1, progress=False, device="cpu")
    assert all(parameter.grad is None for parameter in vae.parameters())
