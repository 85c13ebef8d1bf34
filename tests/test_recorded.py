"""Modules record the arguments of their outermost constructor, and are described and built from plain values."""

import copy
import inspect
import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import vsc_pyro as vsc
from vsc_pyro._recorded import Builder, Description, arguments_of


class Outer(vsc.SpikeSlabPrior):
    def __init__(self, percent, *, slabs=("normal",)):
        super().__init__(4, percent / 100, slab=slabs[0])


class Holder(vsc.Prior):
    """Any arguments at all."""

    def __init__(self, first, *rest, **named):
        super().__init__()
        self.given = (first, rest, named)


class Plain(nn.Module):
    out_features = 3

    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)


def rebuilt(module):
    description = Description()
    text = json.dumps(description.of(module, "it"), allow_nan=False)
    return Builder(description.tensors).build(json.loads(text), "it"), text


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("vsc_pyro._recorded._classes", dict(vsc._recorded._classes))
    for cls in (Outer, Holder):
        vsc.register(cls)


@pytest.mark.usefixtures("registered")
def test_the_outermost_constructor_is_recorded():
    prior = Outer(20, slabs=("laplace",))
    again, text = rebuilt(prior)
    assert json.loads(text) == {"class": "Outer", "arguments": {"percent": 20, "slabs": ["laplace"]}}
    assert torch.equal(again.inclusion_logits, prior.inclusion_logits)
    assert arguments_of(prior) == {"percent": 20, "slabs": ("laplace",)}
    assert [*inspect.signature(Outer).parameters] == ["percent", "slabs"]


@pytest.mark.usefixtures("registered")
def test_every_kind_of_value_comes_back_as_it_was():
    values = {
        "floats": (0.1, math.inf, -math.inf, 1e-300, np.float32(0.1)),
        "others": [None, True, 2, "text", (), [], {"a": {"class": 1}}, torch.Size([2, 3])],
        "array": np.arange(3.0),
    }
    again, _ = rebuilt(Holder(1, 2, "x", nan=math.nan, tensor=torch.tensor([0.1, math.nan]).double(), **values))
    first, rest, named = again.given
    assert (first, rest) == (1, (2, "x"))
    assert math.isnan(named["nan"])
    assert named["tensor"].dtype == torch.float64
    assert torch.equal(named["tensor"][:1], torch.tensor([0.1]).double())
    assert named["floats"] == (0.1, math.inf, -math.inf, 1e-300, float(np.float32(0.1)))
    assert named["others"] == [None, True, 2, "text", (), [], {"a": {"class": 1}}, (2, 3)]
    assert [type(each) for each in named["others"][4:]] == [tuple, list, dict, tuple]
    assert isinstance(named["array"], np.ndarray)
    assert named["array"].tolist() == [0, 1, 2]


@pytest.mark.usefixtures("registered")
def test_arguments_that_change_later_are_described_as_they_were_given():
    inclusion, widths = torch.full((4,), 0.2), [8]
    prior, encoder = vsc.SpikeSlabPrior(4, inclusion), vsc.NormalEncoder(6, 4, widths)
    inclusion.fill_(0.9)
    widths.append(3)
    assert torch.equal(rebuilt(prior)[0].inclusion_logits, prior.inclusion_logits)
    assert rebuilt(encoder)[0].hidden == (8,)


def test_one_module_stays_one():
    encoder = vsc.SpikeSlabEncoder(6, 2, hidden=(3,))
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(2, 6), vsc.PseudoInputPrior(encoder, 3))
    again, text = rebuilt(model)
    assert again.prior.encoder is again.encoder
    assert text.count('"SpikeSlabEncoder"') == 1


def test_settings_that_were_changed_are_described():
    model = vsc.VAE(vsc.NormalEncoder(6, 2), vsc.BernoulliDecoder(2, 6), vsc.NormalPrior(2))
    model.num_data, model.prior.scale = 77, 3.0
    model.encoder = vsc.LaplaceEncoder(6, 2)
    again, _ = rebuilt(model)
    assert (again.num_data, again.prior.scale, type(again.encoder)) == (77, 3.0, vsc.LaplaceEncoder)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_the_record(copied):
    holder = Holder(torch.ones(2), function=len)
    holder.given = ()
    twin = copied(holder)
    assert torch.equal(arguments_of(twin)["first"], torch.ones(2))
    with pytest.raises(ValueError, match=r"it\.function is a builtin_function_or_method, which a file cannot hold; "):
        rebuilt(twin)


def test_what_files_cannot_name_is_refused_with_the_remedy(registered, monkeypatch):
    class Local(vsc.Prior):
        pass

    with pytest.raises(ValueError, match=r"it is a Local, a class that files .* call vsc_pyro\.register\(Local\)"):
        rebuilt(Local())
    with pytest.raises(ValueError, match=r"it\.0 is a Plain, .* call vsc_pyro\.register\(Plain\) before"):
        rebuilt(Holder(Plain()))
    early = Plain()
    monkeypatch.setattr(Plain, "__init__", Plain.__init__)
    vsc.register(Plain)
    with pytest.raises(ValueError, match=r"it is a Plain whose arguments are not recorded; .*build it anew"):
        rebuilt(early)
    assert rebuilt(Plain(width=5))[0].layer.weight.shape == (5, 2)
    local = vsc.register(Local)()
    assert type(rebuilt(local)[0]) is Local


def test_names_are_unique(registered):
    with pytest.raises(ValueError, match=r"is that of vsc_pyro\.models\.priors\.dense\.NormalPrior; rename"):
        vsc.register(type("NormalPrior", (vsc.Prior,), {}))
    with pytest.raises(ValueError, match=r"must be a subclass of torch\.nn\.Module, got <class 'int'>"):
        vsc.register(int)
    assert vsc.register(Outer) is Outer


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (3, "it must be a module with a class and arguments, got a int"),
        ({"class": "os.system", "arguments": {"command": "true"}}, r"unknown class os\.system.*vsc_pyro\.register"),
        ({"class": "x" * 999, "arguments": {}}, "unknown class x{80}\\.\\.\\.; "),
        ({"class": ["NormalPrior"]}, "unknown class a list"),
        ({"same_as": "elsewhere"}, "said to be the same as elsewhere, which is not there"),
        ({"class": "NormalPrior", "arguments": [2]}, "arguments of a NormalPrior must be a dict, got a list"),
        ({"class": "NormalPrior", "arguments": {"latent_dim": -1}}, "cannot be built .*: latent_dim must be"),
        ({"class": "NormalPrior", "arguments": {"surprise": 1}}, "cannot be built .* unexpected keyword"),
        ({"class": "NormalPrior", "arguments": {"latent_dim": {"tensor": "it.x"}}}, r"it\.latent_dim is no value"),
        ({"class": "NormalPrior", "arguments": {"latent_dim": {"float": "1"}}}, r"it\.latent_dim is no value"),
        (
            {"class": "NormalPrior", "arguments": {"latent_dim": 2}, "attributes": {"forward": 1}},
            "no attribute forward",
        ),
    ],
)
def test_damaged_descriptions_are_refused(described, message):
    with pytest.raises(ValueError, match=message):
        Builder({}).build(described, "it")
