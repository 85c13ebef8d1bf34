"""Breadth by graphs that are run as captured (`backend="eager"`), depth by the few that inductor compiles."""

import functools
import os
import random
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems.captured import captured_like_eager, of_vae, steps
from problems.pairs import ADMISSIBLE, build, covering
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI, backends, compiled_svi
from vsc_pyro.gates import GATES, BinaryConcrete
from vsc_pyro.objectives import get_objective
from vsc_pyro.training.schedules import Ramp, set_values
from vsc_pyro.training.svi import SVI

QUIET = {"progress": False, "device": "cpu"}
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture
def batch(digits):
    return (digits.train.draw(slice(40)).round(),)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder_name", "prior_name"), covering(ADMISSIBLE))
def test_every_encoder_and_every_prior(encoder_name, prior_name, batch):
    make = functools.partial(
        of_vae, lambda: build(encoder_name, prior_name), lambda: vsc.AnalyticELBO(max_plate_nesting=1)
    )
    captured_like_eager(make, [batch])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "objective"),
    [
        *((gate, "analytic") for gate in GATES),
        *((gate, objective) for gate in ("concrete", "score") for objective in ("trace", "stock")),
        ("disarm", "stock"),
        ("score", "importance-weighted"),
    ],
)
def test_every_gate_and_objective(small_vae, batch, gate, objective):
    draws = 2 if gate == "disarm" else 1

    def loss():
        if objective == "stock":
            return Trace_ELBO(num_particles=draws, vectorize_particles=draws > 1, max_plate_nesting=1)
        return get_objective(objective, draws_at_once=draws)

    captured_like_eager(functools.partial(of_vae, lambda: small_vae(gate), loss), 2 * [batch])


@pytest.mark.parametrize("assignment", ["bound", "optimal", "paper"])
def test_variational_sparse_coding_with_its_sparsity_term(batch, assignment):
    def make_vae():
        torch.manual_seed(0)
        vae = vsc.VSC((1, 8, 8), 8, num_pseudo_inputs=5, hidden=(16,), assignment=assignment)
        vae.prior.prepare(batch[0])
        return vae

    captured_like_eager(functools.partial(of_vae, make_vae, lambda: get_objective("analytic")), 2 * [batch])


def test_nothing_sampled_and_inclusion_with_a_posterior(batch):
    def make_vae():
        torch.manual_seed(0)
        decoder = vsc.NormalDecoder(8, (1, 8, 8), hidden=(), variance="per-pixel")
        prior = vsc.SpikeSlabPrior(8, learn_inclusion=True, hyperprior=(1.0, 9.0))
        return vsc.VAE(vsc.SpikeSlabEncoder((1, 8, 8), 8, (32,)), decoder, prior)

    make = functools.partial(of_vae, make_vae, lambda: get_objective("exact"))
    captured_like_eager(make, 2 * [batch])


def test_batches_of_any_size_and_statistics_of_a_batch_norm(small_vae, digits):
    def make_vae():
        vae = small_vae()
        vae.encoder.network.insert(2, nn.BatchNorm1d(32))
        return vae

    vaes = []
    make = functools.partial(of_vae, lambda: vaes.append(make_vae()) or vaes[-1], lambda: get_objective("analytic"))
    batches = [(digits.train.images[:size].round(),) for size in (40, 40, 7, 40)]
    captured_like_eager(make, batches)
    eager, captured = (dict(vae.named_buffers()) for vae in vaes)
    torch.testing.assert_close(captured, eager)
    assert captured["encoder.network.2.num_batches_tracked"] == 4


def test_a_buffer_that_a_step_updates_and_depends_on(small_vae, batch):
    def make_vae():
        vae = small_vae()
        vae.decoder.register_buffer("factor", torch.ones(()))
        vae.decoder.register_forward_pre_hook(lambda decoder, inputs: inputs[0] * decoder.factor.mul_(1.5))
        return vae

    captured_like_eager(functools.partial(of_vae, make_vae, lambda: get_objective("analytic")), 3 * [batch])


def test_scheduled_values_are_read_in_every_step_from_one_graph(small_vae, batch):
    schedules = {
        "beta": Ramp(0, 2, 1, 4),
        "encoder.slab_weight": Ramp(0, 1, 0, 6),
        "encoder.gate.temperature": Ramp(1, 0.3, 0, 6),
    }
    losses, graphs = [], []
    for cls in (SVI, functools.partial(CompiledSVI, backend="eager")):
        vae = small_vae()
        svi = of_vae(lambda vae=vae: vae, lambda: get_objective("analytic"), cls)
        with pyro.get_param_store().scope():
            for step in range(6):
                set_values(vae, schedules, step)
                losses.append(steps(svi, [batch], seed=step))
        assert vae.encoder.gate.temperature == pytest.approx(schedules["encoder.gate.temperature"](5))
        assert vae.beta == 2
        graphs.append(len(getattr(svi, "_graphs", ())))
    torch.testing.assert_close(losses[6:], losses[:6])
    assert graphs == [0, 1]


@pytest.mark.slow
def test_what_changes_without_being_named_is_captured_again(small_vae, batch):
    def change(vae):
        yield
        vae.beta = 3.0
        yield
        vae.encoder.gate = BinaryConcrete(0.2)
        yield
        vae.eval()
        yield
        vae.decoder.requires_grad_(False)
        yield

    results = []
    for cls in (SVI, functools.partial(CompiledSVI, backend="eager")):
        vae = small_vae("shifted-sigmoid")
        svi = of_vae(lambda vae=vae: vae, lambda: get_objective("analytic"), cls)
        with pyro.get_param_store().scope():
            results.append([steps(svi, 2 * [batch]) for _ in change(vae)])
    torch.testing.assert_close(results[1], results[0])
    assert not svi.is_eager
    assert len(svi.graphs()) == 3  # beta is read anew, and a gate of other parts makes the graphs before it useless


def swap_prior(vae, loss):
    vae.prior = vsc.SpikeSlabPrior(8, inclusion=0.6)


def swap_layer(vae, loss):
    torch.manual_seed(3)
    vae.decoder.network[0] = nn.Linear(8, 32)


def more_particles(vae, loss):
    loss.num_particles = 3


def shadow_a_class_attribute(vae, loss):
    vae.num_data = 11
    vae.encoder.slab_weight = torch.tensor(0.5)  # a buffer: replaced, not changed


@pytest.mark.slow
@pytest.mark.parametrize("change", [swap_prior, swap_layer, more_particles, shadow_a_class_attribute])
def test_parts_that_are_replaced_are_captured_again(small_vae, batch, change):
    losses = {}
    for cls in (SVI, functools.partial(CompiledSVI, backend="eager")):
        with pyro.get_param_store().scope():
            vae, loss = small_vae(), vsc.TraceELBO()
            svi = cls(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3), loss)
            steps(svi, [batch])
            change(vae, loss)
            pyro.clear_param_store()  # which knows the parts as they were
            losses[cls] = steps(svi, [batch])[0]
    eager, captured = losses.values()
    torch.testing.assert_close(captured, eager)
    assert not svi.is_eager


def test_handlers_around_a_step_are_heeded(small_vae, batch):
    vae = small_vae()
    svi = of_vae(lambda: vae, vsc.TraceELBO, functools.partial(CompiledSVI, backend="eager"))
    torch.manual_seed(0)
    plain = svi.step(*batch)
    vae.load_state_dict(small_vae().state_dict())
    torch.manual_seed(0)
    with pyro.poutine.scale(scale=3.0):
        scaled = svi.step(*batch)
    torch.testing.assert_close(scaled, 3 * plain)


def test_parameters_that_a_first_step_draws_share_no_noise_with_it():
    def model(x):
        loc = pyro.param("loc", lambda: torch.randn(3))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(pyro.param("q", torch.zeros(3)), 1.0))

    captured_like_eager(lambda cls: cls(model, guide, ADAM, Trace_ELBO()), [(torch.ones(3),)] * 4)


def test_autocast_is_part_of_what_is_captured(small_vae, digits):
    results = []
    for cls in (SVI, functools.partial(CompiledSVI, backend="eager")):
        vae = small_vae()
        svi = of_vae(lambda vae=vae: vae, lambda: get_objective("analytic"), cls)
        with pyro.get_param_store().scope(), torch.autocast("cpu", torch.bfloat16):
            for size in (40, 20, 40, 20):
                torch.clear_autocast_cache()  # eager steps would go on with the weights of the first
                results.append(steps(svi, [(digits.train.images[:size].round(),)]))
    torch.testing.assert_close(results[4:], results[:4])
    assert len(svi._graphs) == 2


def test_noise_is_fresh_in_every_step_and_follows_the_seed(small_vae, batch):
    vae = small_vae()
    standing_still = torch.optim.SGD(vae.parameters(), 0.0)
    svi = CompiledSVI(vae.model, vae.guide, standing_still, get_objective("trace"), backend="eager")
    first, again, other = (steps(svi, 3 * [batch], seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert len(set(torch.cat([first, other]).tolist())) == 6


# Programs that have nothing to do with this library


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)


def by_hand(x, y):
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    pyro.sample("weight", dist.Normal(loc, scale).to_event(1))
    noise = pyro.param("noise_loc", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("noise", dist.Delta(noise))


@pytest.fixture
def line():
    x = torch.randn(50, 3)
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(50)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, vsc.TraceELBO])
def test_a_bayesian_regression(line, loss):
    captured_like_eager(lambda cls: cls(regression, by_hand, ADAM, loss()), 5 * [line])


def test_an_automatic_guide_learns_the_line(line):
    svi = CompiledSVI(regression, AutoNormal(regression), ADAM, Trace_ELBO(), backend="eager")
    for _ in range(500):
        svi.step(*line)
    assert not svi.is_eager
    assert svi.evaluate_loss(*line) < 0
    assert len(svi.optimizer.param_groups[0]["params"]) == 4
    weight = pyro.param("AutoNormal.locs.weight").detach()
    torch.testing.assert_close(weight, torch.tensor([1.0, -2.0, 0.5]), atol=0.1, rtol=0)


class PlainVAE(nn.Module):
    """As in Pyro's tutorial, and with one thing wrong if asked."""

    def __init__(self, wrong=None):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 16), nn.Softplus(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.decode = nn.Sequential(nn.Linear(4, 16), nn.Softplus(), nn.Linear(16, 64))
        self.register_buffer("seen", torch.zeros(()))
        self.steps = 0
        self.wrong = wrong
        self.numbers = random.Random(0)

    def model(self, x):
        pyro.module("decoder", self.decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 4), 1.0).to_event(1))
            logits = self.decode(z)
            if self.wrong == "branch" and logits.mean() > 0:
                logits = 2 * logits
            if self.wrong == "random":
                logits = logits * random.random()
            if self.wrong == "other random":
                logits = logits * self.numbers.random()
            if self.wrong == "counter":
                self.steps += 1
            if self.wrong == "buffer":
                self.seen = self.seen + len(x)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encode)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def of_plain(cls, **settings):
    torch.manual_seed(0)
    vae = PlainVAE(**settings)
    return cls(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3), Trace_ELBO())


def test_pyros_plain_vae(batch):
    captured_like_eager(of_plain, 3 * [(batch[0].flatten(1),)])


# What cannot be captured


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("branch", r"it looks at the value of a tensor, in line \d+ of .*test_compiled.py"),
        ("random", "the captured step differs from an eager one"),
        ("other random", "the captured step differs from an eager one"),
        ("counter", "the step changes 'steps' in Python"),
        ("buffer", "the step changes 'seen' in Python"),
    ],
)
def test_what_cannot_be_captured_is_said_once_and_stepped_eagerly(batch, wrong, reason):
    x = batch[0].flatten(1)
    svi = of_plain(functools.partial(CompiledSVI, backend="eager"), wrong=wrong)
    torch.manual_seed(1)
    random.seed(2)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match=f"CompiledSVI takes eager steps from here on: {reason}") as caught:
        graph, _ = svi.graph_for((x,), {})
    assert graph is None
    assert len(caught) == 1
    assert svi.is_eager
    # Weights and torch's random numbers are as if nothing had been tried out. Python's own may have moved on.
    assert torch.equal(torch.get_rng_state(), before)
    random.seed(2)
    svi.model.__self__.numbers = random.Random(0)
    got = [svi.step(x) for _ in range(3)]
    random.seed(2)
    torch.manual_seed(1)
    with pyro.get_param_store().scope():
        assert torch.equal(steps(of_plain(SVI, wrong=wrong), 3 * [(x,)])[0], torch.tensor(got))


class PickyGate(BinaryConcrete):
    """A user's, which reads its temperature."""

    def draw(self, logits):
        return super().draw(logits) if float(self.temperature) < 1 else super().hardened().draw(logits)


def test_a_setting_that_is_read(small_vae, batch):
    vae = small_vae(PickyGate(0.5))
    svi = CompiledSVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), get_objective("analytic"))
    with pytest.warns(UserWarning, match=r"it looks at the value of a tensor, in line \d+ of .*test_compiled.py"):
        svi.step(*batch)
    assert vae.encoder.gate.temperature == 0.5


def test_too_many_graphs_are_not_kept(line, monkeypatch):
    monkeypatch.setattr(compiled_svi, "_MAX_GRAPHS", 2)
    svi = CompiledSVI(regression, by_hand, ADAM, Trace_ELBO(), backend="eager")
    x, y = line
    for size in (5, 10, 20):  # the first step makes the optimiser, and is eager
        svi.step(x[:size], y[:size])
    with pytest.warns(UserWarning, match="further kind: 2 graphs have been captured, of arguments or settings that"):
        svi.step(x, y)
    # Those that there are serve on, and the rest is eager without another word.
    assert not svi.is_eager
    assert svi.graph_for((x[:10], y[:10]), {})[0] is not None
    assert svi.graph_for((x[:7], y[:7]), {})[0] is None


def test_errors_of_the_program_are_its_own(batch):
    svi = of_plain(CompiledSVI)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        svi.step(batch[0])
    with pytest.raises(ValueError, match="Expected value argument"):  # as Pyro's validation has it, before any capture
        svi.step(2 * batch[0].flatten(1))


def test_bad_arguments(small_vae):
    vae = small_vae()
    rest = torch.optim.Adam(vae.parameters()), get_objective("analytic")
    with pytest.raises(ValueError, match="optim must be a torch optimiser"):
        CompiledSVI(vae.model, vae.guide, "adam", rest[1])
    with pytest.raises(ValueError, match="unknown backend 'jit'; known are 'eager', 'inductor'"):
        CompiledSVI(vae.model, vae.guide, *rest, backend="jit")


# Compiled


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_steps_are_the_eager_ones(line):
    captured_like_eager(lambda cls: cls(regression, by_hand, ADAM, Trace_ELBO()), 20 * [line], backend="inductor")


def test_nothing_is_said_of_a_gpu_that_is_not_asked_for():
    program = (
        "import logging; from vsc_pyro.acceleration.backends import load_quietly; load_quietly();"
        "print(logging.getLogger('torch.utils.cpp_extension').filters)"
    )
    # A CUDA build of torch would say on stderr what it has found there, and missed.
    settings = os.environ | {"CUDA_HOME": "/nowhere", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=settings, check=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_fit_compiles_goes_on_as_it_began_and_stops_when_it_diverges(small_vae, digits, tmp_path, monkeypatch, capsys):
    # The last batch of 37 is not compiled. Schedules move in every step.
    schedules = {"beta": Ramp(0.1, 1, 0, 40), "encoder.gate.temperature": lambda step: 1 - step / 80}
    settings = {"batch_size": 100, "schedules": schedules, "device": "cpu"}
    data = digits.train.images[:937].round()
    eager = small_vae()
    expected = vsc.fit(eager, data, epochs=4, **settings, progress=False)
    assert not expected.compiled
    assert expected.compile_seconds == 0
    with monkeypatch.context() as context:
        context.setattr(backends, "COMPILATION", 0.0)  # worth it now, however few the steps
        whole, half = small_vae(), small_vae()
        history = vsc.fit(whole, data, epochs=4, **settings, progress=False)
        with pytest.warns(UserWarning, match="and this run has 20: it ends at"):
            begun = vsc.fit(half, data, epochs=2, checkpoint=tmp_path / "c.pt", **settings)
    assert history.compiled
    assert 0 < history.compile_seconds < sum(history.seconds)
    assert "fit, compiled" in capsys.readouterr().err
    torch.testing.assert_close(history.elbo, expected.elbo, rtol=1e-5, atol=0)
    torch.testing.assert_close(whole.state_dict(), eager.state_dict(), rtol=1e-3, atol=1e-5)
    # One that began compiled goes on compiled, and ends in the same weights to the last bit.
    resumed = small_vae(seed=9)
    again = vsc.fit(resumed, data, epochs=4, checkpoint=tmp_path / "c.pt", resume=True, **settings, progress=False)
    assert again.compiled
    assert again.compile_seconds > begun.compile_seconds > 0
    assert again.elbo == history.elbo
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(vsc.NonFiniteLossError, match="became nan at step"):
        vsc.fit(small_vae(), data, epochs=4, lr=1e30, compile=True, **settings, progress=False)


def test_where_there_is_no_compiler_a_step_is_eager_and_says_so(line, no_compiler):
    svi = CompiledSVI(regression, by_hand, ADAM, Trace_ELBO())
    svi.step(*line)  # makes the optimiser, eagerly
    with pytest.warns(UserWarning, match=r"eager steps from here on: inductor did not compile it .*backend='eager'"):
        svi.step(*line)
    assert svi.is_eager


def test_auto_is_eager_for_small_jobs_and_without_a_compiler(small_vae, digits, no_compiler, monkeypatch):
    data = digits.train.images[:50]
    assert not vsc.fit(small_vae(), data, epochs=1, **QUIET).compiled
    monkeypatch.setattr(backends, "COMPILATION", 0.0)
    with pytest.warns(UserWarning, match="1 steps would be worth compiling, and there is no C[+][+] compiler"):
        assert not vsc.fit(small_vae(), data, epochs=1, **QUIET).compiled
    with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
        vsc.fit(small_vae(), data, compile="yes", **QUIET)
