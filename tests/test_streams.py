"""`fit` on a stream: the same as on data in memory or of a loader, where the stream yields the same batches."""

import gc
import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import vsc_pyro as vsc
from vsc_pyro.acceleration import BACKENDS
from vsc_pyro.training.streams import StreamBatches, is_stream

QUIET = {"progress": False, "device": "cpu"}


def built(kind="normal"):
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder(16, 3, hidden=()) if kind == "spikes" else vsc.NormalEncoder(16, 3, hidden=())
    prior = vsc.SpikeSlabPrior(3, 0.2) if kind == "spikes" else vsc.NormalPrior(3)
    return vsc.VAE(encoder, vsc.NormalDecoder(3, 16, hidden=(4,)), prior)


def fitted(data, **settings):
    model = built()
    before = torch.get_rng_state()
    history = vsc.fit(model, data, **settings, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    return model.state_dict(), history


def assert_same(a, b):
    assert a[1].elbo == b[1].elbo
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])


X = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))


def in_order():
    """A loader that draws no random number of the run."""
    return DataLoader(TensorDataset(X), batch_size=50, generator=torch.Generator())


class Repeated:
    """The same batches in every pass, counted as they are drawn."""

    def __init__(self, batches):
        self.batches = batches
        self.drawn = 0

    def __iter__(self):
        for batch in self.batches:
            self.drawn += 1
            yield batch


class Drawn:
    """An endless stream from torch's own random numbers."""

    def __iter__(self):
        while True:
            yield torch.randn(50, 16)


class Jumping(Drawn):
    """An endless stream of batches that depend on their number."""

    def __init__(self):
        self.starts = []

    def __iter__(self):
        return self.start_at(0)

    def start_at(self, step):
        self.starts.append(step)
        fixed = (torch.randn(50, 16, generator=torch.Generator().manual_seed(n)) for n in itertools.count(step))
        return (batch + torch.randn(50, 16) for batch in fixed)


def kinds(x):
    """Streams of the same batches, of all kinds."""
    yield x.split(50), list
    yield x.split(50), iter
    yield x.split(50), Repeated
    yield [(batch, torch.zeros(50)) for batch in x.split(50)], iter
    yield [[batch] for batch in x.split(50)], Repeated
    yield [batch.numpy() for batch in x.split(50)], iter
    yield x.split(50), lambda batches: (batch for batch in batches)


def test_a_stream_of_a_loaders_batches_ends_in_the_same_weights():
    loaded = fitted(in_order(), steps=8, cooldown=0)
    for batches, make in kinds(X):
        streamed = fitted(make(batches), steps=8, cooldown=0)
        assert all(torch.equal(loaded[0][name], streamed[0][name]) for name in loaded[0])
        assert (len(loaded[1]), len(streamed[1])) == (1, 8)
        assert np.mean(streamed[1].elbo) == pytest.approx(loaded[1].elbo[0], rel=1e-6)


def test_an_iterable_starts_anew():
    assert_same(fitted(Repeated(X.split(50)), steps=24), fitted(iter(3 * X.split(50)), steps=24))


@pytest.mark.parametrize("steps", [1, 3, 105])
def test_no_more_is_drawn_than_the_run_needs(steps):
    stream = Repeated(X[:40].split(4))
    model = built()
    history = vsc.fit(model, stream, steps=steps, **QUIET)
    assert stream.drawn == steps
    assert history.steps_per_epoch == -(-steps // 100)
    assert len(history) == -(-steps // history.steps_per_epoch)
    assert model.num_data == 4 * steps
    assert vsc.fit(built(), DataLoader(X, 50), epochs=1, **QUIET).steps_per_epoch == 8


def test_about_a_thousand_data_are_looked_at_beforehand():
    stream = Repeated(torch.zeros(9, 300, 16))
    batches = StreamBatches(stream, 100, seed=0)
    assert (stream.drawn, batches.sample.shape) == (4, (1200, 16))
    assert len(batches.some()) == 1000


def test_steps_are_counted_exactly_on_data_of_any_kind(capsys):
    for data, num_steps in ((X, 8), (in_order(), 8), (Drawn(), 1)):
        for steps in (1, 8, 13):
            model = built()
            size = {} if data is not X else {"batch_size": 50}
            history = vsc.fit(model, data, steps=steps, warmup=0.5, device="cpu", **size)
            assert f"{steps}/{steps}" in capsys.readouterr().err
            assert len(history) == -(-steps // num_steps)
            assert history.warmup_steps == steps // 2
    whole, cut = (fitted(X, batch_size=50, cooldown=0, **length) for length in ({"epochs": 2}, {"steps": 16}))
    assert_same(whole, cut)


def test_the_first_steps_of_an_epoch_are_those_of_a_shorter_run():
    taken = []

    def spying(step):
        taken.append(step)
        return 1.0

    vsc.fit(built(), X, batch_size=50, steps=11, schedules={"beta": spying}, **QUIET)
    assert sorted(set(taken)) == list(range(11))


@pytest.mark.parametrize("make", [Drawn, Jumping, lambda: list(X.repeat(5, 1).split(50))])
def test_an_interrupted_run_of_an_iterable_ends_in_the_same_weights(make, tmp_path):
    settings = {"steps": 101, "warmup": 0.3}
    whole = fitted(make(), **settings)

    class InterruptedError(Exception):
        pass

    def interrupted():
        for number, batch in enumerate(make()):
            if number == 31:
                raise InterruptedError
            yield batch

    class Interrupted:
        __iter__ = staticmethod(interrupted)

    path = tmp_path / "run.pt"
    with pytest.raises(InterruptedError):
        vsc.fit(built(), Interrupted(), checkpoint=path, **settings, **QUIET)
    assert vsc.load_checkpoint(path)["epoch"] == 15
    stream = make()
    assert_same(fitted(stream, checkpoint=path, resume=True, **settings), whole)
    assert getattr(stream, "starts", [30])[-1] == 30


def test_a_longer_run_keeps_the_steps_of_an_epoch(tmp_path):
    path = tmp_path / "run.pt"
    settings = {"checkpoint": path, "cooldown": 0}
    fitted(Jumping(), steps=20, **settings)
    longer = fitted(Jumping(), steps=110, resume=True, **settings)
    assert (longer[1].steps_per_epoch, len(longer[1])) == (1, 110)
    whole = fitted(Jumping(), steps=110, cooldown=0)
    assert all(torch.equal(longer[0][name], whole[0][name]) for name in whole[0])
    with pytest.raises(ValueError, match="trained for 110 steps, more than steps=50; steps includes those"):
        fitted(Jumping(), steps=50, resume=True, **settings)


def test_a_run_that_ended_within_an_epoch_is_not_extended(tmp_path):
    settings = {"checkpoint": tmp_path / "run.pt"}
    _, history = fitted(Jumping(), steps=101, **settings)
    assert (history.steps, history.steps_per_epoch) == (101, 2)
    assert fitted(Jumping(), steps=101, resume=True, **settings)[1].steps == 101
    for steps in (102, 150):
        with pytest.raises(ValueError, match="ended after 101 steps, within an epoch of 2, and cannot be extended"):
            fitted(Jumping(), steps=steps, resume=True, **settings)


def test_an_iterator_goes_on_with_new_data_and_says_so(tmp_path):
    path = tmp_path / "run.pt"
    stream = iter(Drawn())
    vsc.fit(built(), stream, steps=10, checkpoint=path, **QUIET)
    kept = StreamBatches(iter(Drawn()), 10, seed=0).sample
    with pytest.warns(UserWarning, match="an iterator, which cannot start anew: the resumed run goes on after 10 ste"):
        vsc.fit(built(), stream, steps=12, checkpoint=path, resume=True, **QUIET)
    with pytest.warns(UserWarning, match="goes on after 10 steps"):
        later = StreamBatches(iter(Drawn()), 12, seed=0, start=10).sample
    assert len(torch.cat([kept, later]).unique(dim=0)) == len(kept) + len(later)


def test_a_stream_draws_apart_from_the_model():
    class Watched(Drawn):
        def __iter__(self):
            for batch in super().__iter__():
                self.seen.append(batch)
                yield batch

    streams = Watched(), Watched()
    for stream, kind in zip(streams, ("normal", "spikes"), strict=True):
        stream.seen = []
        vsc.fit(built(kind), stream, steps=30, seed=4, **QUIET)
    # The spikes draw other numbers than the normal codes, and the data do not depend on it.
    assert all(torch.equal(*pair) for pair in zip(*(stream.seen for stream in streams), strict=True))
    data, other = torch.cat(streams[0].seen), StreamBatches(Drawn(), 30, seed=5).sample
    assert len(torch.cat([data, other]).unique(dim=0)) == len(data) + len(other)


def test_a_batch_may_be_overwritten_by_the_next():
    class Overwriting:
        def __iter__(self):
            buffer = torch.empty(50, 16)
            for batch in X.split(50):
                yield buffer.copy_(batch)

    assert_same(fitted(Overwriting(), steps=16), fitted(Repeated(X.split(50)), steps=16))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_stream_may_leave_a_mode_on_or_pass_gradients(mode):
    scale = torch.ones((), requires_grad=True)

    class Activations:
        def __iter__(self):
            with mode():
                for batch in X.split(50):
                    yield batch * scale

    found = fitted(Activations(), steps=8)
    gc.collect()  # deletes a generator that is within the mode
    assert torch.is_grad_enabled()
    assert_same(found, fitted(Repeated(X.split(50)), steps=8))
    assert scale.grad is None
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_ragged_batches_are_taken_as_they_are():
    sizes = [50, 7, 90, 1, 252]
    history = vsc.fit(built(), Repeated(X.split(sizes)), steps=10, compile=False, **QUIET)
    assert np.isfinite(history.elbo).all()


def test_the_number_of_data_is_the_streams_own():
    stream = Repeated(X.split(50))
    stream.num_data = 400
    model = built()
    vsc.fit(model, stream, steps=20, **QUIET)
    assert model.num_data == 400


def test_a_float64_model_is_trained_on_float64():
    batches = StreamBatches(Repeated([X.double() + 1e-12]), 3, seed=0)
    batches.to(torch.empty(0, dtype=torch.float64))
    assert torch.equal(next(batches.sources(0)), X.double() + 1e-12)


class Unending(IterableDataset):
    def __iter__(self):
        yield from X


def test_a_loader_without_length_is_a_stream():
    loader = DataLoader(Unending(), batch_size=50)
    assert is_stream(loader, 8)
    assert_same(fitted(loader, steps=8), fitted(Repeated(X.split(50)), steps=8))
    with pytest.raises(ValueError, match=r"of known length.*give that class a __len__, or pass steps="):
        vsc.fit(built(), loader, epochs=1, **QUIET)


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (Drawn(), {}, "steps must be the number of batches to train on, because a Drawn is a stream without epochs"),
        (Drawn(), {"epochs": 2}, "steps must be the number of batches"),
        (Drawn(), {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        (X, {"steps": 2, "epochs": 3}, "epochs=3 and steps=2 both set the length of the run; pass one"),
        (Drawn(), {"steps": 2, "batch_size": 9}, "batch_size=9 is for data in memory, and a stream has its own"),
        (iter([]), {"steps": 2}, "the stream, a list_iterator, yielded no batch; data must be a Dataset, an array"),
        (iter(X.split(50)), {"steps": 9}, "the stream ended after 8 of 9 steps"),
        (iter(["a"]), {"steps": 2}, "batches must be tensors .*, got a str; let the stream .* an iterable of tensors"),
        (iter(X), {"steps": 2}, r"batches must be tensors of shape \(B, ...\).* got a tensor of shape \(16,\)"),
        (iter([X, X[:, 1:]]), {"steps": 2}, r"batch 2 of the stream: all batches must have shape \(B, 16\) .* \(B, 15"),
        (iter([X, X.double()]), {"steps": 2}, "batch 2 of the stream: .* type torch.float32, got .* torch.float64"),
        (iter([X[:, 1:]]), {"steps": 1}, "does not take data of shape"),
        (iter([X / 0]), {"steps": 1}, "data holds .* NaN or infinite values"),
        (TensorDataset(X), {"steps": 2}, "data must be a Dataset, .* got a TensorDataset .*; put a torch Dataset into"),
        ("x.npy", {"steps": 2}, "data must be a Dataset, an array or tensor .* got a str"),
        ((X, X[:, 0]), {"steps": 2}, "data must be a Dataset, an array or tensor .* got a tuple"),
        ({"x": X}, {}, "data must be a Dataset, an array or tensor .* got a dict"),
        (None, {}, "data must be a Dataset, an array or tensor .* got a NoneType"),
    ],
)
def test_what_is_no_stream_is_refused_before_training(data, settings, message):
    model = built()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        vsc.fit(model, data, **settings, **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def late(batch):
    return [*X.repeat(4, 1).split(100), batch]  # 1,600 data, more than are looked at beforehand


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X / 0, "batch 17 of the stream: data holds"),
        (X[:, 1:], "batch 17 of the stream: all batches must have shape"),
        (X[0], r"batches must be tensors .* got a tensor of shape \(16,\)"),
        (None, "batches must be tensors .* got a NoneType"),
    ],
)
def test_a_later_batch_that_is_no_data_is_named(batch, message, tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=message):
        vsc.fit(built(), Repeated(late(batch)), steps=40, checkpoint=path, **QUIET)
    assert vsc.load_checkpoint(path)["epoch"] == 16


def test_a_stream_that_ends_early_leaves_the_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=r"the stream ended after 16 of 105 steps; the last checkpoint.*; pass fewer"):
        vsc.fit(built(), iter(late(X)[:-1]), steps=105, checkpoint=path, **QUIET)
    assert vsc.load_checkpoint(path)["epoch"] == 8
    shorter = fitted(Repeated(late(X)[:-1]), steps=16, checkpoint=path, resume=True, cooldown=0.25)
    assert len(shorter[1]) == 8


def test_nan_stops_a_run():
    model = built()
    with pytest.raises(vsc.NonFiniteLossError, match="at step 1 of epoch 17"):
        vsc.fit(model, Repeated(late(X * 1e30)), steps=40, **QUIET)


def test_units_of_the_data_do_not_matter():
    # Encoder and decoder take mean and scale from the first data, and the bound changes by d log a.
    a, b = 64.0, 8.0
    model, other = built(), built()
    for one in (model, other):
        one.decoder = vsc.NormalDecoder(3, 16, hidden=(), scale="data")
    other.load_state_dict(model.state_dict())
    histories = [
        vsc.fit(one, [scale * batch + shift for batch in X.split(50)], steps=20, **QUIET)
        for one, scale, shift in ((model, 1.0, 0.0), (other, a, b))
    ]
    first, second = (np.array(history.elbo) for history in histories)
    np.testing.assert_allclose(first - second, 16 * np.log(a), rtol=1e-5)
    with torch.no_grad():
        codes, scaled = model.encoder(X).mean, other.encoder(a * X + b).mean
    torch.testing.assert_close(codes, scaled, rtol=1e-3, atol=1e-4)


def test_lists_of_numbers_and_arrays_are_data_in_memory():
    assert not any(is_stream(data, 3) for data in ([[1.0, 2.0]], [np.zeros((2, 2))], X, X.numpy(), "a", {"a": X}))
    assert all(is_stream(data, None) for data in ([X, X], iter(X), Drawn(), Repeated(X), (x for x in X)))
    assert_same(fitted(X.tolist(), epochs=2), fitted(X, epochs=2))


def test_a_compiled_run_of_a_stream_is_captured(monkeypatch):
    monkeypatch.setitem(BACKENDS, "inductor", BACKENDS["eager"])  # test_compiled.py tests inductor
    model, eager = built(), built()
    history = vsc.fit(model, Jumping(), steps=12, compile=True, **QUIET)
    vsc.fit(eager, Jumping(), steps=12, compile=False, **QUIET)
    assert history.compiled
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
