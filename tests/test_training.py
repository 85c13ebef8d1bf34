import subprocess
import sys

import numpy as np
import pyro
import pytest
import torch
from conftest import waiting_is_an_error
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import vsc_pyro as vsc
from vsc_pyro._devices import resolve_device

QUIET = {"progress": False}


def weights(model):
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def far_off(model):
    """A model that does not start at the data's mean, and has far to go."""
    model.encoder.prepared.fill_(True)
    model.decoder.prepared.fill_(True)
    return model


@pytest.mark.parametrize("objective", ["trace", "analytic"])
@pytest.mark.parametrize("gate", ["straight-through", "concrete", "shifted-sigmoid", "score"])
def test_every_gate_and_objective_trains(small_vae, digits, gate, objective, device):
    model = far_off(small_vae(gate))
    history = vsc.fit(
        model, digits.train, objective=objective, epochs=4, batch_size=100, lr=3e-3, device=device, **QUIET
    )
    assert len(history) == 4
    assert np.isfinite(history.elbo).all()
    assert history.elbo[-1] > history.elbo[0] + 5
    assert model.reference.device.type == torch.device(device).type


def independent_pixels(data):
    """Nats per datum of the best code-free model: every pixel a Bernoulli of its own."""
    mean = data.train.images.mean(0).clamp(1e-3, 1 - 1e-3)
    test = data.test.images
    return float((test * mean.log() + (1 - test) * (1 - mean).log()).flatten(1).sum(1).mean())


@pytest.mark.slow
def test_real_mnist_one_epoch(mnist_root, device):
    data = vsc.datasets.load("mnist", root=mnist_root)
    model = vsc.VAE(vsc.SpikeSlabEncoder(784, 50), vsc.BernoulliDecoder(50, 784), vsc.SpikeSlabPrior(50, 0.1))
    history = vsc.fit(model, data.train[:20_000], epochs=1, device=device, **QUIET)
    result = vsc.evaluate(model, vsc.Dataset(data.test.images[:1000], binarize="dynamic"), num_draws=5)
    assert len(history) == 1
    assert result.elbo > independent_pixels(data) + 30
    assert result.iwae > result.elbo


@pytest.mark.slow
def test_trace_and_analytic_reach_the_same_bound(small_vae, digits, device):
    bounds = {objective: _fitted_bounds(small_vae, digits, objective, device) for objective in ("trace", "analytic")}
    print(bounds)
    # The sampled KL's noisier gradient costs training time, not the optimum: near convergence they are equivalent.
    assert abs(bounds["trace"].mean() - bounds["analytic"].mean()) < 0.5
    assert torch.cat(list(bounds.values())).min() > independent_pixels(digits) + 1.5


def _fitted_bounds(small_vae, digits, objective, device):
    """Of three seeds, trained together, which takes a third of the time."""
    models = [small_vae(seed=seed) for seed in range(3)]
    settings = {"epochs": 60, "batch_size": 200, "lr": 1e-2, "cooldown": 0.25, "device": device, "compile": False}
    vsc.fit_ensemble(models, digits.train, objective=objective, **settings, **QUIET)
    return torch.tensor([vsc.evaluate(model, digits.test, num_draws=20).elbo for model in models])


def test_same_seed_same_weights_and_the_callers_state_is_untouched(small_vae, digits):
    torch.manual_seed(7)
    expected = torch.rand(1)
    runs = []
    for _ in range(2):
        model = small_vae()
        torch.manual_seed(7)
        vsc.fit(model, digits.train, epochs=2, seed=3, device="cpu", **QUIET)
        assert torch.equal(torch.rand(1), expected)
        runs.append(weights(model))
    assert_same(*runs)
    assert len(list(pyro.get_param_store().keys())) == 0
    other = small_vae()
    vsc.fit(other, digits.train, epochs=2, seed=4, device="cpu", **QUIET)
    assert not torch.equal(other.reference, runs[0]["encoder.network.1.weight"])


def test_the_seed_decides_the_noise_and_not_the_order_alone(small_vae, digits):
    ends = []
    for seed in (3, 4):
        model = small_vae()
        vsc.fit(model, digits.train.images[:1], epochs=3, seed=seed, device="cpu", **QUIET)  # one datum has no order
        ends.append(weights(model))
    assert not torch.equal(*(end["decoder.network.0.weight"] for end in ends))


def test_two_models_in_one_process_both_train(small_vae, digits):
    for seed in (0, 1):
        model = far_off(small_vae(seed=seed))
        before = weights(model)
        history = vsc.fit(model, digits.train, epochs=3, batch_size=50, device="cpu", **QUIET)
        assert history.elbo[-1] > history.elbo[0] + 5
        assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_learned_inclusion_moves(small_vae, digits):
    model = small_vae(learn_inclusion=True)
    before = model.prior.inclusion_logits.detach().clone()
    vsc.fit(model, digits.train, epochs=5, batch_size=50, device="cpu", **QUIET)
    moved = (model.prior.inclusion_logits - before).abs()
    assert moved.min() > 0
    assert moved.max() > 0.05


def test_several_draws_and_stock_objectives(small_vae, digits):
    for objective, draws in [("analytic", 3), ("trace", 2), (pyro.infer.TraceMeanField_ELBO(), 1)]:
        history = vsc.fit(
            small_vae(), digits.train, objective=objective, num_draws=draws, epochs=2, device="cpu", **QUIET
        )
        assert history.elbo[-1] > history.elbo[0]


@pytest.mark.parametrize("size", [1, 7, 50, 51])
def test_any_number_of_data_also_a_last_batch_of_one(small_vae, digits, size):
    history = vsc.fit(small_vae(), digits.train.images[:size].round(), epochs=2, batch_size=50, device="cpu", **QUIET)
    assert np.isfinite(history.elbo).all()


def test_a_last_batch_of_one_under_batch_normalisation_is_refused_before_any_work(digits):
    model = vsc.VAE(vsc.SpikeSlabEncoder(64, 4), vsc.BernoulliDecoder(4, 64), vsc.SpikeSlabPrior(4))
    model.encoder.network.insert(2, torch.nn.BatchNorm1d(400))
    data = digits.train.images[:51].flatten(1).round()
    for batch_size in (1, 50):
        with pytest.raises(ValueError, match=rf"batch_size={batch_size} leaves a last batch of one of the 51 data"):
            vsc.fit(model, data, epochs=1, batch_size=batch_size, device="cpu", **QUIET)
    vsc.fit(model, data, epochs=1, batch_size=49, device="cpu", **QUIET)


def test_arrays_of_another_type_are_taken_to_the_models(small_vae, digits):
    array = digits.train.images[:100].double().numpy()
    vsc.fit(small_vae(), array, epochs=1, device="cpu", **QUIET)
    model = small_vae().double()
    vsc.fit(model, digits.train.images[:100], epochs=1, device="cpu", **QUIET)
    assert model.reference.dtype == torch.float64


def test_every_modules_mode_is_left_as_it_was(small_vae, digits):
    model = small_vae()
    model.decoder.eval()
    vsc.fit(model, digits.train.images[:50], epochs=1, device="cpu", **QUIET)
    assert model.training
    assert model.encoder.network.training
    assert not any(module.training for module in model.decoder.modules())


def test_progress_bar_shows_the_running_elbo(small_vae, digits, capsys):
    vsc.fit(small_vae(), digits.train, epochs=2, batch_size=100, device="cpu")
    shown = capsys.readouterr().err
    assert "30/30" in shown
    assert "objective=-" in shown


def test_progress_bar_divides_by_the_data_it_has_seen(small_vae, digits, capsys):
    history = vsc.fit(small_vae(), digits.train.images[:7].round(), epochs=1, device="cpu")
    assert f"objective={history.elbo[0]:.2f}" in capsys.readouterr().err


# Checkpoints


def schedule(optimizer):
    return CosineAnnealingLR(optimizer, T_max=6)


def test_resuming_ends_in_the_same_weights(small_vae, digits, tmp_path):
    settings = {"batch_size": 100, "lr_schedule": schedule, "device": "cpu", **QUIET}
    whole = small_vae()
    full_history = vsc.fit(whole, digits.train, epochs=6, **settings)
    path = tmp_path / "c.pt"
    vsc.fit(small_vae(), digits.train, epochs=2, checkpoint=path, **settings)
    resumed = small_vae(seed=99)
    history = vsc.fit(resumed, digits.train, epochs=6, checkpoint=path, resume=True, **settings)
    assert_same(weights(whole), weights(resumed))
    assert history.elbo == full_history.elbo
    again = small_vae(seed=98)
    assert vsc.fit(again, digits.train, epochs=6, checkpoint=path, resume=True, **settings).elbo == full_history.elbo
    assert_same(weights(whole), weights(again))


def test_a_run_that_goes_on_keeps_the_warmup_it_began_with(small_vae, digits, tmp_path):
    settings = {"batch_size": 100, "device": "cpu", "checkpoint": tmp_path / "c.pt", **QUIET}
    first = vsc.fit(small_vae(), digits.train, epochs=5, warmup=0.5, **settings)
    model = small_vae()
    longer = vsc.fit(model, digits.train, epochs=8, warmup=0.5, resume=True, **settings)
    assert longer.warmup_steps == first.warmup_steps == 5 * 15 // 2
    assert longer.elbo[:5] == first.elbo
    assert model.warmup == 1.0
    with pytest.raises(ValueError, match=r"is of a run with warmup=0\.5 \(now 0\.0\)"):
        vsc.fit(small_vae(), digits.train, epochs=9, resume=True, **settings)


def falling_over_the_last_quarter(optimizer):
    return LambdaLR(optimizer, lambda epoch: min(1.0, (8 - epoch) / 2))


@pytest.mark.parametrize("share", [None, 0.25])
def test_the_rate_falls_over_the_last_quarter_of_a_run(small_vae, digits, share):
    settings = {"epochs": 8, "batch_size": 100, "device": "cpu", **QUIET}
    cooled, scheduled, steady = small_vae(), small_vae(), small_vae()
    vsc.fit(cooled, digits.train, cooldown=share, **settings)
    vsc.fit(scheduled, digits.train, lr_schedule=falling_over_the_last_quarter, **settings)
    vsc.fit(steady, digits.train, cooldown=0, **settings)
    assert_same(weights(cooled), weights(scheduled))
    with pytest.raises(AssertionError):
        assert_same(weights(cooled), weights(steady))


def test_a_run_that_goes_on_cools_down_as_it_was_begun(small_vae, digits, tmp_path):
    settings = {"batch_size": 100, "device": "cpu", **QUIET}
    steady = {"checkpoint": tmp_path / "steady.pt", **settings}
    vsc.fit(small_vae(), digits.train, epochs=3, cooldown=0, **steady)
    longer, whole = small_vae(), small_vae()
    vsc.fit(longer, digits.train, epochs=6, resume=True, **steady)
    vsc.fit(whole, digits.train, epochs=6, cooldown=0, **settings)
    assert_same(weights(longer), weights(whole))
    with pytest.raises(ValueError, match=r"is of a run with cooldown=0\.0 \(now 0\.5\)"):
        vsc.fit(small_vae(), digits.train, epochs=6, cooldown=0.5, resume=True, **steady)
    with pytest.raises(ValueError, match=r"cooldown=0\.5 and lr_schedule both set the learning rate; pass one"):
        vsc.fit(small_vae(), digits.train, cooldown=0.5, lr_schedule=falling_over_the_last_quarter, **settings)


@pytest.mark.filterwarnings("ignore:after 20 steps the code explains nothing")
def test_the_divergence_counts_for_nothing_at_first_and_for_all_in_the_end(small_vae, digits):
    # Of weights that do not move, the objective is that of beta = step / 10 in ten steps, and then of beta = 1.
    def objective(beta, epochs, **settings):
        model = small_vae()
        model.encoder.own_layer.bias.data += 1  # away from the prior
        model.beta = beta
        return vsc.fit(model, digits.train, epochs=epochs, lr=1e-30, batch_size=2000, device="cpu", **settings).elbo

    got = objective(1.0, 20, warmup=0.5, **QUIET)
    free, full = (objective(beta, 20, warmup=0, **QUIET) for beta in (1e-9, 1.0))
    kl = np.subtract(free, full)
    assert kl.min() > 0.1
    np.testing.assert_allclose((np.array(free) - got) / kl, np.minimum(np.arange(20) / 10, 1), atol=2e-3)


def test_warmups_that_make_no_sense(small_vae, digits):
    for settings, problem in (
        ({"warmup": 1}, "warmup must be a share of the run, from 0 to below 1, got 1"),
        ({"warmup": 0.1, "schedules": {"beta": vsc.Ramp(0, 1, length=3)}}, "both set the weight of the divergence"),
        ({"warmup": 0.1, "objective": "importance-weighted", "gate": "score"}, "and so no warmup=0.1; pass warmup=0"),
    ):
        with pytest.raises(ValueError, match=problem):
            vsc.fit(small_vae(), digits.train, epochs=2, **settings, **QUIET)


# Whoever is killed is a fork: one interpreter starts, and imports, for all of them. It has one thread, as forks must.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import torch
import torch._dynamo  # here, rather than in each child
import vsc_pyro as vsc

torch.set_num_threads(1)
folder = Path(sys.argv[1])
train = vsc.Dataset(torch.rand(720, 1, 8, 8, generator=torch.Generator().manual_seed(1)), binarize="dynamic")


def run(name):
    torch.manual_seed(0)
    encoder, decoder = vsc.SpikeSlabEncoder((1, 8, 8), 8, (40,)), vsc.BernoulliDecoder(8, (1, 8, 8), (40,))
    model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(8, learn_inclusion=True))
    checkpoint = folder / f"{name}.pt"
    settings = {"epochs": 10, "batch_size": 20, "progress": False, "device": "cpu"}
    vsc.fit(model, train, checkpoint=checkpoint, resume=True, **settings)
    torch.save(model.state_dict(), folder / f"{name}-end.pt")


def start(name):
    if child := os.fork():
        return child
    run(name)
    os._exit(0)


checkpoint = folder / "killed.pt"
for kill in range(3):
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    child = start("killed")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.03 * kill)  # another moment of an epoch each time
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert 0 < vsc.load_checkpoint(checkpoint)["epoch"] < 10
for name in ("killed", "whole"):
    assert os.waitpid(start(name), 0)[1] == 0
"""


@pytest.mark.slow
def test_a_killed_process_resumes_and_ends_in_the_same_weights(tmp_path):
    result = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert_same(*(torch.load(tmp_path / f"{name}-end.pt", weights_only=True) for name in ("killed", "whole")))


def test_resuming_on_another_kind_of_device_says_that_the_noise_differs(small_vae, digits, tmp_path):
    path, data = tmp_path / "c.pt", digits.train.images[:100]
    settings = {"batch_size": 50, "checkpoint": path, "device": "cpu", **QUIET}
    vsc.fit(small_vae(), data, epochs=1, **settings)
    state = vsc.load_checkpoint(path)
    state["rng"] |= {"device": "cuda", "data": torch.zeros(16, dtype=torch.uint8), "cuda": torch.zeros(16)}
    vsc.save_checkpoint(path, state)
    with pytest.warns(UserWarning, match="resuming on cpu a run of cuda: its random numbers differ"):
        history = vsc.fit(small_vae(), data, epochs=2, resume=True, **settings)
    assert len(history) == 2


def test_a_run_is_resumed_with_its_own_settings_only(small_vae, digits, tmp_path):
    path, data = tmp_path / "c.pt", digits.train.images[:100]
    vsc.fit(small_vae(), data, epochs=1, batch_size=50, checkpoint=path, device="cpu", **QUIET)
    resume = {"epochs": 2, "batch_size": 50, "checkpoint": path, "resume": True, "device": "cpu", **QUIET}
    for changed, message in [
        ({"lr": 0.1}, r"lr=0\.001 \(now 0\.1\)"),
        ({"batch_size": 20, "seed": 5}, r"batch_size=50 \(now 20\), seed=0 \(now 5\)"),
        ({"objective": "trace"}, r"objective=AnalyticELBO\(num_particles=1\) \(now TraceELBO"),
        ({"num_draws": 2}, r"now AnalyticELBO\(num_particles=2\)"),
        ({"objective": pyro.infer.RenyiELBO(alpha=0.5)}, r"now RenyiELBO\(num_particles=2\)\(alpha=0\.5\)"),
        ({"lr_schedule": schedule}, "written without an lr_schedule"),
    ]:
        with pytest.raises(ValueError, match=message):
            vsc.fit(small_vae(), data, **{**resume, **changed})
    for other, message in [
        (small_vae("score"), r"model=.*BinaryConcrete.* \(now .*ScoreFunction"),
        (small_vae(inclusion=0.7), r"inclusion=0\.2.* \(now .*inclusion=0\.7"),
        (small_vae(learn_inclusion=True), r"learn_inclusion=False.* \(now .*learn_inclusion='per-latent'"),
    ]:
        before = weights(other)
        with pytest.raises(ValueError, match=message):
            vsc.fit(other, data, **resume)
        assert_same(before, weights(other))
    with pytest.raises(ValueError, match=r"binarize=None.* \(now .*binarize=dynamic"):
        vsc.fit(small_vae(), vsc.Dataset(data, binarize="dynamic"), **resume)
    with pytest.raises(ValueError, match=r"data=.*checksum .* \(now .*checksum"):
        vsc.fit(small_vae(), 1 - data, **resume)
    vsc.fit(small_vae(), data, **{**resume, "epochs": 3})
    with pytest.raises(ValueError, match="has been trained for 3 epochs, more than epochs=2"):
        vsc.fit(small_vae(), data, **resume)
    with pytest.raises(ValueError, match="of another architecture"):
        vsc.fit(small_vae(latent_dim=9), data, **resume)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        vsc.fit(small_vae(), data, **resume)
    vsc.save_checkpoint(path, {"model": small_vae().state_dict()})
    with pytest.raises(
        ValueError, match="was not written by fit: it lacks epoch, history, optimizer, rng, schedule, settings"
    ):
        vsc.fit(small_vae(), data, **resume)
    with pytest.raises(FileExistsError, match="exists; pass resume=True to continue that run, or another name"):
        vsc.fit(small_vae(), data, checkpoint=path, device="cpu")
    with pytest.raises(ValueError, match="checkpoint must be a file, got the folder"):
        vsc.fit(small_vae(), data, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        vsc.fit(small_vae(), data, resume=True)


# Divergence


def test_a_non_finite_loss_stops_with_its_step_and_keeps_the_last_checkpoint(small_vae, digits, tmp_path):
    model, path = small_vae(), tmp_path / "c.pt"
    calls = 0

    def poison(module, inputs, output):
        nonlocal calls
        calls += module.training
        return output * float("nan") if calls == 2 * 15 + 4 else output

    model.decoder.network.register_forward_hook(poison)
    with pytest.raises(vsc.NonFiniteLossError, match=r"the loss became nan at step 4 of epoch 3; the last checkpoint"):
        vsc.fit(model, digits.train, epochs=5, batch_size=100, checkpoint=path, device="cpu", **QUIET)
    state = vsc.load_checkpoint(path)
    assert state["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_weights_that_overflow_are_not_written(small_vae, digits, tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(vsc.NonFiniteLossError, match=r"became NaN or infinite in epoch 1"):
        vsc.fit(small_vae(), digits.train.images[:50], lr=1e39, epochs=1, checkpoint=path, device="cpu", **QUIET)
    assert not path.exists()


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"lr": -1.0}, "lr must be a finite number above 0"),
        ({"num_draws": 0}, "num_draws must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
        ({"lr_schedule": torch.optim.lr_scheduler.ReduceLROnPlateau}, "steps by the validation bound"),
        ({"objective": "elbo"}, "unknown objective 'elbo'; known are"),
        ({"device": "tpu9"}, "device 'tpu9' is not available"),
    ],
)
def test_bad_arguments(small_vae, digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        vsc.fit(small_vae(), digits.train, **arguments)


def test_nothing_to_train(small_vae, digits):
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        vsc.fit(small_vae().requires_grad_(False), digits.train, device="cpu")


def test_bad_data(small_vae):
    with pytest.raises(ValueError, match="at least one datum"):
        vsc.fit(small_vae(), torch.zeros(0, 64))
    with pytest.raises(ValueError, match="NaN or infinite"):
        vsc.fit(small_vae(), torch.full((5, 64), float("nan")))
    with pytest.raises(ValueError, match="support of the likelihood"):
        vsc.fit(small_vae(), torch.full((5, 64), 255))
    with pytest.raises(ValueError, match=r"does not take data of shape \(N, 65\)"):
        vsc.fit(small_vae(), torch.zeros(5, 65))


def test_resolve_device():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.cuda
def test_cuda_runs_without_synchronising(small_vae, digits, device):
    model = small_vae()
    optimizer = torch.optim.Adam(model.to(device).parameters(), 1e-3, fused=True)
    svi = vsc.SVI(model.model, model.guide, optimizer, vsc.AnalyticELBO(max_plate_nesting=1))
    x = digits.train.images[:100].round().to(device)
    with pyro.validation_enabled(False):
        svi.step(x)
        with waiting_is_an_error():
            svi.step(x)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_broken_off_leaves_no_gradients(small_vae, digits, error):
    model, steps = small_vae(), []

    def interrupt(*_):
        steps.append(1)
        if len(steps) > 12:
            raise error

    model.reference.register_post_accumulate_grad_hook(interrupt)
    with pytest.raises(error):
        vsc.fit(model, digits.train, epochs=9, batch_size=100, device="cpu", **QUIET)
    assert all(p.grad is None for p in model.parameters())


def test_a_buffer_that_becomes_nan_is_not_saved(small_vae, digits, tmp_path):
    model, path = small_vae(), tmp_path / "c.pt"
    model.decoder.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model.decoder.register_buffer("seen", torch.zeros(()))

    def see(module, *_):
        module.seen += 1
        if module.seen > 16:
            module.seen.fill_(torch.nan)

    model.decoder.register_forward_hook(see)
    with pytest.raises(vsc.NonFiniteLossError, match=r"the buffer decoder\.seen became NaN or infinite by epoch"):
        vsc.fit(model, digits.train, epochs=9, batch_size=200, device="cpu", checkpoint=path, **QUIET)
    assert vsc.load_checkpoint(path)["model"]["decoder.seen"].isfinite()
