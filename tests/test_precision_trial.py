import functools

import pytest
import torch

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
    assert f"fit: networks in {history.precision}, the faster precision here" in capsys.readouterr().err
    assert vsc.fit(small_vae().double(), digits.train, steps=2, precision="auto", **QUIET).precision == "float32"
