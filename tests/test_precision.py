import contextlib
import functools
import warnings

import pyro
import pytest
import torch
from problems.captured import captured_like_eager, of_vae
from problems.pairs import ADMISSIBLE, build, covering
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI
from vsc_pyro.models.precision import networks_in, run_network
from vsc_pyro.objectives import get_objective

QUIET = {"progress": False, "device": "cpu"}


def step(vae, x):
    """The loss of a step of always the same random numbers."""
    torch.manual_seed(1)
    vae.zero_grad()
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the KL divergence at site 'z' has no closed form and is sampled")
        return get_objective("analytic").loss_and_grads(vae.model, vae.guide, x)


def types_in_layers(vae):
    """A set that the types which the networks' layers put out are added to from now on."""
    types = set()
    for module in vae.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
    return types


def convolutional():
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 5, trunk=vsc.ConvTrunk((1, 8, 8), (4, 8), 16))
    decoder = vsc.BernoulliDecoder(5, (1, 8, 8), trunk=vsc.DeconvTrunk((1, 8, 8), (8, 4), 16))
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(5))


MODELS = [functools.partial(build, *pair[:2]) for pair in covering(ADMISSIBLE)] + [convolutional]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: "-".join(getattr(make, "args", ["convolutional"])))
def test_networks_alone_run_in_bfloat16(make, digits):
    x = digits.train.images[:40].round()
    vae = make()
    types = types_in_layers(vae)
    expected = step(vae, x)
    assert types == {torch.float32}
    types.clear()
    with networks_in(vae, "bfloat16"):
        loss = step(vae, x)
        posterior = vae.encoder(x)
        z = posterior.sample()
        others = [z, posterior.log_prob(z), vae.decoder(z).log_prob(x), loss]
        others += [p.grad for p in vae.parameters() if p.grad is not None]
    assert types == {torch.bfloat16}
    assert {tensor.dtype for tensor in others if tensor.dtype != torch.bool} == {torch.float32}
    # The same random numbers: what is left is the rounding of activations, to one part in 256.
    assert loss != expected
    assert abs(loss - expected) < 0.01 * abs(expected)
    types.clear()
    assert step(vae, x) == expected
    assert types == {torch.float32}


@pytest.mark.parametrize("make", [functools.partial(build, "spike-slab", "pseudo-input"), convolutional])
def test_casts_are_captured(make, digits):
    def of_half(cls):
        vae = make()
        stack.enter_context(networks_in(vae, "bfloat16"))
        types.append(types_in_layers(vae))
        return of_vae(lambda: vae, lambda: get_objective("analytic"), cls)

    types = []
    with contextlib.ExitStack() as stack:
        captured_like_eager(of_half, 3 * [(digits.train.images[:40].round(),)], rtol=1e-3, atol=1e-3)
    assert types == 2 * [{torch.bfloat16}]


@pytest.mark.parametrize("compile", [False, True])
def test_fit_trains_in_bfloat16_and_leaves_the_model_in_float32(small_vae, digits, compile, monkeypatch, tmp_path):
    monkeypatch.setattr("vsc_pyro.training.loop.CompiledSVI", functools.partial(CompiledSVI, backend="eager"))
    vae = small_vae()
    types = types_in_layers(vae)
    path = tmp_path / "c.pt"
    settings = {"epochs": 2, "compile": compile, "checkpoint": path, **QUIET}
    history = vsc.fit(vae, digits.train, precision="bfloat16", **settings)
    assert history.compiled == compile
    assert torch.bfloat16 in types
    state = vsc.load_checkpoint(path)
    moments = [value for values in state["optimizer"]["state"].values() for value in values.values()]
    assert {tensor.dtype for tensor in (*moments, *state["model"].values()) if tensor.dtype != torch.bool} == {
        torch.float32
    }
    types.clear()
    vsc.evaluate(vae, digits.test[:50], num_draws=2)
    assert types == {torch.float32}
    with pytest.raises(ValueError, match=r"precision=bfloat16 \(now float32\)"):
        vsc.fit(small_vae(), digits.train, resume=True, **settings)


@pytest.mark.slow
def test_the_final_bound_is_that_of_float32(small_vae, digits):
    def bound(seed, precision):
        vae = small_vae(seed=seed)
        settings = {"epochs": 10, "batch_size": 100, "lr": 4e-3, "seed": seed, "precision": precision}
        vsc.fit(vae, digits.train, **settings, **QUIET)
        return vsc.evaluate(vae, digits.test, num_draws=10).elbo

    bounds = torch.tensor([[bound(seed, precision) for precision in ("float32", "bfloat16")] for seed in range(4)])
    # Training takes another course from the first rounding on; seeds differ by as much.
    assert abs((bounds[:, 1] - bounds[:, 0]).mean()) < 0.2
    assert bounds.min() > -30


def test_a_linear_normal_decoder_stays_in_float32(digits):
    decoder = vsc.NormalDecoder(4, 64, hidden=(), scale=0.3)
    vae = vsc.VAE(vsc.SpikeSlabEncoder(64, 4, (16,)), decoder, vsc.SpikeSlabPrior(4))
    types = types_in_layers(vae)
    data = digits.train.images[:100].flatten(1)
    history = vsc.fit(vae, data, objective="exact", epochs=3, lr=1e-2, precision="bfloat16", **QUIET)
    assert history.elbo[-1] > history.elbo[0]
    assert torch.bfloat16 in types
    assert decoder.network[0].weight.dtype == torch.float32


class OwnDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(4, 64)

    def forward(self, z):
        return pyro.distributions.Bernoulli(logits=self.network(z)).to_event(1)


class OwnHalfDecoder(OwnDecoder):
    network_precision = "float32"

    def forward(self, z):
        logits = run_network(self.network, z, self.network_precision)
        return pyro.distributions.Bernoulli(logits=logits).to_event(1)


def test_parts_of_ones_own(digits):
    data = digits.train.images[:100].flatten(1).round()
    own, half = (
        vsc.VAE(vsc.NormalEncoder(64, 4), part, vsc.NormalPrior(4)) for part in (OwnDecoder(), OwnHalfDecoder())
    )
    types = types_in_layers(half.decoder)
    vsc.fit(half, data, epochs=1, precision="bfloat16", **QUIET)
    assert torch.bfloat16 in types
    assert half.decoder.network_precision == "float32"
    with pytest.raises(ValueError, match=r"with an attribute network_precision, and OwnDecoder has none"):
        vsc.fit(own, data, epochs=1, precision="bfloat16", **QUIET)


def test_bad_precisions(small_vae, digits):
    with pytest.raises(ValueError, match="unknown precision 'float16'; known are 'auto', 'bfloat16', 'float32'"):
        vsc.fit(small_vae(), digits.train, precision="float16", **QUIET)
    with pytest.raises(
        ValueError, match=r"needs a model whose parameters are float32, got torch.float64; call model.fl"
    ):
        vsc.fit(small_vae().double(), digits.train, precision="bfloat16", **QUIET)


def test_a_warmup_from_nothing_in_float16():
    elbos = []
    for convert in (vsc.VAE.float, vsc.VAE.half):
        torch.manual_seed(0)
        model, x = convert(vsc.SparseDictionary(6, 8, expected_active=2)), torch.randn(64, 6)
        history = vsc.fit(model, x, steps=20, batch_size=32, **QUIET)
        assert history.warmup_steps == 4
        elbos.append(history.elbo)
    assert elbos[1] == pytest.approx(elbos[0], rel=5 * torch.finfo(torch.float16).eps)
