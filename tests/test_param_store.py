import contextlib
import copy
import functools
import gc
import io
import itertools
import pickle
import weakref

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger

import vsc_pyro as vsc
from vsc_pyro.models import param_store as registration
from vsc_pyro.models.param_store import register, unwatched


def svi_of(vae, loss=None):
    return vsc.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3), loss or vsc.AnalyticELBO())


def stock(vae, lr=1e-2):
    return pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())


def names_of(vae):
    return {f"{vae.store_name}$$${name}" for name, _ in vae.named_parameters()}


def weights_of(vae):
    return {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}


@pytest.fixture
def new_process(monkeypatch):
    """Names are given as in a process that has given none."""
    monkeypatch.setattr(registration, "_names", weakref.WeakKeyDictionary())
    monkeypatch.setitem(registration._numbers, "vae", itertools.count(1))


def test_parameters_are_those_of_the_module_itself(small_vae):
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    register(vae)
    store, name = pyro.get_param_store(), vae.store_name
    assert set(store.keys()) == {f"{name}$$$encoder.{n}" for n, _ in vae.encoder.named_parameters()}
    assert all(store[f"{name}$$$encoder.{n}"] is p for n, p in vae.encoder.named_parameters())
    before = set(store.keys())
    with torch.no_grad():
        register(small_vae(seed=1))
    assert set(store.keys()) == before


def test_nothing_is_registered_unwatched_and_again_afterwards(small_vae):
    vae = small_vae()
    with unwatched():
        register(vae)
    assert not pyro.get_param_store().keys()
    register(vae)
    assert set(pyro.get_param_store().keys()) == names_of(vae)


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_are_numbered_in_the_order_of_asking_and_are_kept(small_vae, new_process):
    first, second, third = (small_vae(seed=seed) for seed in range(3))
    register(second)
    register(first)
    assert (second.store_name, first.store_name, third.store_name) == ("vae", "vae_2", "vae_3")
    pyro.clear_param_store()
    register(first)
    with pyro.get_param_store().scope():
        register(second)
    assert (second.store_name, first.store_name) == ("vae", "vae_2")


def test_no_name_is_given_twice_whatever_is_collected(small_vae, new_process):
    models = [small_vae(seed=seed) for seed in range(3)]
    assert [model.store_name for model in models] == ["vae", "vae_2", "vae_3"]
    gone = weakref.ref(models.pop(1))
    gc.collect()
    assert gone() is None
    assert len(registration._names) == 2
    assert small_vae().store_name == "vae_4"
    assert [model.store_name for model in models] == ["vae", "vae_3"]


def test_what_the_store_holds_does_not_keep_a_trained_model_alive(small_vae, digits):
    vae = small_vae()
    stock(vae).step(digits.train.draw(slice(20)))
    gone = weakref.ref(vae)
    del vae
    gc.collect()
    assert gone() is None


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda vae: pickle.loads(pickle.dumps(vae)),
    "torch.save": lambda vae: torch_round_trip(vae),
}


def torch_round_trip(vae):
    torch.save(vae, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_a_name_of_its_own_and_trains_alone(small_vae, digits, copied):
    vae, x = small_vae(), digits.train.draw(slice(20))
    assert vae.store_name
    twin = copied(vae)
    stock(vae).step(x)  # after which Pyro's weak references at the parameters let nobody pickle them
    before = weights_of(vae)
    stock(twin).step(x)
    assert twin.store_name != vae.store_name
    assert names_of(twin) | names_of(vae) == set(pyro.get_param_store().keys())
    torch.testing.assert_close(weights_of(vae), before, rtol=0, atol=0)
    assert all(not torch.equal(p, before[name]) for name, p in twin.named_parameters())


def test_loaded_weights_change_no_name(small_vae, digits):
    vae, other, x = small_vae(), small_vae(seed=1), digits.train.draw(slice(20))
    svi = stock(vae)
    svi.step(x)
    name = vae.store_name
    vae.load_state_dict(other.state_dict())
    torch.testing.assert_close(weights_of(vae), weights_of(other), rtol=0, atol=0)
    svi.step(x)
    assert vae.store_name == name != other.store_name
    assert all(not torch.equal(p, weights_of(other)[n]) for n, p in vae.named_parameters())


# Several models under bare Pyro ---------------------------------------------------------------------------------------


def trained_by_turns(models, x, steps=3):
    """Losses, gradients and weights of models, each trained by a stock `SVI` of its own, a step at a time."""
    svis = [stock(model) for model in models]
    gradients = [{} for _ in models]
    for model, own in zip(models, gradients, strict=True):
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda g, own=own, name=name: own.__setitem__(name, g.clone()))
    found = [[] for _ in models]
    for step in range(steps):
        for model, svi, own, rows in zip(models, svis, gradients, found, strict=True):
            torch.manual_seed(step)
            rows.append((svi.step(x), dict(own), weights_of(model)))
    return found


def test_models_trained_by_turns_train_as_each_does_alone(small_vae, digits):
    x = digits.train.draw(slice(50))
    together = trained_by_turns([small_vae(seed=seed) for seed in (0, 1)], x)
    for seed, rows in zip((0, 1), together, strict=True):
        pyro.clear_param_store()
        (alone,) = trained_by_turns([small_vae(seed=seed)], x)
        for row, expected in zip(rows, alone, strict=True):
            assert row[0] == expected[0]
            for got, wanted in zip(row[1:], expected[1:], strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        assert all(not torch.equal(rows[0][2][name], rows[-1][2][name]) for name in rows[0][2])


def test_a_model_in_two_svis_is_one_set_of_parameters(small_vae, digits):
    vae, x = small_vae(), digits.train.draw(slice(50))
    svis = [stock(vae), stock(vae)]
    for svi in (*svis, *svis):
        before = weights_of(vae)
        svi.step(x)
        assert all(not torch.equal(p, before[name]) for name, p in vae.named_parameters())
    assert set(pyro.get_param_store().keys()) == names_of(vae)


def test_models_that_share_a_part(small_vae, digits):
    first, x = small_vae(), digits.train.draw(slice(50))
    second = vsc.VAE(first.encoder, small_vae(seed=1).decoder, vsc.SpikeSlabPrior(8, 0.2))
    svis = [stock(first), stock(second)]
    for model, svi in (*zip((first, second), svis, strict=True),) * 2:
        before = weights_of(model)
        svi.step(x)
        assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_clearing_the_store_between_steps(small_vae, digits):
    vae, x = small_vae(), digits.train.draw(slice(50))
    svi, name = stock(vae), vae.store_name
    for _ in range(3):
        before = weights_of(vae)
        svi.step(x)
        assert all(not torch.equal(p, before[n]) for n, p in vae.named_parameters())
        pyro.clear_param_store()
    assert vae.store_name == name


def test_a_store_from_a_file_is_put_into_a_model_as_documented(small_vae, digits, tmp_path):
    vae, other, x = small_vae(), small_vae(seed=1), digits.train.draw(slice(50))
    stock(vae).step(x)
    saved, name = weights_of(vae), vae.store_name
    pyro.get_param_store().save(str(tmp_path / "parameters"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "parameters"))
    with pytest.raises(
        RuntimeError, match=rf"holds another tensor .* pyro.module\('{name}', model, update_module_params"
    ):
        stock(vae).step(x)
    pyro.module(name, other, update_module_params=True)
    pyro.clear_param_store()
    torch.testing.assert_close(weights_of(other), saved, rtol=0, atol=0)
    stock(other).step(x)
    stock(vae).step(x)
    assert all(not torch.equal(p, saved[n]) for model in (vae, other) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("make", "optim"),
    [
        (vsc.SVI, functools.partial(torch.optim.Adam, lr=1e-2)),
        (functools.partial(vsc.CompiledSVI, backend="eager"), pyro.optim.Adam({"lr": 1e-2})),
    ],
    ids=["eager", "captured"],
)
def test_our_svi_trains_several_in_one_store(small_vae, digits, make, optim):
    x = digits.train.draw(slice(20))
    models = [small_vae(seed=seed) for seed in (0, 1)]
    svis = [make(vae.model, vae.guide, copy.deepcopy(optim), vsc.AnalyticELBO()) for vae in models]
    for vae, svi in (*zip(models, svis, strict=True),) * 3:
        before = weights_of(vae)
        svi.step(x)
        assert all(not torch.equal(p, before[name]) for name, p in vae.named_parameters())
    assert not any(getattr(svi, "is_eager", False) for svi in svis)


# Watched or not -------------------------------------------------------------------------------------------------------


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
    svi = stock(vae)
    for _ in range(2):
        svi.step(x)
    assert all(not torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))
