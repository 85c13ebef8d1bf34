import json
import math

import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.evaluation.information import is_informative


@pytest.mark.slow
def test_the_one_number_comes_first(trained, digits):
    result = vsc.evaluate(trained, digits.test, num_draws=3)
    first, second = str(result).splitlines()[1:3]
    assert first.split()[:5] == ["latents", "a", "datum", "uses", f"{result.used_per_datum:.2f}"]
    assert f"{result.informative_latents} of 6  carry information" in second
    assert result.used_per_datum <= result.expected_l0 + 1e-6
    informative = is_informative(result.information.double(), result.usage, result.num_data)
    assert result.used_per_datum == pytest.approx(float(result.usage[informative].sum()), rel=1e-5)
    assert result.informative_latents == int(informative.sum())


def test_numbers_for_json(trained, digits):
    result = vsc.evaluate(trained, digits.test, num_draws=3)
    saved = json.loads(json.dumps(result.as_dict()))
    assert saved["information"] == result.information.tolist()
    assert saved["advice"] == list(result.advice)
    assert (saved["r2"], saved["hard_r2"]) == (result.r2, result.hard_r2)
    model = vsc.VAE(vsc.NormalEncoder(6, 2), vsc.NormalDecoder(2, 6), vsc.NormalPrior(2))
    real = vsc.evaluate(model, torch.randn(20, 6), num_draws=1)
    assert math.isnan(real.entropy_explained)
    assert json.loads(json.dumps(real.as_dict()))["entropy_explained"] is None
    assert "entropy explained" not in str(real).split("bounds")[0].replace("entropy explained 0", "")
    assert "squared error a datum, R2 0" in str(real)
