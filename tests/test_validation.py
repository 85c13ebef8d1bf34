"""Validation after each epoch, early stopping by it, and learning rates that follow it."""

import functools
import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, StackDataset, WeightedRandomSampler

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI
from vsc_pyro.training.validation import Measures, _split, bounds_after_warmup, is_exhausted, record

QUIET = {"device": "cpu", "progress": False, "batch_size": 100, "lr": 1e-2}
PLATEAU = functools.partial(ReduceLROnPlateau, mode="max", threshold_mode="abs", patience=0, factor=0.5)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_bound_is_that_of_the_model_after_the_epoch(small_vae, digits):
    model, held_out = small_vae(), digits.test
    history = vsc.fit(model, digits.train[:200], epochs=2, validation=held_out, seed=3, warmup=0.5, **QUIET)
    bound = vsc.bounds(model, held_out, num_draws=1, seed=3)
    assert history.validation[-1] == float(bound.elbo.mean())
    model.beta = 7.0  # the bound is that of beta = 1
    assert vsc.bounds(model, held_out, num_draws=1, seed=3).elbo.mean() == bound.elbo.mean()
    result = vsc.evaluate(model, held_out, num_draws=1, seed=3)
    assert history.expected_l0[-1] == pytest.approx(result.expected_l0, abs=0.05)  # of another binarisation
    assert abs(history.used_latents[-1] - result.used_latents) <= 1


@pytest.mark.parametrize("loads", [False, True])
def test_validation_changes_no_weight(small_vae, digits, loads):
    x, held_out = digits.train[:230], digits.test[:50]
    held_out = DataLoader(held_out, 20) if loads else held_out
    x = DataLoader(x, 60, shuffle=True) if loads else x
    settings = {key: value for key, value in QUIET.items() if not (loads and key == "batch_size")}
    models = [small_vae(), small_vae()]
    plain = vsc.fit(models[0], x, epochs=3, **settings)
    history = vsc.fit(models[1], x, epochs=3, validation=held_out, **settings)
    assert history.elbo == plain.elbo
    assert same(*models)
    assert len(history.validation) == len(history.used_latents) == len(history.expected_l0) == 3
    assert (plain.validation, plain.best_epoch) == ([], None)


def own():
    return torch.Generator().manual_seed(7)


LOADERS = {
    "in order": lambda x: DataLoader(x, 20),
    "with labels": lambda x: DataLoader(StackDataset(x, torch.arange(len(x))), 20),
    "shuffled": lambda x: DataLoader(x, 20, shuffle=True),
    "shuffled by its own generator": lambda x: DataLoader(x, 20, shuffle=True, generator=own()),
    "a new sample": lambda x: DataLoader(x, 20, sampler=RandomSampler(x, num_samples=30, generator=own())),
    "weighted": lambda x: DataLoader(x, 20, sampler=WeightedRandomSampler([0.1] * len(x), 30)),
}

CHANGED = r"run with validation=.*checksum \w{8} \(now .*checksum \w{8}\)"


@pytest.mark.parametrize("kind", LOADERS)
def test_every_pass_of_a_loader_is_the_same_and_a_run_resumes_exactly(small_vae, digits, tmp_path, kind):
    data, held_out, load, path = digits.train[:100], digits.test.images[:50].round(), LOADERS[kind], tmp_path / "c.pt"
    models, settings = [small_vae(), small_vae(seed=1)], {"cooldown": 0} | QUIET
    loader = load(held_out)
    history = vsc.fit(models[0], data, epochs=4, validation=loader, **settings)
    if loader.generator is not None:
        assert torch.equal(loader.generator.get_state(), own().get_state())
    vsc.fit(small_vae(), data, epochs=2, validation=load(held_out), checkpoint=path, **settings)
    going_on = functools.partial(vsc.fit, data=data, epochs=4, checkpoint=path, resume=True, **settings)
    with pytest.raises(ValueError, match=CHANGED):
        going_on(small_vae(), validation=load(held_out.flip(0)))
    assert going_on(models[1], validation=load(held_out)).validation == history.validation
    assert same(*models)


def test_the_checksum_is_that_of_all_data_whatever_the_batches(small_vae, digits, tmp_path):
    data, held_out, path = digits.train[:100], digits.test.images[:50].round(), tmp_path / "c.pt"
    vsc.fit(small_vae(), data, epochs=1, validation=DataLoader(held_out, 20), checkpoint=path, **QUIET)
    settings = {"checkpoint": path, "resume": True} | QUIET
    other = torch.cat([held_out[:-1], 1 - held_out[-1:]])
    with pytest.raises(ValueError, match=CHANGED):
        vsc.fit(small_vae(), data, epochs=2, validation=DataLoader(other, 20), **settings)
    assert len(vsc.fit(small_vae(), data, epochs=2, validation=DataLoader(held_out, 7), **settings)) == 2


class Once(IterableDataset):
    """A stream that does not start anew."""

    def __init__(self, x):
        self.rows = iter(x)

    def __iter__(self):
        return self.rows


def with_noise(rows):
    return torch.stack(rows) * torch.from_numpy(np.random.rand(len(rows), 1, 1, 1)).float()  # noqa: NPY002 the user's


@pytest.mark.parametrize(
    "load",
    [lambda x: DataLoader(x, 20, collate_fn=with_noise), lambda x: DataLoader(Once(x), 20)],
    ids=["noise", "once"],
)
def test_a_loader_of_other_data_in_every_pass_is_refused(small_vae, digits, load):
    model, before = small_vae(), small_vae()
    loader = load(digits.test.images[:50].round())
    with pytest.raises(ValueError, match=r"validation: data must be a DataLoader that yields the same data in every"):
        vsc.fit(model, digits.train[:50], epochs=1, validation=loader, **QUIET)
    assert same(model, before)


def test_a_share_is_split_off_by_the_seed(digits):
    data = vsc.Dataset(torch.arange(50.0)[:, None], labels=torch.arange(50))
    train, held_out = _split(data, 0.1, 0)
    assert (len(train), len(held_out)) == (45, 5)
    assert sorted([*train.labels.tolist(), *held_out.labels.tolist()]) == list(range(50))
    assert torch.equal(_split(data, 0.1, 0)[1].labels, held_out.labels)
    assert not torch.equal(_split(data, 0.1, 1)[1].labels, held_out.labels)


class InterruptionError(Exception):
    pass


def interrupt(history, model):
    if len(history) == 4:
        raise InterruptionError


def test_a_run_stops_at_its_best_and_an_interrupted_one_as_well(small_vae, digits, tmp_path):
    path, data = tmp_path / "c.pt", digits.train[:300]
    schedules = {"encoder.gate.temperature": lambda step: 1 - step / 1000}
    settings = {"epochs": 100, "validation": 0.1, "schedules": schedules, "cooldown": 0} | QUIET
    whole = small_vae()
    history = vsc.fit(whole, data, patience=3, **settings)
    best = history.best_epoch
    assert len(history) == best + 3 < 100
    assert history.validation[best - 1] == max(history.validation) > max(history.validation[best:])
    held_out = _split(data, 0.1, 0)[1]
    assert float(vsc.bounds(whole, held_out, num_draws=1).elbo.mean()) == history.validation[best - 1]
    assert float(whole.encoder.gate.temperature) == pytest.approx(1 - (3 * best - 1) / 1000)
    assert history.summary is not None

    with pytest.raises(InterruptionError):
        vsc.fit(small_vae(), data, patience=3, checkpoint=path, callbacks=[interrupt], **settings)
    assert vsc.load_checkpoint(path)["epoch"] == 4  # written before the callback
    resumed, again = small_vae(seed=1), small_vae(seed=2)
    assert vsc.fit(resumed, data, patience=3, checkpoint=path, resume=True, **settings).elbo == history.elbo
    assert same(whole, resumed)
    assert len(vsc.fit(again, data, patience=3, checkpoint=path, resume=True, **settings)) == len(history)
    assert same(whole, again)
    loaded = small_vae(seed=3)
    vsc.load_weights(loaded, vsc.load_checkpoint(path), path)
    assert same(whole, loaded)

    longer, patient = small_vae(), small_vae(seed=4)
    expected = vsc.fit(longer, data, patience=5, **settings)
    assert vsc.fit(patient, data, patience=5, checkpoint=path, resume=True, **settings).elbo == expected.elbo
    assert same(longer, patient)
    with pytest.raises(ValueError, match=r"was written with patience, .* beside the last; resume with it"):
        vsc.fit(small_vae(), data, checkpoint=path, resume=True, **settings)
    state = vsc.load_checkpoint(path)
    for place, value in (("validation", [math.nan] * 9), ("used_latents", [1.5] * len(expected)), ("expected_l0", [])):
        vsc.save_checkpoint(path, state | {"history": state["history"] | {place: value}})
        with pytest.raises(ValueError, match=rf"history\.{place} must be {len(expected)} finite numbers"):
            vsc.fit(small_vae(), data, patience=9, checkpoint=path, resume=True, **settings)


def test_the_warmup_does_not_count():
    history = vsc.History(
        elbo=[0.0] * 6, validation=[5.0, 4.0, 3.0, 2.0, 1.0, 0.0], warmup_steps=25, steps_per_epoch=10
    )
    assert history.best_epoch == 1
    assert is_exhausted(history, 3)  # epochs 4, 5 and 6
    assert not is_exhausted(history, 4)
    assert bounds_after_warmup(history) == [None, None, None, 2.0, 1.0, 0.0]
    assert bounds_after_warmup(vsc.History(elbo=[0.0] * 2)) == [None, None]
    assert not is_exhausted(vsc.History(), 1)


def test_a_plateau_lowers_the_rate_and_resumes_exactly(small_vae, digits, tmp_path):
    schedulers = []

    def follow(optimizer):
        schedulers.append(PLATEAU(optimizer))
        return schedulers[-1]

    data = digits.train[:200]
    settings = {"validation": digits.test[:30], "lr_schedule": follow} | QUIET
    history = vsc.fit(small_vae(), data, epochs=10, warmup=0.2, **settings)
    expected = PLATEAU(torch.optim.Adam([torch.zeros(1)], lr=1e-2))
    for bound in history.validation[2:]:  # not those of the warm-up
        expected.step(bound)
    assert schedulers[0].state_dict() == expected.state_dict()
    assert schedulers[0].get_last_lr()[0] < 1e-2
    whole, resumed, path = small_vae(), small_vae(seed=1), tmp_path / "c.pt"
    history = vsc.fit(whole, data, epochs=10, **settings)
    vsc.fit(small_vae(), data, epochs=6, checkpoint=path, **settings)
    assert vsc.fit(resumed, data, epochs=10, checkpoint=path, resume=True, **settings).elbo == history.elbo
    assert same(whole, resumed)
    other = {"lr_schedule": functools.partial(PLATEAU, factor=0.1)}
    with pytest.raises(ValueError, match=r"factor=0\.5 after as many epochs \(now 0\.1\)"):
        vsc.fit(small_vae(), data, epochs=11, checkpoint=path, resume=True, **settings | other)


def test_compiled_and_eager_runs_agree(small_vae, digits, monkeypatch):
    monkeypatch.setattr("vsc_pyro.training.loop.CompiledSVI", functools.partial(CompiledSVI, backend="eager"))
    settings = {"epochs": 30, "validation": 0.1, "patience": 3, "clip_norm": 20.0, "weight_decay": 0.1} | QUIET
    settings |= {"callbacks": [lambda history, model: bool(torch.rand(()) < 0)], "lr_schedule": PLATEAU}
    models = [small_vae(), small_vae()]
    eager, compiled = (
        vsc.fit(model, digits.train[:200], compile=compiles, **settings)
        for model, compiles in zip(models, (False, True), strict=True)
    )
    assert compiled.compiled
    assert len(compiled) == len(eager) < 30
    torch.testing.assert_close(compiled.validation, eager.validation, rtol=1e-4, atol=0)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=1e-3, atol=1e-4)


def test_checkpoints_of_before_validation_are_resumed(small_vae, digits, tmp_path):
    path, x = tmp_path / "c.pt", digits.train[:100]
    whole = vsc.fit(small_vae(), x, epochs=3, **QUIET)
    vsc.fit(small_vae(), x, epochs=2, checkpoint=path, **QUIET)
    state = vsc.load_checkpoint(path)
    del state["last"]
    for name in ("validation", "used_latents", "expected_l0"):
        del state["history"][name]
    for name in ("validation", "keeps_best", "optimizer", "clip_norm"):
        del state["settings"][name]
    vsc.save_checkpoint(path, state)
    with pytest.raises(ValueError, match=r"is of a run with validation=None \(now "):
        vsc.fit(small_vae(), x, epochs=3, checkpoint=path, resume=True, validation=digits.test[:9], **QUIET)
    assert vsc.fit(small_vae(), x, epochs=3, checkpoint=path, resume=True, **QUIET).elbo == whole.elbo


def test_parts_of_a_stream_are_validated(small_vae, digits):
    settings = {key: value for key, value in QUIET.items() if key != "batch_size"}
    stream = [digits.train.images[:50].round(), digits.train.images[50:100].round()]
    history = vsc.fit(small_vae(), stream, steps=6, validation=digits.test[:20], patience=9, **settings)
    assert len(history.validation) == len(history) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 1.0}, "validation must be data, or a share of data above 0 and below 1, got 1.0"),
        ({"validation": True}, "validation must be data, or a share of data above 0 and below 1, got True"),
        ({"validation": 0.999}, r"validation=0\.999 of 100 data leaves none to train on"),
        ({"validation": torch.rand(5, 9)}, r"validation: .*\(N, 9\)"),
        ({"validation": DataLoader(torch.rand(5, 9))}, r"validation: batch 1 of the DataLoader: .*\(N, 9\)"),
        ({"patience": 3}, "patience=3 counts epochs .* and there is none; pass validation="),
        ({"validation": 0.1, "patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"lr_schedule": PLATEAU}, "ReduceLROnPlateau, which steps by the validation bound, and there is none"),
        (
            {"validation": 0.1, "lr_schedule": ReduceLROnPlateau},
            "mode='max' and threshold_mode='abs', .* got mode='min'",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(small_vae, digits, settings, message):
    model, before = small_vae(), small_vae()
    with pytest.raises(ValueError, match=message):
        vsc.fit(model, digits.train[:100], epochs=1, **settings, **QUIET)
    assert same(model, before)


def test_a_share_is_of_data_in_memory(small_vae, digits):
    x = digits.train.images[:100].round()
    for data, length in ((DataLoader(x, 50), {"epochs": 1}), (iter([x, x]), {"steps": 2})):
        with pytest.raises(ValueError, match=r"validation=0\.1 splits data in memory, and data is a \w+; keep some"):
            vsc.fit(small_vae(), data, validation=0.1, device="cpu", progress=False, **length)


def test_a_bound_that_is_not_finite_ends_the_run():
    history = vsc.History(elbo=[1.0])
    with pytest.raises(vsc.NonFiniteLossError, match="the validation bound became nan in epoch 1"):
        record(history, Measures(math.nan, 0, 0.0))
    assert not history.validation
