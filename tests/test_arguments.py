import functools
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro._arguments import bool_or_auto, choice, natural_int, positive_float, positive_int, sizes, takes


def test_good_values_pass_through():
    assert positive_int("n", np.int64(3)) == 3
    assert natural_int("n", np.int64(0)) == 0
    assert positive_float("x", 2) == 2.0
    assert sizes("s", 5) == (5,)
    assert sizes("s", [1, 28, 28]) == (1, 28, 28)
    assert choice("letter", "a", {"a": 1}) == 1


def test_a_shape_has_at_least_one_dimension():
    for build in (lambda: vsc.SpikeSlabEncoder((), 2), lambda: vsc.NormalDecoder(2, ()), lambda: vsc.VSC((), 2)):
        with pytest.raises(ValueError, match=r"put_shape must hold at least one size, got \(\); pass 1"):
            build()


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True])
def test_positive_int_refuses(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got "):
        positive_int("n", value)


@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True])
def test_natural_int_refuses(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 0, got "):
        natural_int("n", value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "3", None, True])
def test_positive_float_refuses(value):
    with pytest.raises(ValueError, match="x must be a finite number above 0, got "):
        positive_float("x", value)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x, False),
        (lambda x, y: x, True),
        (lambda *each: each, True),
        (lambda x, y, *, z: x, False),
        (dict, True),  # no signature
        (vsc.Ramp(0, 1, length=2), False),
        (3, False),
    ],
)
def test_a_function_takes_two_arguments(function, expected):
    assert takes(function, 2) is expected


def test_choice_lists_what_is_known():
    with pytest.raises(ValueError, match="unknown letter 'c'; known are 'a', 'b'"):
        choice("letter", "c", {"b": 1, "a": 2})


def test_yes_no_or_by_itself():
    assert [bool_or_auto("compile", value) for value in (True, False, 1, "auto")] == [True, False, True, "auto"]
    with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
        bool_or_auto("compile", "yes")
    with pytest.raises(ValueError, match=r"compile must be True, False or 'auto', got array\(\[1, 2\]\)"):
        bool_or_auto("compile", np.array([1, 2]))


X = torch.rand(60, 16, generator=torch.Generator().manual_seed(0))
PROGRAM = functools.partial(pyro.sample, "w", dist.Normal(0.0, 1.0))
LINEAR = vsc.VAE(vsc.SpikeSlabEncoder(16, 4), vsc.NormalDecoder(4, 16, hidden=()), vsc.SpikeSlabPrior(4))
ARGUMENTS = {
    "name for a guide": (
        lambda: vsc.to_arviz(PROGRAM, (), guide="auto"),
        "guide must be a Pyro program, .* got 'auto'",
    ),
    "class for a guide": (lambda: vsc.to_arviz(PROGRAM, (), guide=vsc.AutoSpikeSlab), "guide must be .* that is built"),
    "model for a guide": (lambda: vsc.to_arviz(PROGRAM, (), guide=LINEAR), "guide must be a Pyro program"),
    "name for a program": (lambda: vsc.to_arviz("m", (), guide=PROGRAM), "model must be a Pyro program, .* got 'm'"),
    "names of dims": (lambda: vsc.to_arviz(LINEAR, X, coords="abcd"), "coords must map dimensions .* got 'abcd'"),
    "word for a bool": (lambda: vsc.to_arviz(LINEAR, X, prior="no"), "prior must be True or False, got 'no'"),
    "no inference": (lambda: vsc.elpd(LINEAR), "inference must be what to_arviz returned, got a VAE"),
    "posterior": (lambda: vsc.evaluate_dictionary(LINEAR, X, posterior=3), "posterior must be a function .* got 3"),
    "result of a posterior": (
        lambda: vsc.evaluate_dictionary(LINEAR, X, posterior=lambda x: x),
        "posterior must return a distribution, or an object with tensors inclusion and mean, got Tensor",
    ),
    "context": (
        lambda: vsc.evaluate_dictionary(
            vsc.VAE(
                vsc.SpikeSlabEncoder(18, 4),
                vsc.PoissonDecoder(4, 16, hidden=(), num_covariates=2),
                vsc.SpikeSlabPrior(4),
            ),
            vsc.Dataset(torch.ones(60, 16), context=torch.ones(60, 2)),
        ),
        r"a dictionary of shape \(4, 16\), and a datum has 18 values; .* a context, .* vsc_pyro\.evaluate takes them",
    ),
    "no autoencoder": (
        lambda: vsc.evaluate_dictionary(types.SimpleNamespace(W_dec=X[:4]), X),
        "an object with encode, decode and W_dec",
    ),
    "one model": (lambda: vsc.fit_ensemble(LINEAR, X), "models must be a list of VAEs, got a VAE"),
    "names of models": (lambda: vsc.fit_ensemble(["a"], X), "model must be a VAE, got str"),
    "one seed": (lambda: vsc.fit_ensemble([LINEAR], X, seeds=3), "seeds must be one for each of the 1 models, got 3"),
    "bool for a number": (lambda: vsc.refine(LINEAR, X, lr=True), "lr must be a finite number above 0, got True"),
    "number for a bool": (
        lambda: vsc.VAE(LINEAR.encoder, LINEAR.decoder, LINEAR.prior, missing="no"),
        "missing must be True or False, got 'no'",
    ),
    "sizes": (lambda: vsc.SpikeSlabEncoder(torch.tensor(1.0), 4), "input_shape must be a whole number"),
    "weights": (lambda: vsc.save_checkpoint("x.pt", LINEAR), "state must be a dict, got a VAE"),
    "under a file": (lambda: vsc.explore(LINEAR, X, __file__ + "/x.html"), "path .* would lie in .*, which is a file"),
    "plot of no model": (lambda: plots.inclusion_usage("m", X), "model must be a VAE, got str"),
    "plot of another size": (lambda: plots.reconstructions(LINEAR, X[:, :3]), "the encoder does not take data of"),
    "plot of NaN": (lambda: plots.traversals(LINEAR, X * torch.nan), "data holds 960 NaN"),
    "plot of no result": (
        lambda: plots.reliability({"a": 3}),
        r"calibrations\['a'\] must be a Calibration or .* got 3",
    ),
    "one name": (lambda: plots.reconstructions(LINEAR, X, names="gene"), "names must hold one name .* got 'gene'"),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_wrong_arguments_are_named(kind):
    call, message = ARGUMENTS[kind]
    with pytest.raises((ValueError, OSError), match=message):
        call()
