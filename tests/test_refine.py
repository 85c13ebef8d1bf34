import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import Z_BOUND
from problems.families import FAMILIES, SHAPE
from problems.linear import linear_model
from torch import nn
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.inference.linear_exact import exact_posterior
from vsc_pyro.inference.refine import FreePosterior, refine


def state(model):
    return {
        "weights": [p.detach().clone() for p in (*model.parameters(), *model.buffers())],
        "flags": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
        "store": dict(pyro.get_param_store().items()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gains_and_the_model_is_left_alone(digits, family):
    torch.manual_seed(0)
    encoder, prior = FAMILIES[family]()
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(5, SHAPE, hidden=(20,), activation="tanh"), prior)
    with torch.no_grad():
        model.decoder.network[-1].weight.mul_(5)
    model.decoder.eval()
    next(model.decoder.parameters()).requires_grad_(False)
    x = digits.test.binarized("static", torch.Generator().manual_seed(0)).images[:30]
    before = state(model)
    result = refine(model, x, steps=150, num_draws=5)
    after = state(model)
    for name in ("weights", "random"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert {k: v for k, v in after.items() if k not in ("weights", "random")} == {
        k: v for k, v in before.items() if k not in ("weights", "random")
    }
    assert result.gain.shape == (30,)
    assert result.gain.mean() > 0.5
    assert (result.gain > 0).float().mean() > 0.8
    assert result.posterior.batch_shape == (30,)
    with model.evaluating():
        assert type(result.posterior.sample()) is type(model.encoder(x).sample())
        assert result.posterior.event_shape == model.encoder(x).event_shape
    assert not any(t.requires_grad for t in (result.elbo_after, result.posterior.sample()))
    objective = vsc.evaluate(model, vsc.Dataset(x), num_draws=500).objective
    if family != "cauchy":  # whose means over draws have heavy tails
        assert objective == pytest.approx(result.elbo_before.mean().item(), abs=0.5)


def test_an_orthogonal_dictionary_is_refined_to_the_truth():
    model, _, _ = linear_model(6, 12, inclusion=0.3, noise=0.4)
    with torch.no_grad():
        model.decoder.dictionary.copy_(torch.linalg.qr(torch.randn(12, 6))[0].T)
        x = model.decoder(model.prior(None).sample((100,))).sample()
    truth = exact_posterior(model, x)
    result = refine(model, x, steps=300, lr=0.2)
    error = (result.posterior.base_dist.probs - truth.inclusion).abs().mean()
    with model.evaluating():
        amortised = (model.encoder(x).base_dist.probs - truth.inclusion).abs().mean()
    print(f"{amortised:.4f} -> {error:.4f}; {truth.log_evidence.mean():.4f} against {result.elbo_after.mean():.4f}")
    assert error < 0.02 < 0.1 < amortised
    difference = truth.log_evidence - result.elbo_after
    assert difference.mean() < 0.1
    assert difference.mean() > -Z_BOUND * difference.std() / 10


def test_bounds_are_those_of_the_posteriors_by_common_noise():
    model, x, _ = linear_model()
    result = refine(model, x[:50], steps=30)
    with model.evaluating():
        encoded, prior = model.encoder(x[:50]), model.prior(None)
        for bound, posterior in ((result.elbo_before, encoded), (result.elbo_after, result.posterior)):
            draws = model.decoder(posterior.sample((3000,))).log_prob(x[:50])
            expected = draws.mean(0) - kl_divergence(posterior, prior.expand((50,)))
            error = draws.std(0) * (1 / 100 + 1 / 3000) ** 0.5
            assert ((bound - expected).abs() / error).max() < Z_BOUND + 1  # 100 draws, whose tails are not normal
    again = refine(model, x[:50], steps=30)
    assert torch.equal(again.elbo_after, result.elbo_after)
    assert not torch.equal(refine(model, x[:50], steps=30, seed=1).elbo_after, result.elbo_after)


def test_data_that_gain_nothing_stay_where_the_encoder_put_them():
    model, x, _ = linear_model()
    good = refine(model, x[:50], steps=300).posterior.base_dist
    best = nn.Module()
    best.forward = lambda _: vsc.SpikeSlab(dist.Normal(good.slab.loc, good.slab.scale), logits=good.logits).to_event(1)
    spoilt = refine(vsc.VAE(best, model.decoder, model.prior), x[:50], steps=3, lr=30.0)
    assert (spoilt.gain == 0).float().mean() > 0.5
    kept = spoilt.gain == 0
    assert torch.equal(spoilt.posterior.base_dist.logits[kept], good.logits[kept])
    torch.testing.assert_close(spoilt.posterior.base_dist.slab.loc[kept], good.slab.loc[kept])


def test_chunks_do_not_show(monkeypatch):
    model, x, _ = linear_model()
    monkeypatch.setattr("vsc_pyro.inference.refine._ROWS_AT_ONCE", 1000)
    rows = []
    model.decoder.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    result = refine(model, x[:25], steps=30)
    assert max(rows) <= 1000
    assert result.posterior.batch_shape == result.gain.shape == (25,)
    assert (result.gain > 0).float().mean() > 0.8


def test_free_posteriors_start_where_they_are_told():
    model, x, _ = linear_model()
    model.eval()
    posterior = model.encoder(x)
    free = FreePosterior(posterior)
    torch.testing.assert_close(free(x).mean, posterior.mean)
    torch.testing.assert_close(free(x).variance, posterior.variance)
    assert free(x).base_dist.gate == posterior.base_dist.gate
    assert FreePosterior(posterior, "score")(x).base_dist.gate.reparametrized is False
    with pytest.raises(ValueError, match=r"independent scalars.*MultivariateNormal cannot be made of other parameters"):
        FreePosterior(dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3)))


def test_an_estimator_that_an_objective_lacks_is_refused_and_the_callers_validation_kept():
    model, x, _ = linear_model()
    for objective in (pyro.infer.TraceMeanField_ELBO(), pyro.infer.Trace_ELBO()):
        with pyro.validation_enabled(True):
            if isinstance(objective, pyro.infer.TraceMeanField_ELBO):
                with pytest.raises(NotImplementedError, match="fully reparameterized"):
                    refine(model, x[:5], objective=objective, gate="score", steps=2)
            else:
                refine(model, x[:5], objective=objective, gate="score", steps=2)
            assert pyro.infer.util.is_validation_enabled()
