import copy
import math
import pickle

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import slab_of
from vsc_pyro.models.precision import networks_in

VARIANTS = [{}, {"scale": "amortised", "refine_steps": 0}, {"refine_steps": 2}, {"hidden": (16,)}]


def sparse_data(num=2000, dim=16, features=24, active=2.0, seed=0):
    """Data of a true dictionary of unit atoms, and what they are made of."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(features, dim, generator=generator), dim=1)
    on = torch.rand(num, features, generator=generator) < active / features
    values = on * (1 + 0.2 * torch.randn(num, features, generator=generator))
    return 5 + 3 * (values @ atoms + 0.05 * torch.randn(num, dim, generator=generator)), atoms, on


def build(num_features=24, dim=16, **options):
    torch.manual_seed(0)
    return vsc.SparseDictionary(dim, num_features, **({"expected_active": 2.0} | options))


def fitted(**options):
    model, (x, *_) = build(**options), sparse_data(600)
    vsc.fit(model, x, epochs=2, batch_size=100, progress=False, device="cpu")
    return model, x


@pytest.mark.parametrize("scale", ["amortised", "per-latent"])
@pytest.mark.parametrize("units", [(1.0, 0.0), (300.0, -40.0)])
def test_it_starts_at_the_transpose_in_units_of_the_data(scale, units):
    x = units[0] * sparse_data()[0] + units[1]
    model = build(scale=scale, refine_steps=0)
    model.prepare(x)
    variance = (x - x.mean(0)).square().sum(1).mean()
    atoms = model.decoder.dictionary
    torch.testing.assert_close(atoms.norm(dim=1), (variance / 2).sqrt().expand(24), rtol=1e-4, atol=0)
    torch.testing.assert_close(model.decoder(torch.zeros(1, 24)).mean[0], x.mean(0))
    q = model.encoder(x).base_dist
    projections = (x - x.mean(0)) @ atoms.T / (variance / 2)
    torch.testing.assert_close(q.slab.mean, projections, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(q.logits, math.log(2 / 22) + 3 * projections, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(q.slab.scale, torch.full_like(projections, 0.3), rtol=1e-3, atol=0)
    slab = slab_of(model.prior(x))
    assert (slab.loc == 1).all()
    assert slab.scale.allclose(torch.tensor(0.5))


def test_a_hidden_layer_starts_at_random_with_the_inclusion_of_the_prior():
    model, (x, *_) = build(hidden=(16,), refine_steps=0), sparse_data()
    model.prepare(x)
    assert len(model.encoder.network) == 4
    assert model.encoder(x).base_dist.probs.mean().item() == pytest.approx(2 / 24, rel=0.3)


def test_a_second_prepare_and_a_loaded_model_stay_unchanged(tmp_path):
    model, x = fitted()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.prepare(10 * x)
    vsc.save_checkpoint(tmp_path / "sae.pt", {"model": model.state_dict()})
    other = build()
    vsc.load_weights(other, vsc.load_checkpoint(tmp_path / "sae.pt"))
    other.prepare(10 * x)
    for name, value in weights.items():
        assert torch.equal(model.state_dict()[name], value)
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "epochs"), [*zip(VARIANTS[:3], (15, 45, 15), strict=True)])
def test_it_finds_the_features_of_data(options, epochs):
    x, atoms, on = sparse_data(6000)
    model = build(beta=1.5, **options)
    settings = {"objective": "exact", "lr": 1e-2, "batch_size": 200}  # an atom for every feature
    vsc.fit(model, x, epochs=epochs, **settings, progress=False, device="cpu")
    cosines = torch.nn.functional.normalize(model.decoder.dictionary, dim=1) @ atoms.T
    best = cosines.max(0)
    assert best.values.median() > 0.95  # signed: slabs start above 0
    present = model.encoder(x).base_dist.probs[:, best.indices] > 0.5
    # Half the errors of a code without features.
    assert (present != on).float().mean() < 0.5 * on.float().mean()


@pytest.mark.parametrize("options", VARIANTS)
def test_captured_and_bfloat16_steps(options):
    x = sparse_data(200)[0]
    losses = {}
    for name in ("eager", "captured", "bfloat16"):
        model = build(**options)
        model.prepare(x)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        programs = model.model, model.guide, optimizer, vsc.ExactELBO(max_plate_nesting=1)
        svi = vsc.CompiledSVI(*programs, backend="eager") if name == "captured" else vsc.SVI(*programs)
        with networks_in(model, "bfloat16" if name == "bfloat16" else "float32"):
            losses[name] = [float(svi.step(x)) for _ in range(10)]
    assert losses["captured"] == pytest.approx(losses["eager"], rel=1e-4)
    assert losses["bfloat16"] == pytest.approx(losses["eager"], rel=0.02)
    assert losses["bfloat16"] != losses["eager"]


def arviz(model, x):
    assert vsc.to_arviz(model, x[:5], num_samples=10).posterior["z"].shape[-1] == 24


def evaluation(model, x):
    assert math.isfinite(vsc.evaluate(model, x[:50], num_draws=5).elbo)


def refinement(model, x):
    assert (vsc.refine(model, x[:5], steps=5, objective="exact").gain >= 0).all()


def gibbs(model, x):
    inclusion = vsc.gibbs_posterior(model, x[:3], num_samples=20, burn_in=5).inclusion
    assert inclusion.shape == (3, 24)


def exact(model, x):
    small = build(num_features=6, refine_steps=1)
    small.prepare(x)
    q, p = small.encoder(x[:3]), vsc.exact_posterior(small, x[:3])
    bound = small.decoder(q.mean).expected_log_prob(x[:3], q.variance) - kl_divergence(q, small.prior(x[:3]))
    assert (p.log_evidence > bound).all()


@pytest.mark.parametrize("use", [arviz, evaluation, refinement, gibbs, exact])
def test_it_goes_through_everything_that_takes_a_model(use):
    use(*fitted())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_refines_under_itself(copied):
    model, x = build(), sparse_data(50)[0]
    model.prepare(x)
    twin, before = copied(model), model.encoder(x).mean
    assert torch.equal(twin.encoder(x).mean, before)
    with torch.no_grad():
        twin.decoder.own_layer.weight.neg_()
    assert torch.equal(model.encoder(x).mean, before)
    assert not torch.allclose(twin.encoder(x).mean, before, atol=0.01)
    twin.encoder(x).mean.sum().backward()
    assert twin.decoder.own_layer.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_copied_encoder_waits_for_its_model_and_a_passed_one_follows_the_last():
    model, x = build(), sparse_data(50)[0]
    encoder = copy.deepcopy(model.encoder)
    with pytest.raises(ValueError, match=r"refines under a model; build a vsc_pyro\.VAE with it"):
        encoder(x)
    other = build(expected_active=6.0)
    vsc.VAE(encoder, other.decoder, other.prior)
    expected = model.encoder(x).mean
    assert not torch.allclose(encoder(x).mean, expected, atol=0.01)
    vsc.VAE(model.encoder, other.decoder, other.prior, model.beta.item())
    assert not torch.allclose(model.encoder(x).mean, expected, atol=0.01)


def test_compiled_training_and_an_ensemble_take_the_steps_of_fit():
    x, settings = sparse_data(200)[0], {"epochs": 2, "batch_size": 100, "progress": False, "device": "cpu"}
    models = [build() for _ in range(4)]
    vsc.fit(models[0], x, **settings)
    vsc.fit(models[1], x, compile=True, **settings)
    vsc.fit_ensemble(models[2:], x, seeds=[0, 1], **settings)
    for name, value in models[0].state_dict().items():
        for other in models[1:3]:
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert not torch.equal(models[3].decoder.dictionary, models[0].decoder.dictionary)


@pytest.mark.parametrize("options", VARIANTS)
def test_bare_pyro_trains_every_parameter_once(options):
    model, x = build(**options), sparse_data(100)[0]
    model.prepare(x)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    store = pyro.get_param_store()
    with store.scope():
        svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        svi.step(x)
        assert set(store.keys()) == {f"{model.store_name}$$${name}" for name in before}
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_a_run_is_resumed_exactly(tmp_path):
    x = sparse_data(600)[0]
    settings = {"batch_size": 100, "progress": False, "device": "cpu", "cooldown": 0, "warmup": 0.0}
    whole, first, second = build(), build(), build()
    vsc.fit(whole, x, epochs=2, **settings)
    vsc.fit(first, x, epochs=1, checkpoint=tmp_path / "run.pt", **settings)
    vsc.fit(second, x, epochs=2, checkpoint=tmp_path / "run.pt", resume=True, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_defaults_of_training_are_its_own():
    (x, *_), settings = sparse_data(3000), {"epochs": 3, "progress": False, "device": "cpu"}
    models = [build() for _ in range(3)]
    history, nested, exact = (
        vsc.fit(model, x, **settings, **objective)
        for model, objective in zip(models, ({}, {"objective": "nested"}, {"objective": "exact"}), strict=True)
    )
    assert history.warmup_steps == int(0.2 * 3 * 3)  # batches of 1,024
    assert history.elbo == nested.elbo != exact.elbo


def test_less_noise_turns_more_features_on_and_stays_as_it_was_set(tmp_path):
    (x, *_), on, left = sparse_data(2000), [], []
    for noise in (0.8, 0.2):
        model = build(noise=noise)
        vsc.fit(model, x, objective="exact", lr=1e-2, batch_size=200, epochs=10, progress=False, device="cpu")
        found = vsc.evaluate_dictionary(model, x)
        on.append(found.hard_l0)
        left.append(found.fvu)
        spread = (x - x.mean(0)).square().mean().sqrt()
        torch.testing.assert_close(model.decoder(torch.zeros(1, 24)).scale.flatten()[0], noise * spread)
    assert on[0] < on[1]
    assert left[0] > left[1]
    model = build(noise=np.float32(0.25))
    vsc.fit(model, x, steps=2, checkpoint=tmp_path / "run.pt", progress=False, device="cpu")
    other = build(noise=0.5)
    with pytest.raises(ValueError, match=r"noise=0.25"):
        vsc.fit(other, x, steps=4, checkpoint=tmp_path / "run.pt", resume=True, progress=False, device="cpu")
    vsc.sae.export(model, tmp_path / "sae")
    sae = vsc.sae.load(tmp_path / "sae")
    torch.testing.assert_close(sae.inclusion(x), model.encoder(x).base_dist.probs)


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected_active must be"):
        vsc.SparseDictionary(16, 24, expected_active=0)
    with pytest.raises(ValueError, match="num_features must be"):
        vsc.SparseDictionary(16, 0)
    with pytest.raises(ValueError, match="unknown scale 'shared'"):
        build(scale="shared")
    with pytest.raises(ValueError, match=r"unknown slab of a RefinedEncoder 'gamma'"):
        build(slab="gamma")
    with pytest.raises(ValueError, match="use slab='truncated-normal'"):
        build(slab="half-normal", refine_steps=0)
