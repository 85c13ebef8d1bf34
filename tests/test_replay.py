"""Whole steps replayed: on the CPU from a tape, which has a CUDA graph's rules, and on a GPU as CUDA graphs."""

import contextlib
import functools
import itertools

import pyro
import pytest
import torch
from conftest import waiting_is_an_error
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro import parallel
from vsc_pyro.acceleration import CompiledSVI, Replay, capture_on
from vsc_pyro.training.schedules import Ramp, set_values

SCHEDULES = {
    "beta": Ramp(0.1, 1, 0, 20),
    "encoder.slab_weight": Ramp(0, 1, 0, 20),
    "encoder.gate.temperature": lambda step: 1 - step / 80,
}


class Tape(TorchDispatchMode):
    """The operations of a function on tensors, done again in the same memory, with all that is no tensor as it was.

    What reads the value of a tensor is an error, as while a CUDA graph is captured.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Taping:
    """A `Capture` that counts what it has captured and replayed."""

    def __init__(self, wrong=lambda outputs: outputs):
        self.captured = self.replayed = 0
        self.wrong = wrong

    def __call__(self, whole, generators):
        for _ in range(3):
            whole()
        with Tape() as tape:
            outputs = whole()
        self.captured += 1

        def replay():
            self.replayed += 1
            tape.replay()
            self.wrong(outputs)

        return replay, outputs


def make(small_vae, gather=None, capture=None, adam=None, generators=(), **prior):
    """A model, the step of its `CompiledSVI` or of a `Replay` of that, and the optimiser."""
    vae = small_vae(**prior)
    optimizer = (adam or functools.partial(torch.optim.Adam, lr=1e-2, fused=True))(vae.parameters())
    svi = CompiledSVI(vae.model, vae.guide, optimizer, vsc.AnalyticELBO(), backend="eager")
    if capture is None:
        return vae, lambda source: svi.step(gather(source) if gather else source), optimizer
    return vae, Replay(svi, capture, gather, generators).step, optimizer


def train(vae, step, optimizer, sources, after=lambda number: None):
    losses = []
    torch.manual_seed(1)
    with pyro.get_param_store().scope():
        for number, source in enumerate(sources):
            set_values(vae, SCHEDULES, number)
            losses.append(step(source))
            after(number)
    gradients = [p.grad.clone() for p in vae.parameters()]
    moments = [value for p in vae.parameters() for value in optimizer.state[p].values()]
    return [torch.stack(losses), gradients, moments, vae.state_dict(), torch.rand(2)]


def in_memory(data, sizes=(50, 50, 50, 20, 50, 50)):
    """Indices of some minibatches, and a function that draws these from a generator of its own."""
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(3)
    return torch.randperm(len(data))[: sum(sizes)].split(sizes), generator, lambda i: data.draw(i, generator)


@pytest.fixture
def grey(digits):
    return vsc.Dataset(digits.train.images, binarize="dynamic")


def test_replayed_steps_are_the_compiled_ones(small_vae, grey):
    # A short batch among them; beta, slab weight, temperature and the learning rate move; binarisation is in the step.
    results = []
    for capture in (None, taping := Taping()):
        sources, generator, gather = in_memory(grey)
        model = make(small_vae, gather, capture, generators=[generator])
        group = model[2].param_groups[0]
        results.append(train(*model, sources, lambda n, group=group: group.update(lr=1e-2 / (n + 2))))
        results[-1].append(torch.rand(2, generator=generator))
        assert isinstance(group["lr"], float)
        assert group["capturable"] is False
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    for drawn in (-1, -2):  # the trial steps of the capture left no trace in the random numbers
        assert torch.equal(results[1][drawn], results[0][drawn])
    assert (taping.captured, taping.replayed) == (1, 2 + 5)


def test_statistics_of_a_batch_norm_and_minibatches_as_they_come(small_vae, digits):
    def with_batch_norm(**prior):
        vae = small_vae(**prior)
        vae.encoder.network.insert(2, torch.nn.BatchNorm1d(32))
        return vae

    sources = digits.train.images[:120].round().split(40)
    results = [train(*make(with_batch_norm, capture=capture), sources) for capture in (None, Taping())]
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert results[1][3]["encoder.network.2.num_batches_tracked"] == 3


def test_losses_are_kept_and_gradients_those_of_the_last_step(small_vae, digits):
    x = digits.train.images[:40].round()
    vae, step, _ = make(small_vae, capture=Taping())
    losses = [step(x) for _ in range(3)]
    assert len({float(loss) for loss in losses}) == 3
    replayed = [p.grad for p in vae.parameters()]
    step(x[:7])
    step(x)
    assert all(p.grad is gradient for p, gradient in zip(vae.parameters(), replayed, strict=True))


def test_what_changes_beside_is_captured_again(small_vae, digits):
    def change(vae, optimizer, number):
        if number == 1:
            vae.encoder.gate.temperature = 0.3  # is read anew
        if number == 3:
            vae.eval()
        if number == 5:
            optimizer.param_groups[0]["betas"] = (0.5, 0.9)  # as OneCycleLR does
        if number == 7:
            optimizer.load_state_dict(optimizer.state_dict())

    sources = 10 * [digits.train.images[:40].round()]
    results = []
    for capture in (None, taping := Taping()):
        vae, step, optimizer = make(small_vae, capture=capture)
        results.append(train(vae, step, optimizer, sources, functools.partial(change, vae, optimizer)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert taping.captured == 4


def test_other_modes_are_found_again(small_vae, digits):
    vae, step, _ = make(small_vae, capture=(taping := Taping()))
    for training in itertools.islice(itertools.cycle([True, False]), 6):
        vae.train(training)
        step(digits.train.images[:40].round())
    assert taping.captured == 2


def waits(x):
    return x * float(x.detach().max())


def hooked(parameters):
    optimizer = torch.optim.Adam(parameters, lr=1e-2, fused=True)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


@pytest.mark.parametrize(
    ("settings", "wrong", "reason"),
    [
        ({"gather": waits}, None, r"capturing it fails \(RuntimeError: operation not permitted"),
        ({"adam": hooked}, None, "the optimiser has hooks, and a graph would not run them"),
        ({"adam": functools.partial(torch.optim.SGD, lr=1e-5)}, None, "is no Adam with fused=True, but SGD"),
        ({"adam": functools.partial(torch.optim.Adam, lr=1e-2)}, None, "is no Adam with fused=True, but Adam"),
        ({}, lambda outputs: outputs[0].mul_(1.1), "a replayed step differs from one without a graph"),
    ],
)
def test_what_cannot_be_captured_is_said_once_and_stepped_without(small_vae, digits, settings, wrong, reason):
    sources = 3 * [digits.train.images[:40].round()]
    expected = train(*make(small_vae, **settings), sources)
    model = make(small_vae, capture=Taping(wrong or (lambda outputs: outputs)), **settings)
    with pytest.warns(UserWarning, match=f"not replayed as CUDA graphs from here on, .*{reason}") as caught:
        got = train(*model, sources)
    assert len(caught) == 1
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_pyros_optimisers_are_not_replayed(small_vae, digits):
    vae, x = small_vae(), digits.train.images[:50].round()
    svi = CompiledSVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), vsc.AnalyticELBO(), backend="eager")
    replay = Replay(svi, Taping())
    with pyro.get_param_store().scope():
        replay.step(x)  # makes the optimisers
        with pytest.warns(UserWarning, match="not replayed .* the optimisers are Pyro's, one for each parameter"):
            replay.step(x)
        assert not replay.is_replaying
        assert not svi.is_eager


def test_where_the_step_is_eager_nothing_is_replayed(small_vae, digits):
    vae, step, _ = make(small_vae, capture=(taping := Taping()))
    vae.encoder.network.register_forward_hook(lambda module, inputs, output: waits(output))
    with pytest.warns(UserWarning, match="CompiledSVI takes eager steps from here on: it looks at the value"):
        step(digits.train.images[:40].round())
    assert not step.__self__.is_replaying
    assert taping.captured == 0


def test_whole_steps_are_for_one_process_and_a_gpu(monkeypatch):
    assert capture_on(torch.device("cpu")) is None
    assert callable(capture_on(torch.device("cuda", 0)))
    monkeypatch.setattr("vsc_pyro.acceleration.replay.num_processes", lambda: 2)
    assert parallel.num_processes() == 1
    assert capture_on(torch.device("cuda", 0)) is None


# fit


@pytest.fixture
def taping(monkeypatch):
    """`fit` on the CPU as on a GPU."""
    found = Taping()
    monkeypatch.setattr("vsc_pyro.training.loop.capture_on", lambda device: found)
    monkeypatch.setattr("vsc_pyro.training.loop.CompiledSVI", functools.partial(CompiledSVI, backend="eager"))
    return found


def fitted(small_vae, data, model_seed=0, **settings):
    vae = small_vae(seed=model_seed)
    settings = {"epochs": 4, "device": "cpu", "progress": False, "schedules": SCHEDULES} | settings
    history = vsc.fit(vae, data, **settings)
    return history, vae.state_dict()


def one_cycle(optimizer):
    return OneCycleLR(optimizer, max_lr=1e-2, total_steps=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [functools.partial(CosineAnnealingLR, T_max=4), one_cycle],  # of which the second moves Adam's betas as well
)
def test_fit_is_the_same_and_goes_on_as_it_began(small_vae, digits, taping, tmp_path, schedule):
    data = vsc.Dataset(digits.train.images[:230], binarize="dynamic")
    settings = {"batch_size": 50, "lr": 1e-2, "lr_schedule": schedule}
    expected = fitted(small_vae, data, **settings)
    history, weights = fitted(small_vae, data, compile=True, **settings)
    assert taping.captured == (4 if schedule is one_cycle else 1)
    assert taping.replayed == 4 * 4 + 2 * taping.captured
    assert history.compiled
    torch.testing.assert_close(history.elbo, expected[0].elbo, rtol=1e-5, atol=0)
    torch.testing.assert_close(weights, expected[1], rtol=1e-3, atol=1e-5)
    part = {"compile": True, "checkpoint": tmp_path / "c.pt"} | settings
    with pytest.warns(UserWarning, match="and this run has 10: it ends at"):
        fitted(small_vae, data, epochs=2, **part)
    again, resumed = fitted(small_vae, data, model_seed=9, resume=True, **part)
    assert again.elbo == history.elbo
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


def test_fit_replays_a_loaders_minibatches(small_vae, digits, taping):
    loader = DataLoader(digits.train.images[:230].round(), 50, shuffle=True, generator=torch.Generator())
    expected = fitted(small_vae, loader)
    history, weights = fitted(small_vae, loader, compile=True)
    assert taping.captured == 1
    torch.testing.assert_close(history.elbo, expected[0].elbo, rtol=1e-5, atol=0)
    torch.testing.assert_close(weights, expected[1], rtol=1e-3, atol=1e-5)


def test_clipping_is_part_of_a_replayed_step(small_vae, digits, taping):
    data, settings = digits.train[:230], {"batch_size": 50, "lr": 1e-2}
    free, expected = (fitted(small_vae, data, **settings, **clip) for clip in ({}, {"clip_norm": 1.0}))
    history, weights = fitted(small_vae, data, compile=True, clip_norm=1.0, **settings)
    assert taping.captured == 1
    torch.testing.assert_close(history.elbo, expected[0].elbo, rtol=1e-5, atol=0)
    torch.testing.assert_close(weights, expected[1], rtol=1e-3, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(free[1], weights, rtol=1e-3, atol=1e-5)


def test_memory_that_has_been_replaced_and_a_hook_are_seen(small_vae, grey):
    sources, generator, gather = in_memory(grey)
    taping = Taping()
    vae, step, optimizer = make(small_vae, gather, taping, generators=[generator])
    hooked = []

    def after(number):
        if number == 1:
            for parameter in vae.parameters():
                parameter.data = parameter.data.clone()
        if number == 3:
            optimizer.register_step_pre_hook(lambda *_: hooked.append(number))

    with pytest.warns(UserWarning, match="the optimiser has hooks, and a graph would not run them"):
        got = train(vae, step, optimizer, sources, after)
    assert (taping.captured, len(hooked)) == (2, 2)
    plain, other, _ = in_memory(grey)[0], *in_memory(grey)[1:]
    expected = train(*make(small_vae, lambda i: grey.draw(i, other)), plain)
    torch.testing.assert_close(got, expected)


# On a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("loader", [False, True])
def test_an_epoch_on_a_gpu_waits_for_nothing_and_ends_as_without_graphs(small_vae, digits, device, loader, recwarn):
    images = digits.train.images[:1230]  # 62 steps: a look at the losses on the way, and a last batch of 10 data
    data = DataLoader(images.round(), 20, pin_memory=True) if loader else vsc.Dataset(images, binarize="dynamic")
    steps = -(-len(images) // 20)

    def watched(step):
        """A schedule, called before each step: errors where the second epoch would wait."""
        if step == steps + 1:
            watch.enter_context(waiting_is_an_error())
        if step == 2 * steps - 1:
            watch.close()
        return cooling(step)

    def cooling(step):
        return 1 - step / (8 * steps)

    schedules = SCHEDULES | {"encoder.gate.temperature": cooling}
    settings = {
        "schedules": schedules,
        "device": device,
        "epochs": 3,
        "lr_schedule": functools.partial(CosineAnnealingLR, T_max=3),
    }
    settings |= {} if loader else {"batch_size": 20}
    plain = fitted(small_vae, data, compile=False, **settings)
    with contextlib.ExitStack() as watch:
        watched_settings = settings | {"schedules": schedules | {"encoder.gate.temperature": watched}}
        fitted(small_vae, data, compile=True, progress=True, **watched_settings)
    history, weights = fitted(small_vae, data, compile=True, **settings)
    assert not [str(w.message) for w in recwarn if "not replayed" in str(w.message)]
    torch.testing.assert_close(history.elbo, plain[0].elbo, rtol=1e-3, atol=0)
    torch.testing.assert_close(weights, plain[1], rtol=1e-2, atol=1e-3)


@pytest.mark.cuda
def test_a_run_on_a_gpu_goes_on_with_graphs_as_it_began(small_vae, digits, device, tmp_path):
    data = vsc.Dataset(digits.train.images[:230], binarize="dynamic")
    settings = {"batch_size": 50, "compile": True, "device": device, "schedules": {}}
    history, weights = fitted(small_vae, data, **settings)
    fitted(small_vae, data, epochs=2, checkpoint=tmp_path / "c.pt", **settings)
    again, resumed = fitted(small_vae, data, model_seed=9, checkpoint=tmp_path / "c.pt", resume=True, **settings)
    torch.testing.assert_close(again.elbo, history.elbo, rtol=1e-5, atol=0)
    torch.testing.assert_close(resumed, weights, rtol=1e-4, atol=1e-6)
    on_cpu = small_vae(seed=9)
    with pytest.warns(UserWarning, match="resuming on cpu a run of cuda"):
        vsc.fit(
            on_cpu, data, epochs=5, checkpoint=tmp_path / "c.pt", resume=True, progress=False, batch_size=50,
            device="cpu", compile=False,
        )  # fmt: skip


@pytest.mark.cuda
def test_on_a_gpu_what_cannot_be_captured_is_stepped_without(small_vae, digits, device):
    x = digits.train.images[:40].round().to(device)
    losses = []
    for capture in (None, capture_on(torch.device(device))):
        vae = small_vae().to(device)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2, fused=True)
        svi = CompiledSVI(vae.model, vae.guide, optimizer, vsc.AnalyticELBO(), backend="eager")
        torch.manual_seed(1)
        pyro.clear_param_store()
        if capture is None:
            losses.append(torch.stack([svi.step(waits(x)) for _ in range(3)]))
        else:
            replay = Replay(svi, capture, waits)
            with pytest.warns(UserWarning, match="not replayed as CUDA graphs from here on"):
                losses.append(torch.stack([replay.step(x) for _ in range(3)]))
    torch.testing.assert_close(*losses)
