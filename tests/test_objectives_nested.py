import pytest
import torch
from problems.linear import linear_model
from torch.distributions import kl_divergence

import vsc_pyro as vsc


@pytest.mark.parametrize("variance", ["fixed", "per-pixel"])
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_it_is_the_mean_bound_of_truncated_models(variance, beta):
    model, x, _ = linear_model(variance=variance)
    model, x = model.double(), x[:20].double()
    model.beta = beta
    loss = vsc.NestedELBO(prefixes=(1, 3), max_plate_nesting=1).loss(model.model, model.guide, x)
    q, p = model.encoder(x).base_dist, model.prior(x).base_dist
    bounds = []
    for m in (1, 3, 5):
        small = vsc.NormalDecoder(m, 9, hidden=(), scale=0.5, variance=variance).double()
        with torch.no_grad():
            small.own_layer.weight.copy_(model.decoder.own_layer.weight[:, :m])
            small.own_layer.bias.copy_(model.decoder.own_layer.bias)
            if variance == "per-pixel":
                small.amplitude.copy_(model.decoder.amplitude)
        expected = small(q.mean[:, :m]).expected_log_prob(x, q.variance[:, :m]).sum()
        bounds.append(expected - beta * kl_divergence(q, p.expand(q.batch_shape))[:, :m].sum())
    assert loss == pytest.approx(-sum(bounds).item() / 3, rel=1e-12)


def test_it_trains_a_dictionary_eager_and_captured():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = vsc.SparseDictionary(6, 12, expected_active=2.0)
        svi_class = vsc.CompiledSVI if compile else vsc.SVI
        options = {"backend": "eager"} if compile else {}
        model.prepare(x)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        svi = svi_class(
            model.model, model.guide, optimizer, vsc.NestedELBO(prefixes=(3,), max_plate_nesting=1), **options
        )
        histories.append([float(svi.step(x)) for _ in range(10)])
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)
    assert histories[0][-1] < histories[0][0]


def test_prefixes_are_checked():
    for bad in ((), (3, 2), (2, 2)):
        with pytest.raises(ValueError, match="prefixes must be numbers of latents in ascending order"):
            vsc.NestedELBO(prefixes=bad)
    model, x, _ = linear_model()
    with pytest.raises(ValueError, match="prefixes must be shorter than the code of 5 latents"):
        vsc.NestedELBO(prefixes=(5,), max_plate_nesting=1).loss(model.model, model.guide, x)


def test_errors_name_the_nested_objective():
    model = vsc.VAE(vsc.SpikeSlabEncoder(6, 3), vsc.NormalDecoder(3, 6), vsc.SpikeSlabPrior(3))
    with pytest.raises(ValueError, match="objective='nested' needs a linear NormalDecoder"):
        vsc.fit(model, torch.ones(4, 6), objective="nested", epochs=1, progress=False)
    with pytest.raises(ValueError, match="objective='nested' draws no codes"):
        vsc.fit(model, torch.ones(4, 6), objective="nested", num_draws=2, epochs=1, progress=False)


def test_other_prefixes_are_noticed_on_resume(tmp_path):
    def fit(prefixes, **settings):
        torch.manual_seed(0)
        model, x = vsc.SparseDictionary(6, 12, expected_active=2.0), torch.ones(20, 6).cumsum(0)
        objective = vsc.NestedELBO(prefixes=prefixes, max_plate_nesting=1)
        settings |= {"checkpoint": tmp_path / "run.pt", "progress": False, "device": "cpu"}
        vsc.fit(model, x, objective=objective, **settings)

    fit((3,), epochs=1)
    fit((3,), epochs=2, resume=True)
    with pytest.raises(ValueError, match=r"prefixes=\(3,\).*prefixes=\(3, 6\)"):
        fit((3, 6), epochs=3, resume=True)
