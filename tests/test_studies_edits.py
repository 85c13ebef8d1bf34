"""The measure of edits in examples/studies/edits.py, on a decoder whose effects are known."""

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

import vsc_pyro as vsc


class Constant(torch.nn.Module):
    def forward(self, x):
        return dist.Normal(torch.tensor([2.0, -1.0, 0.0]), 0.1).expand((len(x), 3)).to_event(1)


def test_changes_and_locality_are_those_of_the_atoms(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples" / "studies"))
    from edits import edits_of

    decoder = vsc.NormalDecoder(3, (1, 10, 10), hidden=(), scale=1.0)
    with torch.no_grad():
        decoder.dictionary[:] = 0.0
        decoder.dictionary[0, 0, 4, 4] = 1.0
        decoder.dictionary[1] = -0.5
    model = vsc.VAE(Constant(), decoder, vsc.NormalPrior(3))
    found = edits_of(model, torch.rand(4, 1, 10, 10), [0, 1])
    point, even = found["latents"]
    assert point == {"on": 4, "change": pytest.approx(2 / 100), "locality": pytest.approx(1.0)}
    assert even == {"on": 4, "change": pytest.approx(0.5), "locality": pytest.approx(0.1)}
    assert found["change"] == pytest.approx((0.02 + 0.5) / 2)
    assert found["locality"] == pytest.approx(0.55)
