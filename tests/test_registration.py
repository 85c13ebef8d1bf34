import contextlib

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger

import vsc_pyro as vsc
from vsc_pyro.registration import register, unwatched


def svi_of(vae, loss=None):
    return vsc.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3), loss or vsc.AnalyticELBO())


def names_of(vae):
    return {f"vae$$${name}" for name, _ in vae.named_parameters()}


def test_parameters_are_those_of_the_module_itself(small_vae):
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    register("vae", vae)
    store = pyro.get_param_store()
    assert set(store.keys()) == {f"vae$$$encoder.{name}" for name, _ in vae.encoder.named_parameters()}
    assert all(store[f"vae$$$encoder.{name}"] is p for name, p in vae.encoder.named_parameters())
    with torch.no_grad():
        register("vae", small_vae(seed=1))  # which with gradients is refused
    with pytest.raises(RuntimeError, match="another model under the name 'vae'"):
        register("vae", small_vae(seed=1))


def test_nothing_is_registered_unwatched_and_again_afterwards(small_vae):
    vae = small_vae()
    with unwatched():
        register("vae", vae)
    assert not pyro.get_param_store().keys()
    register("vae", vae)
    assert set(pyro.get_param_store().keys()) == names_of(vae)


class Messages(Messenger):
    """Counts what it is told of parameters, from wherever it stands."""

    def __init__(self):
        super().__init__()
        self.parameters = []

    def _pyro_param(self, msg):
        self.parameters.append(msg["name"])


def test_only_the_first_step_registers_unless_someone_listens(small_vae, digits):
    vae, x = small_vae(), digits.train.draw(slice(20))
    svi = svi_of(vae)
    svi.step(x)
    store = pyro.get_param_store()
    assert set(store.keys()) == names_of(vae)
    pyro.clear_param_store()
    svi.step(x)
    assert not store.keys()  # nobody was told
    listening = Messages()
    with listening:
        svi.step(x)
    assert set(listening.parameters) == names_of(vae) == set(store.keys())


def test_pyros_own_elbo_which_looks_for_them_finds_them(small_vae, digits):
    vae, x = small_vae(), digits.train.draw(slice(20))
    svi = svi_of(vae, Trace_ELBO())
    for _ in range(3):
        before = [p.clone() for p in vae.parameters()]
        svi.step(x)
        assert all(not torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))


def test_steps_are_the_same_watched_or_not(small_vae, digits):
    x = digits.train.draw(slice(50))
    weights = []
    for handler in (poutine.block(hide=[]), contextlib.nullcontext()):
        vae = small_vae()
        svi = svi_of(vae)
        torch.manual_seed(0)
        for _ in range(3):
            with handler:
                svi.step(x)
        weights.append([p.clone() for p in vae.parameters()])
        pyro.clear_param_store()
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_stock_pyro_finds_the_parameters_in_every_step(small_vae, digits):
    vae, x = small_vae(), digits.train.draw(slice(20))
    svi_of(vae).step(x)
    before = [p.clone() for p in vae.parameters()]
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(2):
        svi.step(x)
    assert all(not torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))
