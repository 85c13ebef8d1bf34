"""Defaults of `fit` that a model declares."""

import pytest
import torch
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro.training.defaults import LIBRARY_DEFAULTS, or_default

QUIET = {"progress": False, "device": "cpu"}
OWN = {"lr": 4e-3, "warmup": 0.5, "cooldown": 0.5, "batch_size": 50}


class Declared(vsc.VAE):
    training_defaults = OWN


class Computed(vsc.VAE):
    @property
    def training_defaults(self):
        return {"lr": 1e-3 * len(list(self.encoder.children()))}


def built(kind=vsc.VAE):
    torch.manual_seed(0)
    return kind(vsc.NormalEncoder(64, 3), vsc.BernoulliDecoder(3, 64), vsc.NormalPrior(3))


def fitted(kind, data, **settings):
    model = built(kind)
    vsc.fit(model, data, epochs=4, **settings, **QUIET)
    return model.state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def images(digits):
    return digits.train.images[:200].flatten(1).round()


def test_a_models_defaults_are_those_arguments(images):
    assert_same(fitted(Declared, images), fitted(vsc.VAE, images, **OWN))
    with pytest.raises(AssertionError):
        assert_same(fitted(Declared, images), fitted(vsc.VAE, images))


def test_an_argument_replaces_the_models_default_even_by_the_librarys(images):
    assert_same(fitted(Declared, images, **LIBRARY_DEFAULTS), fitted(vsc.VAE, images))


def test_defaults_may_be_computed(images):
    model = built(Computed)
    assert or_default(model, "lr", None) == 1e-3 * len(list(model.encoder.children()))
    assert or_default(model, "batch_size", None) == 200


def test_a_rate_may_depend_on_the_number_of_steps(images, tmp_path, monkeypatch):
    monkeypatch.setattr(Declared, "training_defaults", {"lr": lambda steps: 8e-3 / steps})
    assert_same(fitted(Declared, images), fitted(vsc.VAE, images, lr=2e-3))  # four steps
    for train in (vsc.fit, lambda model, data, **settings: vsc.fit_ensemble([model], data, compile=False, **settings)):
        models = [built(Declared), built(vsc.VAE)]
        for model, settings in zip(models, ({}, {"lr": 4e-3}), strict=True):
            train(model, images, epochs=2, **settings, **QUIET)
        assert_same(*(model.state_dict() for model in models))
    path = tmp_path / "run.pt"
    vsc.fit(built(Declared), images, epochs=2, checkpoint=path, **QUIET)
    vsc.fit(built(Declared), images, epochs=4, checkpoint=path, resume=True, **QUIET)  # a resumed run keeps its own
    assert vsc.load_checkpoint(path)["settings"]["lr"] == 4e-3


def test_a_default_gives_way_to_a_schedule_of_the_same_setting(images):
    beta = {"schedules": {"beta": vsc.Ramp(0, 1, length=3)}}
    halved = {"lr_schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)}
    for schedule, replaced in ((beta, "warmup"), (halved, "cooldown")):
        same = fitted(vsc.VAE, images, **{**OWN, replaced: 0.0}, **schedule)
        assert_same(fitted(Declared, images, **schedule), same)


def test_the_default_batch_size_is_for_data_in_memory(images):
    loader = DataLoader(images, batch_size=100)
    model = built(Declared)
    vsc.fit(model, loader, epochs=1, **QUIET)


def test_an_ensemble_has_the_defaults_of_its_models(images):
    models = [built(Declared), built(vsc.VAE)]
    for model, settings in zip(models, ({}, OWN), strict=True):
        vsc.fit_ensemble([model], images, epochs=2, compile=False, **settings, **QUIET)
    assert_same(*(model.state_dict() for model in models))


def test_a_checkpoint_holds_the_numbers_and_a_resumed_run_must_have_them(images, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    vsc.fit(built(Declared), images, epochs=2, checkpoint=path, **QUIET)
    settings = vsc.load_checkpoint(path)["settings"]
    assert {name: settings[name] for name in OWN} == OWN
    monkeypatch.setattr(Declared, "training_defaults", {**OWN, "lr": 2e-3})
    with pytest.raises(ValueError, match=r"is of a run with lr=0\.004 \(now 0\.002\)"):
        vsc.fit(built(Declared), images, epochs=4, checkpoint=path, resume=True, **QUIET)
    monkeypatch.setattr(Declared, "training_defaults", {**OWN, "cooldown": 0.1})  # a resumed run keeps its own share
    vsc.fit(built(Declared), images, epochs=4, checkpoint=path, resume=True, **QUIET)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"lr": -1}, "lr must be a finite number above 0, got -1"),
        ({"batch_size": 0.5}, "batch_size must be a whole number of at least 1, got 0.5"),
        ({"warmup": 1}, "warmup must be a share of the run, from 0 to below 1, got 1"),
        ({"cooldown": 2}, "cooldown must be a share of the run, from 0 to 1, got 2"),
        ({"rate": 1}, "training_defaults of Declared names 'rate'; a model may set 'objective', 'lr', 'warmup'"),
        (3e-4, "training_defaults of Declared must be a mapping from arguments of fit to values, got 0.0003"),
    ],
)
def test_bad_defaults_are_refused_before_training(images, declared, message, monkeypatch):
    monkeypatch.setattr(Declared, "training_defaults", declared)
    model = built(Declared)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for fit in (vsc.fit, lambda model, data, **settings: vsc.fit_ensemble([model], data, **settings)):
        with pytest.raises(ValueError, match=message):
            fit(model, images, **QUIET)
    assert_same(model.state_dict(), before)
