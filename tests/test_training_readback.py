"""Losses that come back late, as from a GPU."""

import functools

import numpy as np
import pytest
import torch
from conftest import waiting_is_an_error

import vsc_pyro as vsc
from vsc_pyro.training.losses import Copy, Losses


class Late:
    """Arrives when told to, or waited for; not to be looked at before that."""

    sent: list

    def __init__(self, values):
        self._values = values.clone()
        self.here = False
        self.sent.append(self)

    def is_here(self):
        return self.here

    def wait(self):
        self.here = True

    @property
    def values(self):
        assert self.here
        return self._values


@pytest.fixture
def late():
    return type("Late", (Late,), {"sent": []})


def add(losses, *values):
    for value in values:
        losses.add(torch.tensor(value), 2)


def seen(arrived):
    return [(values.tolist(), num_data, offset) for values, num_data, offset in arrived]


def test_what_has_not_arrived_is_left_for_a_later_look(late):
    losses = Losses(late)
    assert seen(losses.read()) == []
    add(losses, 1.0, 2.0)
    assert seen(losses.read()) == []
    add(losses, 3.0)
    late.sent[0].here = True
    assert seen(losses.read()) == [([1.0, 2.0], 4, 0)]
    add(losses, 4.0, 5.0)
    assert seen(losses.read()) == []
    late.sent[2].here = True  # not before those that were sent before
    assert seen(losses.read()) == []
    assert len(late.sent) == 3
    assert seen(losses.read(wait=True)) == [([3.0], 2, 2), ([4.0, 5.0], 4, 3)]
    assert losses.mean() == 15 / 10


def test_on_the_cpu_they_are_here_at_once():
    losses = Losses()
    add(losses, 1.0, 2.0)
    assert seen(losses.read()) == [([1.0, 2.0], 4, 0)]
    assert losses.mean() == 0.75


def test_fit_is_the_same_and_stops_at_the_step_that_failed(small_vae, digits, late, monkeypatch, capsys):
    settings = {"batch_size": 10, "epochs": 2, "device": "cpu"}
    models = small_vae(), small_vae()
    expected = vsc.fit(models[0], digits.train, progress=False, **settings)
    monkeypatch.setattr("vsc_pyro.training.run.Losses", functools.partial(Losses, late))
    history = vsc.fit(models[1], digits.train, **settings)
    assert history.elbo == expected.elbo
    assert torch.equal(models[0].reference, models[1].reference)
    steps = -(-len(digits.train) // 10)
    assert [len(sent.values) for sent in late.sent] == 2 * [*(steps // 50) * [50], steps % 50]
    assert f"{2 * steps}/{2 * steps}" in capsys.readouterr().err
    calls = 0

    def poison(module, inputs, output):
        nonlocal calls
        calls += module.training
        return output * (float("nan") if calls == 53 else 1.0)

    model = small_vae()
    model.decoder.network.register_forward_hook(poison)
    with pytest.raises(vsc.NonFiniteLossError, match="the loss became nan at step 53 of epoch 1"):
        vsc.fit(model, digits.train, progress=False, **settings)
    assert calls == steps  # it was found out when the epoch ended


@pytest.mark.cuda
def test_from_a_gpu_they_come_without_waiting(device):
    values = torch.arange(5.0, device=device)
    with waiting_is_an_error():
        copy = Copy(values)
        copy.is_here()
    copy.wait()
    assert copy.is_here()
    assert copy.values.is_pinned()
    np.testing.assert_array_equal(copy.values.numpy(), range(5))
