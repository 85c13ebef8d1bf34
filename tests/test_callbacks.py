"""Callbacks of `fit`, and the recipes for them in docs/training.md."""

import ast
import csv
import functools
import itertools
import pickle
import random
import re
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch

import vsc_pyro as vsc

QUIET = {"device": "cpu", "progress": False, "batch_size": 100}
PAGE = (Path(__file__).parent.parent / "docs" / "training.md").read_text()


def weights(model):
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def test_callbacks_see_every_epoch_and_change_nothing(small_vae, digits):
    seen = []

    def look(history, model):
        assert not model.training
        assert not torch.is_grad_enabled()
        model.train()
        seen.append((len(history), float(torch.rand(())), random.random(), float(np.random.rand())))  # noqa: NPY002

    models, x = [small_vae(), small_vae()], digits.train[:200]
    models[0].decoder.eval()
    plain = vsc.fit(models[1], x, epochs=3, **QUIET)
    history = vsc.fit(models[0], x, epochs=3, callbacks=[look, lambda history, model: None], **QUIET)
    assert history.elbo == plain.elbo
    assert torch.equal(*map(weights, models))
    assert not models[0].decoder.training
    assert [number for number, *_ in seen] == [1, 2, 3]
    assert len({drawn for _, drawn, *_ in seen}) == 3
    first = seen.copy()
    vsc.fit(small_vae(), x, epochs=3, callbacks=(look,), **QUIET)
    assert [drawn for _, drawn, *_ in seen[3:]] == [drawn for _, drawn, *_ in first]


def test_a_callback_ends_the_run_and_resume_continues_it(small_vae, digits, tmp_path):
    path, x, numbers = tmp_path / "c.pt", digits.train[:200], []
    settings = {"epochs": 5, "checkpoint": path, "checkpoint_every": 3, **QUIET}

    def stop_at_two(history, model):
        numbers.append(len(history))
        return np.bool_(len(history) == 2)

    ended = vsc.fit(small_vae(), x, callbacks=[stop_at_two, lambda h, m: numbers.append(-len(h))], **settings)
    assert (len(ended), ended.steps, ended.summary is None) == (2, 4, False)
    assert numbers == [1, -1, 2, -2]  # all are called, though the first ends the run
    model, whole = small_vae(seed=1), small_vae()
    history = vsc.fit(model, x, callbacks=[stop_at_two], resume=True, **settings)
    assert numbers[4:] == [3, 4, 5]
    assert history.elbo == vsc.fit(whole, x, epochs=5, **QUIET).elbo
    assert torch.equal(weights(model), weights(whole))


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (print, "callbacks must be a list of functions of .history, model., got <built-in function print>; pass"),
        (None, "callbacks must be a list of functions of .history, model., got None; pass \\[\\] for none"),
        ([lambda history: None], "callbacks must hold functions of .history, model., got <function"),
        ([3], "callbacks must hold functions of .history, model., got 3"),
        ([lambda history, model: 17], "must return True to stop the run, or False or None, got 17 from <function"),
    ],
)
def test_what_is_no_callback(small_vae, digits, callbacks, message):
    with pytest.raises(ValueError, match=message):
        vsc.fit(small_vae(), digits.train[:50], epochs=1, callbacks=callbacks, **QUIET)


def test_a_second_run_says_that_its_optimiser_is_new(small_vae, digits, capsys):
    model, x = small_vae(), digits.train[:50]
    for epochs in (1, 2):
        vsc.fit(model, x, epochs=epochs, batch_size=50, device="cpu")
    assert capsys.readouterr().err.count("a new optimiser for a model that was trained before") == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_callers_mode_changes_nothing(small_vae, digits, mode):
    models, x = [small_vae(), small_vae()], digits.train.images[:100].round()
    vsc.fit(models[0], x, epochs=2, validation=0.1, **QUIET)
    with mode():
        vsc.fit(models[1], x.clone(), epochs=2, validation=0.1, **QUIET)
    assert torch.equal(*map(weights, models))


def test_a_model_of_inference_mode_is_refused(small_vae, digits):
    with torch.inference_mode():
        model = small_vae()
    for fit, models in ((vsc.fit, model), (vsc.fit_ensemble, [model])):
        with pytest.raises(ValueError, match=r"model was built under torch\.inference_mode"):
            fit(models, digits.train[:50], epochs=1, device="cpu", progress=False)


# The recipes of docs/training.md


def recipe(word, names):
    """Run the recipe that holds this word."""
    (program,) = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M) if word in block]
    assert len([line for line in program.splitlines() if line]) <= 5
    program = program.replace("epochs=500", "epochs=1").replace("n_jobs=4", "n_jobs=1")
    exec(compile(program, "docs/training.md", "exec"), names)
    return names


@pytest.fixture
def names(small_vae, digits, monkeypatch, tmp_path):
    """What the recipes take for granted, in a folder of their own, with short runs."""
    monkeypatch.chdir(tmp_path)
    fit = functools.partial(vsc.fit, **QUIET | {"epochs": 2})
    return {"vsc": SimpleNamespace(fit=fit), "model": small_vae(), "data": digits.train[:300]}


def test_the_recipe_for_csv(names):
    history = recipe("csv.writer", names | {"csv": csv})["history"]
    rows = [line.split(",") for line in Path("run.csv").read_text().split()]
    expected = zip((1, 2), history.elbo, history.validation, strict=True)
    assert [tuple(map(float, row)) for row in rows] == list(expected)


def test_the_recipe_for_tensorboard(names):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    found = recipe("SummaryWriter", names | {"SummaryWriter": SummaryWriter})
    found["writer"].close()
    events = EventAccumulator("runs").Reload().Scalars("validation")
    assert [event.step for event in events] == [1, 2]
    assert [event.value for event in events] == pytest.approx(found["history"].validation)


def test_the_recipe_for_weights_and_biases(names, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # which needs the network
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    wandb = pytest.importorskip("wandb")
    found = recipe("wandb.init", names | {"wandb": wandb})
    found["run"].log({}, step=3)  # the next step sends the last one
    assert found["run"].summary["validation"] == found["history"].validation[-1]
    found["run"].finish()
    assert list(Path("wandb").glob("offline-run-*/*.wandb"))


def test_the_recipe_for_a_sweep(names, small_vae, capfd):
    ways = {"__name__": "__main__", "build": small_vae, "Parallel": joblib.Parallel, "delayed": joblib.delayed}
    found = recipe("Parallel", names | ways)
    best, lr, decay = ast.literal_eval(capfd.readouterr().out)
    sent = pickle.loads(pickle.dumps(joblib.wrap_non_picklable_objects(found["bound"])))  # as to a process
    results = [sent(*each) for each in itertools.product((1e-3, 3e-3), (0, 0.01))]
    assert (best, lr, decay) == max(results)
