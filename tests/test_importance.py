"""Breadth by graphs that are run as captured, depth by the few that inductor compiles."""

import warnings

import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from problems.pairs import ADMISSIBLE, J, build, covering
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vsc_pyro as vsc
from vsc_pyro.acceleration import BACKENDS, backends
from vsc_pyro.evaluation import importance
from vsc_pyro.evaluation.importance import Chunk, are_worth_compiling, chunk_of, codes_of, log_likelihood_of

CPU = torch.device("cpu")


@pytest.fixture
def captured(monkeypatch):
    """Graphs are run one operation after the other, which needs no compilation; returns how many were captured."""
    count = []
    monkeypatch.setitem(BACKENDS, "inductor", lambda graph, inputs: count.append(inputs) or graph)
    return count


@pytest.fixture
def some(digits):
    """Three batches of data, the last of them smaller, if chunks are of 20 draws and 400 codes."""
    return digits.test.images[:47].round()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(importance, "_ELEMENTS_AT_ONCE", {"cpu": 64 * 400})


def both(model, data, **settings):
    """Eager and compiled; a warning would be an error."""
    return [vsc.evaluate(model, data, **settings, compile=compile).as_dict() for compile in (False, True)]


def assert_equal_but_for_rounding(eager, compiled):
    for name, value in eager.items():
        is_number = isinstance(value, float) or (isinstance(value, list) and all(isinstance(v, float) for v in value))
        close = pytest.approx(value, rel=1e-5, abs=1e-5) if is_number else value
        if name != "advice":  # which says numbers
            assert compiled[name] == close, name


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("encoder_name", "prior_name"), covering(ADMISSIBLE))
def test_captured_chunks_draw_and_weigh_what_eager_ones_do(encoder_name, prior_name, some, captured):
    eager, compiled = both(build(encoder_name, prior_name), some, num_draws=50)  # 20, 20 and 10
    assert_equal_but_for_rounding(eager, compiled)
    assert len(captured) == 1


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("hidden", [(16,), ()], ids=["network", "linear"])
@pytest.mark.parametrize("variance", ["fixed", "per-pixel"])
def test_captured_with_normal_pixels(hidden, variance, some, captured):
    decoder = vsc.NormalDecoder(J, (1, 8, 8), hidden, variance=variance)
    model = vsc.VAE(vsc.SpikeSlabEncoder((1, 8, 8), J, (16,)), decoder, vsc.SpikeSlabPrior(J))
    eager, compiled = both(model, some, num_draws=40)
    assert_equal_but_for_rounding(eager, compiled)
    assert len(captured) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "small_chunks")
@pytest.mark.parametrize(
    ("encoder_name", "prior_name"), [("spike-slab-threshold-normal", "pseudo-input"), ("laplace", "normal-mixture")]
)
def test_compiled_is_eager_but_for_rounding(encoder_name, prior_name, some, capsys):
    model = build(encoder_name, prior_name)
    eager, compiled = both(model, some, num_draws=50, progress=True)
    # A spike whose noise meets its threshold to the last bit may fall on the other side; none of these does.
    assert_equal_but_for_rounding(eager, compiled)
    assert "evaluate, compiled: 100%" in capsys.readouterr().err
    each = [vsc.bounds(model, some, num_draws=50, compile=compile) for compile in (False, True)]
    torch.testing.assert_close(each[1].iwae, each[0].iwae, rtol=1e-5, atol=0)
    torch.testing.assert_close(each[1].elbo, each[0].elbo, rtol=1e-5, atol=0)


def test_the_callers_random_state_is_left(small_vae, some, captured):
    for compile in (False, True):
        torch.manual_seed(3)
        vsc.evaluate(small_vae(), some, num_draws=3, compile=compile)
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        vsc.bounds(small_vae(), some, num_draws=3, compile=compile)
        torch.manual_seed(3)
        assert torch.equal(torch.rand(1), expected)
    assert len(captured) == 2


class Wrong(nn.Module):
    """A decoder of a user's own that cannot be captured."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.inner = vsc.BernoulliDecoder(8, (1, 8, 8), (16,))
        self.calls = 0

    def forward(self, z):
        pixels = self.inner.pixels(z)
        if self.how == "looks" and pixels.mean() > 0:
            pixels = pixels + 1
        if self.how == "counts":
            self.calls += 1
            pixels = pixels + 0.1 * self.calls
        return dist.Bernoulli(logits=pixels, validate_args=False).to_event(3)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("how", "reason"), [("looks", "it looks at the value of a tensor"), ("counts", "captured, it")]
)
def test_what_cannot_be_captured_is_eager_and_says_why(how, reason, some, capsys):
    torch.manual_seed(0)
    model = vsc.VAE(vsc.SpikeSlabEncoder((1, 8, 8), 8, (16,)), Wrong(how), vsc.SpikeSlabPrior(8))
    with pytest.warns(UserWarning, match=f"evaluate is not compiled: {reason}") as caught:
        eager, compiled = both(model, some, num_draws=50, progress=True)
    assert sum("not compiled" in str(warning.message) for warning in caught) == 1
    assert "compiled: 100%" not in capsys.readouterr().err
    if how == "looks":
        assert compiled == eager


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_is_eager_and_says_so(small_vae, some, monkeypatch):
    model = small_vae()
    eager = vsc.evaluate(model, some, num_draws=3).as_dict()
    with pytest.warns(UserWarning, match=r"evaluate is not compiled: inductor did not compile it .*C\+\+ compiler"):
        assert vsc.evaluate(model, some, num_draws=3, compile=True).as_dict() == eager
    monkeypatch.setattr(backends, "COMPILATION", 0.0)  # worth it, however little there is to do
    with pytest.warns(UserWarning, match=r"chunks of draws would be worth compiling, and there is no C\+\+ compiler"):
        assert vsc.evaluate(model, some, num_draws=3).as_dict() == eager


@pytest.mark.usefixtures("compiler")
def test_auto_compiles_long_work_only(small_vae, some, captured, monkeypatch):
    mnist = Chunk(rows=100, draws=20, elements=784)
    assert are_worth_compiling(mnist, 10_000 * 5000, CPU)
    assert not are_worth_compiling(mnist, 10_000 * 100, CPU)
    assert not are_worth_compiling(mnist._replace(elements=64), 10_000 * 2000, CPU)
    vsc.bounds(small_vae(), some, num_draws=3)
    assert not captured
    monkeypatch.setattr(backends, "COMPILATION", 0.0)
    vsc.bounds(small_vae(), some, num_draws=3)
    assert len(captured) == 1


def test_a_bad_value_of_compile(small_vae, some):
    for function in (vsc.evaluate, vsc.bounds):
        with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
            function(small_vae(), some, compile="yes")


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))])
        return result


def of_pseudo_inputs():
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 8, (16,))
    return vsc.VAE(encoder, vsc.BernoulliDecoder(8, (1, 8, 8), (16,)), vsc.PseudoInputPrior(encoder, 200, hidden=()))


def of_wide_layers():
    encoder, decoder = vsc.SpikeSlabEncoder((1, 8, 8), 8, (16,)), vsc.BernoulliDecoder(8, (1, 8, 8), (2000,))
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(8))


@pytest.mark.parametrize(("make", "elements"), [(of_pseudo_inputs, 1600), (of_wide_layers, 2000)])
@pytest.mark.parametrize("num_draws", [1, 105])
def test_no_tensor_outgrows_its_bound(make, elements, num_draws, digits, monkeypatch):
    bound = 150_000  # above the weights of the wide layers, 128,000 elements
    monkeypatch.setattr(importance, "_ELEMENTS_AT_ONCE", {"cpu": bound})
    monkeypatch.setattr(
        "vsc_pyro.evaluation.evaluate._with_survey", lambda result, *_, **__: result
    )  # has a bound of its own
    model = make()
    with Largest() as largest:
        vsc.evaluate(model, digits.test[:60], num_draws=num_draws)
    assert largest.size <= bound
    assert largest.size >= elements * (7 if num_draws == 1 else 60)  # and chunks are about as large as it allows


def test_chunks_follow_the_size_of_a_code():
    def chunk(pixels, num_draws=5000):
        model = vsc.VAE(vsc.NormalEncoder(pixels, 3, ()), vsc.NormalDecoder(3, pixels, (5,)), vsc.NormalPrior(3))
        with model.evaluating():
            return chunk_of(model, torch.zeros(1, pixels), num_draws, 10)

    assert chunk(784) == (100, 20, 784)
    assert chunk(784, num_draws=3) == (200, 3, 784)
    assert chunk(100_000) == (1, 15, 100_000)
    assert chunk(2_000_000) == (1, 1, 2_000_000)


@pytest.mark.usefixtures("small_chunks")
def test_weights_of_a_model_whose_evidence_is_known(some):
    r"""Codes that do not depend on the datum, from their prior: weights are likelihoods."""
    model = vsc.VAE(vsc.NormalEncoder((1, 8, 8), 2, ()), vsc.BernoulliDecoder(2, (1, 8, 8), (4,)), vsc.NormalPrior(2))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
        model.decoder.network[0].weight.zero_()  # nor does the datum on the code
    result = vsc.bounds(model, some, num_draws=30)
    with model.evaluating():
        codes = codes_of(model, some)
        evidence = log_likelihood_of(model, some, codes.posterior.sample())
    # The encoder's scale is above 1 by its floor of 0.0001.
    torch.testing.assert_close(result.iwae.float(), evidence, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(result.elbo.float(), evidence, rtol=1e-4, atol=1e-3)


def test_many_draws_in_chunks_are_those_of_one(small_vae, some, monkeypatch):
    model = small_vae()

    def over_seeds():
        return torch.stack([vsc.bounds(model, some, num_draws=20, seed=seed).iwae.mean() for seed in range(15)])

    whole = over_seeds()
    monkeypatch.setattr(importance, "_ELEMENTS_AT_ONCE", {"cpu": 64 * 30})
    parts = over_seeds()
    assert_mean_equals(whole - parts, 0.0)
    assert not torch.equal(whole, parts)


def test_the_bar_counts_draws(small_vae, some, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vsc.bounds(small_vae(), some, num_draws=50, progress=True)
    assert "2.35k/2.35k" in capsys.readouterr().err
