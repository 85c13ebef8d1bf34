import functools

import pytest
import torch
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI

QUIET = {"progress": False, "device": "cpu"}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("of_half", "expected"), [(0.8, "bfloat16"), (0.95, "float32")])
def test_a_trial_decides(small_vae, digits, compile, of_half, expected, monkeypatch, tmp_path):
    # A clock by which bfloat16 takes the share `of_half` of float32's time, in all rounds but the first two.
    def seconds(work, device):
        called.append(work())
        return [1.0, of_half if len(called) > 4 else 9.0][(len(called) - 1) % 2]

    monkeypatch.setattr("vsc_pyro.training.loop.CompiledSVI", functools.partial(CompiledSVI, backend="eager"))
    monkeypatch.setattr("vsc_pyro.acceleration.precision_trial._seconds", seconds)
    called = []
    settings = {"compile": compile, "batch_size": 100, **QUIET}
    chosen, tried = small_vae(), small_vae()
    known = vsc.fit(chosen, digits.train, epochs=2, precision=expected, **settings)
    saved = settings | {"precision": "auto", "checkpoint": tmp_path / "c.pt"}
    vsc.fit(tried, digits.train, epochs=1, **saved)
    assert len(called) == 22
    history = vsc.fit(tried, digits.train, epochs=2, resume=True, **saved)
    assert len(called) == 22  # a resumed run keeps the choice
    assert history.precision == known.precision == expected
    assert history.elbo == known.elbo
    assert all(map(torch.equal, tried.state_dict().values(), chosen.state_dict().values()))


def test_a_trial_of_real_times(small_vae, digits, capsys):
    history = vsc.fit(small_vae(), digits.train, steps=2, precision="auto", device="cpu")
    assert f"fit: networks in {history.precision}, by a trial on a minibatch" in capsys.readouterr().err


def test_a_model_of_another_type_is_not_tried(small_vae, digits, capsys):
    history = vsc.fit(small_vae().double(), digits.train, steps=2, precision="auto", device="cpu")
    assert history.precision == "float32"
    assert "networks in" not in capsys.readouterr().err


class Complex(nn.Module):
    """The identity by way of an operation that there is not in bfloat16."""

    def forward(self, x):
        return torch.complex(x, x).real


class Looking(nn.Module):
    """The identity, which looks at values of bfloat16 alone."""

    def forward(self, x):
        return x if x.dtype == torch.float32 or x.sum() < 1e30 else -x


@pytest.mark.parametrize("layer", [Complex, Looking])
def test_bfloat16_that_fails_leaves_the_run_of_float32(small_vae, digits, layer, monkeypatch):
    def trained(precision):
        vae = small_vae()
        vae.encoder.network[2] = layer()
        settings = {"steps": 5, "batch_size": 100, "compile": True, **QUIET}
        return vsc.fit(vae, digits.train, precision=precision, **settings), vae.state_dict()

    monkeypatch.setattr("vsc_pyro.training.loop.CompiledSVI", functools.partial(CompiledSVI, backend="eager"))
    monkeypatch.setattr("vsc_pyro.acceleration.precision_trial._seconds", lambda work, device: work() is None)
    (known, expected), (history, found) = trained("float32"), trained("auto")
    assert (history.precision, history.compiled) == ("float32", True)
    assert history.elbo == known.elbo
    assert all(map(torch.equal, found.values(), expected.values()))
