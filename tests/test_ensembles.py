import contextlib

import numpy as np
import pyro
import pytest
import torch
from conftest import assert_mean_equals
from torch import nn
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro.acceleration import BACKENDS, missing_compiler
from vsc_pyro.acceleration.fit_ensemble import fit_ensemble
from vsc_pyro.acceleration.mapped_graph import StepRecorder, record_stacked
from vsc_pyro.acceleration.recorder import NotCapturedError
from vsc_pyro.gates import BinaryConcrete
from vsc_pyro.objectives import get_objective
from vsc_pyro.training.schedules import Ramp

QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture
def some(digits):
    """Few of the digits, in three batches of 100."""
    return digits.train[:300]


def autoencoder(seed=0, scale=1.0, beta=1.0):
    """Draws nothing but its data, so that an ensemble's weights are those of single fits but for rounding."""
    torch.manual_seed(seed)
    encoder = vsc.DeltaEncoder((1, 8, 8), 6, (16,))
    decoder = vsc.BernoulliDecoder(6, (1, 8, 8), (16,))
    return vsc.VAE(encoder, decoder, vsc.LaplacePrior(6, scale), beta=beta).double()


def with_pseudo_inputs(seed=0):
    torch.manual_seed(seed)
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 8, (32,))
    prior = vsc.PseudoInputPrior(encoder, 5, hidden=(16,))
    return vsc.VAE(encoder, vsc.BernoulliDecoder(8, (1, 8, 8), (32,)), prior)


def flagship(seed=0):
    """A `VSC` with all of its defaults but sizes."""
    torch.manual_seed(seed)
    return vsc.VSC((1, 8, 8), 8, num_pseudo_inputs=5, hidden=(32,))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def with_scalars(seed=0):
    """Draws nothing but its data, and has parameters of dimension 0 in all its parts, and buffers."""
    torch.manual_seed(seed)
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 6, (16,))
    encoder.register_buffer("weight", torch.tensor(1.0 + seed))
    encoder.register_parameter("gain", nn.Parameter(torch.tensor(1.0)))
    encoder.register_forward_pre_hook(lambda encoder, inputs: inputs[0] * encoder.weight * encoder.gain)
    decoder = vsc.NormalDecoder(6, (1, 8, 8), (), variance="shared")
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(6, learn_inclusion="global")).double()


def assert_like_single_fits(make, data, seeds=(0, 1), **settings):
    """`make` of each position is trained by `fit` to the weights that it is trained to with the others, returned."""
    settings = {"epochs": 3, "batch_size": 100, "lr": 3e-3, "compile": False} | settings | QUIET
    together, alone = ([make(index) for index in range(len(seeds))] for _ in range(2))
    histories = fit_ensemble(together, data, seeds=seeds, **settings)
    for model, twin, seed, history in zip(together, alone, seeds, histories, strict=True):
        start = weights(twin)
        expected = vsc.fit(twin, data, seed=seed, **settings)
        torch.testing.assert_close(weights(model), weights(twin), rtol=1e-6, atol=1e-8)
        assert not torch.equal(start["encoder.network.1.weight"], twin.encoder.network[1].weight)
        assert history.elbo == pytest.approx(expected.elbo, rel=1e-8)
        assert len(history.seconds) == settings["epochs"]
        assert history.compiled == settings["compile"]
        assert model.num_data == len(data)
    assert len({history.elbo[-1] for history in histories}) == len(seeds)
    return together


# The same as single fits ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_draws_no_noise_ends_in_the_weights_of_single_fits_also_with_a_last_batch_that_is_smaller(digits):
    assert digits.train.binarize == "dynamic"
    assert_like_single_fits(autoencoder, digits.train[:523], seeds=(5, 0, 3))


@pytest.mark.slow
def test_compiled(some):
    if missing := missing_compiler(torch.device("cpu")):
        pytest.skip(missing)
    assert_like_single_fits(lambda index: autoencoder(index, beta=1.0 + index), some, compile=True)


def test_statistics_of_a_batch_norm_and_what_is_not_trained(some):
    def make(seed):
        model = autoencoder(seed)
        model.encoder.network.insert(2, nn.BatchNorm1d(16).double())
        # The gradient of a bias before a batch norm is zero but for rounding, of which Adam would make steps.
        model.encoder.network[1].bias.requires_grad_(False)
        return model

    assert_like_single_fits(make, some)


@pytest.mark.slow
def test_numbers_and_buffers_of_its_own_and_schedules_of_all(some):
    def make(index):
        model = autoencoder(beta=(1.0, 8.0)[index])
        model.decoder.register_buffer("weight", torch.tensor((1.0, 0.2)[index]).double())
        model.decoder.register_forward_pre_hook(lambda decoder, inputs: inputs[0] * decoder.weight)
        return model

    assert_like_single_fits(make, some, seeds=(0, 0))
    schedule = {"beta": Ramp(0.1, 3.0, 2, 9), "decoder.weight": Ramp(0.5, 1.0, 0, 7)}
    models = [make(0), make(1)]
    fit_ensemble(models, some, epochs=4, batch_size=100, seeds=(0, 1), schedules=schedule, compile=False, **QUIET)
    for model, seed in zip(models, (0, 1), strict=True):
        twin = make(seed)
        vsc.fit(twin, some, epochs=4, batch_size=100, seed=seed, schedules=schedule, **QUIET)
        torch.testing.assert_close(weights(model), weights(twin), rtol=1e-6, atol=1e-8)
        assert model.beta == twin.beta == 3.0


def test_parameters_of_dimension_0(some):
    def scalars(model):
        return torch.stack([model.decoder.amplitude, model.encoder.gain, model.prior.inclusion_logits]).detach()

    for model in assert_like_single_fits(with_scalars, some, objective="exact", lr=0.1):
        assert ((scalars(model) - scalars(with_scalars())).abs() > 0.05).all()


@pytest.mark.slow
def test_a_parameter_of_dimension_0_that_is_not_finite_is_named_with_its_model(some):
    models = [with_scalars(seed) for seed in range(2)]
    for model, value in zip(models, (1.0, np.inf), strict=True):
        model.prior.spare = nn.Parameter(torch.tensor(value))  # reached by no loss, which would tell first
    with pytest.raises(vsc.NonFiniteLossError, match=r"models\[1\], of seed 1: prior.spare became NaN or infinite"):
        fit_ensemble(models, some[:50], epochs=1, objective="exact", **QUIET)


@pytest.mark.slow
def test_pseudo_inputs_start_where_they_do_in_a_fit(some):
    models = [with_pseudo_inputs(), with_pseudo_inputs()]
    settings = {"epochs": 1, "lr": 1e-9} | QUIET
    fit_ensemble(models, some[:50], seeds=(3, 4), compile=False, **settings)
    for model, seed in zip(models, (3, 4), strict=True):
        twin = with_pseudo_inputs()
        vsc.fit(twin, some[:50], seed=seed, **settings)
        torch.testing.assert_close(model.prior.pseudo_inputs, twin.prior.pseudo_inputs)
    assert not torch.allclose(*(model.prior.pseudo_inputs for model in models), atol=0.1)


@pytest.mark.slow
def test_a_vsc_by_default_is_trained_together_with_others(some):
    models = [flagship(), flagship(1)]
    histories = fit_ensemble(models, some, epochs=2, batch_size=100, compile=False, **QUIET)
    for seed, (model, history) in enumerate(zip(models, histories, strict=True)):
        twin = flagship(seed)
        expected = vsc.fit(twin, some, epochs=2, batch_size=100, seed=seed, **QUIET)
        assert history.elbo == pytest.approx(expected.elbo, abs=0.1)  # the noise of codes is another
        assert model.prior.prepared


def stacked_and_single(model, x, objective, count=200):
    """Losses and gradients of so many copies of a model in one step, and of as many steps of the model, as rows."""
    parameters = list(model.parameters())
    draws_at_once = getattr(getattr(model.encoder, "gate", None), "draws_at_once", 1)
    loss = get_objective(objective, draws_at_once=draws_at_once)
    recording = StepRecorder(model, parameters, loss).record(x)
    inputs = [tensor.detach().expand(count, *tensor.shape).clone() for tensor in (x, *recording.inputs)]
    graph, others = record_stacked(recording.graph, inputs)
    with torch.no_grad():
        stacked = graph(*inputs, *others)
        single = [recording.graph(x, *recording.inputs) for _ in range(count)]
    return (
        torch.cat([value.reshape(count, -1) for value in stacked], 1),
        torch.stack([torch.cat([value.flatten() for value in values]) for values in single]),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "objective"),
    [
        ("concrete", "analytic"),
        ("straight-through", "trace"),
        ("score", "analytic"),
        ("score", "importance-weighted"),
        ("shifted-sigmoid", "trace"),
        ("disarm", "analytic"),
        ("vsc", "analytic"),
        ("hyperprior", "analytic"),
    ],
)
def test_a_stacked_step_is_in_distribution_that_of_one_model(small_vae, digits, gate, objective):
    own = {
        "vsc": flagship,
        "hyperprior": lambda: small_vae(learn_inclusion="global", hyperprior=(1.0, 9.0)),
    }
    model = (own[gate]() if gate in own else small_vae(gate)).double()
    stacked, single = stacked_and_single(model, digits.train.images[:8].round().double(), objective)
    assert len(stacked[:, 0].unique()) == len(stacked)  # no two models have the same noise
    # Sums over parts of the weights: of one alone, a draw in hundreds may be all there is to compare.
    parts = torch.arange(single.shape[1]) * 20 // single.shape[1]
    sums = torch.zeros(len(single), 20, dtype=torch.float64).index_add_(1, parts, stacked - single)
    assert_mean_equals(torch.cat([stacked[:, :1] - single[:, :1], sums], 1), 0.0)
    spreads = [(losses - losses.mean()).square() for losses in (stacked[:, :1], single[:, :1])]
    assert_mean_equals(spreads[0] - spreads[1], 0.0)


@pytest.mark.slow
def test_seeds_inclusion_beta_and_temperature_do_what_they_do_in_single_fits(small_vae, digits):
    def make():
        changed = [small_vae(inclusion=0.6), small_vae(), small_vae(BinaryConcrete(0.05))]
        changed[1].beta = 6.0
        models = [*(small_vae(seed=seed) for seed in range(3)), *changed]
        for model in models:  # which do not start at the data's mean, and have far to go
            model.decoder.prepared.fill_(True)
            model.encoder.prepared.fill_(True)
        return models

    seeds, settings = [0, 1, 2, 0, 0, 0], {"epochs": 4, "batch_size": 200, "lr": 6e-3} | QUIET
    together, alone = make(), make()
    histories = fit_ensemble(together, digits.train, seeds=seeds, **settings)
    expected = [vsc.fit(model, digits.train, seed=seed, **settings) for model, seed in zip(alone, seeds, strict=True)]
    got, expected = ([history.elbo[-1] for history in found] for found in (histories, expected))
    np.testing.assert_allclose(got, expected, atol=0.35)
    assert got[3] > got[0] + 0.6 > got[4] + 1.2
    assert [model.beta for model in together] == [1.0, 1.0, 1.0, 1.0, 6.0, 1.0]
    assert together[5].encoder.gate.temperature == torch.tensor(0.05)
    torch.testing.assert_close(together[3].prior.inclusion_probs, torch.full((8,), 0.6))
    bounds = [[vsc.evaluate(m, digits.test, num_draws=5).elbo for m in models[:3]] for models in (together, alone)]
    np.testing.assert_allclose(*bounds, atol=0.6)


# What belongs to the caller -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_state_modes_and_store_are_left_and_noise_is_each_models_own(small_vae, some):
    torch.manual_seed(7)
    expected = torch.rand(1)
    runs = []
    for _ in range(2):
        models = [small_vae(), small_vae()]
        models[0].decoder.eval()
        torch.manual_seed(7)
        fit_ensemble(models, some[:100], epochs=2, seeds=(3, 3), **QUIET)
        assert torch.equal(torch.rand(1), expected)
        assert not models[0].decoder.network.training
        assert models[1].decoder.network.training
        runs.append([weights(model) for model in models])
    assert len(pyro.get_param_store()) == 0
    torch.testing.assert_close(*runs, rtol=0, atol=0)
    first, second = runs[0]
    assert all(not torch.equal(first[name], second[name]) for name in first if "network" in name)


def test_one_model_one_batch_and_the_bar(small_vae, some, capsys):
    (history,) = fit_ensemble([small_vae()], some[:7], epochs=2, batch_size=100, device="cpu")
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert f"objectives={history.elbo[1]:.2f} to {history.elbo[1]:.2f}" in shown


@pytest.mark.slow
def test_a_model_that_diverges_is_named_and_leaves_the_others(some):
    def grow(decoder, inputs):
        return inputs[0] * (decoder.factor.mul_(decoder.rate) if decoder.training else decoder.factor)

    def make(rate):
        models = [autoencoder(seed).float() for seed in range(3)]
        for index, model in enumerate(models):
            model.decoder.register_buffer("factor", torch.ones(()))
            model.decoder.register_buffer("rate", torch.tensor(rate if index == 1 else 1.0))
            model.decoder.register_forward_pre_hook(grow)
        return models

    settings = {"batch_size": 100, "seeds": (4, 5, 6)} | QUIET
    healthy, ill = make(1.1), make(1e13)
    fit_ensemble(healthy, some, epochs=1, **settings)
    assert [float(model.decoder.factor) for model in healthy] == pytest.approx([1.0, 1.1**3, 1.0])
    with pytest.raises(
        vsc.NonFiniteLossError, match=r"models\[1\], of seed 5: the loss became .* at step [23] of epoch 1"
    ):
        fit_ensemble(ill, some, epochs=9, **settings)
    for index in (0, 2):
        torch.testing.assert_close(weights(ill[index]), weights(healthy[index]), rtol=0, atol=0)
    assert not all(parameter.isfinite().all() for parameter in ill[1].parameters())
    with pytest.raises(
        vsc.NonFiniteLossError, match=r"models\[0\], of seed 0: encoder\S+ became NaN or infinite in epoch 1"
    ):
        fit_ensemble([autoencoder().float()], some[:50], epochs=1, lr=1e39, **QUIET)


# Refusals -------------------------------------------------------------------------------------------------------------


def looks_at_values(model):
    model.decoder.register_forward_hook(lambda module, inputs, output: output if output.mean.sum() > 0 else None)
    return model


class Sorted(nn.Module):
    """An operation that cannot be mapped."""

    def forward(self, x):
        return x * torch.unique(x.detach()).numel()


def cannot_be_mapped(model):
    model.decoder.network.insert(1, Sorted())
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda vae: [], "models must hold at least one model, got none"),
        (
            lambda vae: [vae(), vae(latent_dim=9)],
            r"encoder.network.3.weight of models\[1\] is a parameter of shape \(27,",
        ),
        (lambda vae: [vae(), autoencoder()], r"encoder of models\[1\] is a DeltaEncoder, of models\[0\] a SpikeSlab"),
        (lambda vae: [vae(), vae().double()], r"models\[1\] is .* type torch.float64, of models\[0\] .* torch.float32"),
        (lambda vae: [vae(), vae().requires_grad_(False)], r"models\[1\] is a parameter that is not trained"),
        (lambda vae: [vae(), vae(learn_inclusion=True)], r"prior.inclusion_logits of models\[1\] is a parameter"),
        (
            lambda vae: [vae(), vae("score")],
            r"encoder.gate of models\[1\] is a ScoreFunction, of models\[0\] a BinaryConcrete",
        ),
        (lambda vae: [vae(), vae(BinaryConcrete(hard=False))], r"encoder.gate.hard=False \(models\[0\]: True\); only"),
        (lambda vae: [autoencoder(), autoencoder(scale=2.0)], r"prior.scale=2.0 \(models\[0\]: 1.0\)"),
        (lambda vae: 2 * [vae()], r"must not share tensors, and \S+ of models\[1\] is that of models\[0\]"),
        (lambda vae: [vae().requires_grad_(False)], "no parameter that requires a gradient"),
        (lambda vae: [looks_at_values(vae())], "cannot be trained together: it looks at the value of a tensor"),
        (
            lambda vae: [cannot_be_mapped(vae())],
            "cannot be trained together: .*; train them one after the other by fit",
        ),
    ],
)
def test_models_that_cannot_be_trained_together(small_vae, some, make, message):
    models = make(small_vae)
    before = [weights(model) for model in models]
    with pytest.raises(ValueError, match=message):
        fit_ensemble(models, some, epochs=1, **QUIET)
    torch.testing.assert_close([weights(model) for model in models], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"lr": -1.0}, "lr must be a finite number above 0"),
        ({"seeds": (1,)}, "seeds must be one for each of the 2 models, got 1"),
        ({"seeds": (1, -1)}, "seeds must be a whole number of at least 0, got -1"),
        ({"objective": "elbo"}, "unknown objective 'elbo'"),
        ({"compile": "inductor"}, "compile must be True, False or 'auto', got 'inductor'"),
        ({"schedules": {"gamma": Ramp(0, 1)}}, "schedules names 'gamma'"),
        ({"device": "tpu9"}, "device 'tpu9' is not available"),
        ({"data": torch.full((5, 64), float("nan"))}, "NaN or infinite"),
        ({"data": DataLoader(torch.zeros(5, 64))}, "data must be in memory"),
    ],
)
def test_bad_arguments(small_vae, some, arguments, message):
    models = [small_vae(), small_vae()]
    with pytest.raises(ValueError, match=message):
        fit_ensemble(models, **({"data": some} | QUIET | arguments))


def test_what_fit_looks_at_beforehand(small_vae, some):
    model = autoencoder()
    model.encoder.network.insert(2, nn.BatchNorm1d(16).double())
    with pytest.raises(ValueError, match="batch_size=50 leaves a last batch of one of the 51 data"):
        fit_ensemble([model], some[:51], batch_size=50, **QUIET)
    model = small_vae()
    model.encoder.slab_weight.fill_(0.5)
    with pytest.warns(UserWarning, match=r"encoder.slab_weight is 0.5, left by a slab warm-up") as caught:
        fit_ensemble([model], some[:50], epochs=1, **QUIET)
    assert caught[0].filename == __file__


def test_without_a_compiler(small_vae, some, monkeypatch):
    monkeypatch.setattr(
        "vsc_pyro.acceleration.fit_ensemble.missing_compiler", lambda device: "there is no C++ compiler"
    )
    with pytest.raises(ValueError, match="compile=True, and there is no C\\+\\+ compiler; compile=False needs none"):
        fit_ensemble([small_vae()], some, compile=True, **QUIET)


def failing(*_):
    raise NotCapturedError("inductor did not compile it")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (failing, "inductor did not compile it"),
        (lambda graph, _: lambda *tensors: [7 * value for value in graph(*tensors)], "compiled, it gives something"),
    ],
    ids=["fails", "is wrong"],
)
def test_where_compiling_fails_the_step_is_as_recorded(small_vae, some, monkeypatch, backend, reason):
    monkeypatch.setitem(BACKENDS, "inductor", backend)
    histories = []
    for compile in (True, False):
        with pytest.warns(UserWarning, match=reason) if compile else contextlib.nullcontext():
            histories.append(fit_ensemble([small_vae()], some, epochs=2, compile=compile, **QUIET)[0])
    assert histories[0].elbo == histories[1].elbo
    assert not histories[0].compiled
    assert histories[0].compile_seconds > 0


def test_refused_models_are_as_they_were(some):
    models = [with_pseudo_inputs(seed) for seed in range(2)]
    models[1].decoder.register_forward_hook(lambda module, args, out: out if out.mean.mean() > 0 else None)
    models[0].beta = 0.7
    before = [weights(model) for model in models]
    with pytest.raises(ValueError, match="cannot be trained together: it looks at the value of a tensor"):
        fit_ensemble(models, some, epochs=2, schedules={"beta": Ramp(0.1, 1, 0, 4)}, **QUIET)
    torch.testing.assert_close([weights(model) for model in models], before, rtol=0, atol=0)
    assert [model.beta for model in models] == [0.7, 1.0]
    expected = with_pseudo_inputs()
    expected.beta = 0.7
    vsc.fit(expected, some, epochs=1, **QUIET)
    vsc.fit(models[0], some, epochs=1, **QUIET)  # as the message advises
    torch.testing.assert_close(weights(models[0]), weights(expected), rtol=0, atol=0)
