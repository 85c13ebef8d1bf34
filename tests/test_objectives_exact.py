"""The linear decoder without sampling: the exact ELBO against enumeration, quadrature, the evidence and Monte Carlo."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from pyro import poutine
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import LinearNormal, SpikeSlab
from vsc_pyro.gates import GATES
from vsc_pyro.objectives import AnalyticELBO, ExactELBO, get_objective

SHAPE, J = (1, 3, 4), 5
VARIANCES = ["fixed", "shared", "per-pixel"]
ENCODERS = {
    "spike-slab": lambda **options: vsc.SpikeSlabEncoder(SHAPE, J, (6,), initial_inclusion=0.5, **options),
    "spike-slab-laplace": lambda: vsc.SpikeSlabEncoder(SHAPE, J, (6,), gate="score", slab="laplace"),
    "normal": lambda: vsc.NormalEncoder(SHAPE, J, (6,)),
    "laplace": lambda: vsc.LaplaceEncoder(SHAPE, J, (6,)),
}


def linear_vae(encoder="spike-slab", variance="fixed", prior=None, beta=1.0, **options):
    torch.manual_seed(3)
    decoder = vsc.NormalDecoder(J, SHAPE, hidden=(), scale=0.7, variance=variance)
    if variance != "fixed":
        torch.nn.init.uniform_(decoder.amplitude, 0.5, 2.0)
    default = vsc.SpikeSlabPrior if encoder.startswith("spike") else vsc.LaplacePrior
    return vsc.VAE(ENCODERS[encoder](**options), decoder, prior or default(J), beta).double()


def data(number=8):
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def gradients(vae, x, elbo=None, seed=0):
    """The loss and the gradient of every parameter, in one vector."""
    vae.zero_grad()
    torch.manual_seed(seed)
    with pyro.get_param_store().scope():
        loss = (elbo or ExactELBO(max_plate_nesting=1)).loss_and_grads(vae.model, vae.guide, x)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in vae.parameters()]
    return torch.cat([loss.reshape(1), *(part.flatten() for part in parts)])


def exact_loss(vae, x, **options):
    return ExactELBO(max_plate_nesting=1, **options).loss(vae.model, vae.guide, x)


@pytest.mark.parametrize("variance", VARIANCES)
def test_expectation_by_enumeration_and_quadrature(variance):
    # Two Gauss-Hermite nodes integrate a square exactly, so a spike-and-slab is three points here.
    vae, x = linear_vae(variance=variance), data(1)
    q, decoder = vae.encoder(x).base_dist, vae.decoder
    nodes = torch.stack([q.slab.loc - q.slab.scale, q.slab.loc + q.slab.scale, torch.zeros_like(q.slab.loc)])[:, 0]
    weights = torch.stack([q.probs / 2, q.probs / 2, 1 - q.probs])[:, 0]
    patterns = torch.cartesian_prod(*[torch.arange(3)] * J)
    z = nodes[patterns, torch.arange(J)]
    prob = weights[patterns, torch.arange(J)].prod(-1)
    pixels = dist.Normal(decoder.pixels(z), decoder.scale)
    expected = (prob * pixels.log_prob(x[0]).flatten(1).sum(1)).sum()
    likelihood = decoder(q.mean)
    torch.testing.assert_close(likelihood.expected_log_prob(x, q.variance), expected[None])
    assert likelihood.log_prob(x) > likelihood.expected_log_prob(x, q.variance) + 0.1
    kl = kl_divergence(q, vae.prior(x).base_dist.expand((1, J))).sum()
    assert exact_loss(vae, x) == pytest.approx((kl - expected).item())


@pytest.mark.parametrize(
    ("encoder", "variance"),
    [
        *(("spike-slab", variance) for variance in VARIANCES),
        ("spike-slab-laplace", "per-pixel"),
        ("normal", "shared"),
        ("laplace", "fixed"),
    ],
)
def test_value_and_gradient_are_those_of_the_sampled_objective(encoder, variance):
    vae = linear_vae(encoder, variance, **({"gate": "score"} if encoder == "spike-slab" else {}))
    x = data()
    sampled = AnalyticELBO(max_plate_nesting=1, num_particles=20, vectorize_particles=True)
    draws = torch.stack([gradients(vae, x, sampled, seed) for seed in range(100)])
    assert_mean_equals(draws, gradients(vae, x))
    assert (draws.std(0) > 0).sum() > 100


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("encoder", ["spike-slab", "normal"])
def test_gradient_has_no_noise(encoder, variance):
    vae, x = linear_vae(encoder, variance).float(), data().float()
    first = gradients(vae, x, seed=0)
    assert torch.equal(first, gradients(vae, x, seed=1))
    sampled = AnalyticELBO(max_plate_nesting=1)
    assert not torch.equal(gradients(vae, x, sampled, seed=0), gradients(vae, x, sampled, seed=1))
    assert (first != 0).float().mean() > 0.5


def test_the_gate_plays_no_part():
    x = data()
    each = [gradients(linear_vae(gate=gate), x) for gate in GATES]
    for other in each[1:]:
        assert torch.equal(each[0], other)


def test_exact_posterior_gives_the_evidence_and_no_gradient():
    # One latent: the posterior is a spike-and-slab, the evidence a mixture of two Gaussians.
    atom, bias = torch.tensor([[0.8, -1.5, 0.3]]).double(), torch.tensor([0.1, 0.0, -0.2]).double()
    scale, alpha, x = torch.tensor([0.5, 0.9, 0.7]).double(), 0.3, torch.tensor([[0.7, -1.0, 0.4]]).double()
    on = dist.MultivariateNormal(bias, atom.T @ atom + torch.diag(scale**2)).log_prob(x) + math.log(alpha)
    off = dist.Normal(bias, scale).log_prob(x).sum(-1) + math.log(1 - alpha)
    precision = 1 + (atom / scale).square().sum()
    loc = ((x - bias) * atom / scale**2).sum(-1, keepdim=True) / precision

    def model():
        with pyro.plate("data", 1):
            slab = dist.Normal(torch.zeros(1).double(), 1.0)
            z = pyro.sample("code", SpikeSlab(slab, probs=alpha).to_event(1))
            pyro.sample("x", LinearNormal(z, atom, bias, scale), obs=x)

    def guide():
        slab = dist.Normal(pyro.param("loc", loc), pyro.param("scale", precision.rsqrt().expand(1, 1).clone()))
        with pyro.plate("data", 1):
            pyro.sample("code", SpikeSlab(slab, logits=pyro.param("logits", (on - off)[:, None])).to_event(1))

    loss = ExactELBO(latent="code").loss_and_grads(model, guide)
    torch.testing.assert_close(-loss, torch.logaddexp(on, off)[0])
    for name in ("loc", "scale", "logits"):
        torch.testing.assert_close(pyro.param(name).grad, torch.zeros(1, 1).double(), atol=1e-12, rtol=0)


def test_beta_weighs_the_divergence_alone():
    x = data()
    losses = {beta: exact_loss(linear_vae(beta=beta), x) for beta in (1.0, 3.0)}
    vae = linear_vae()
    kl = kl_divergence(vae.encoder(x), vae.prior(x).expand((len(x),))).sum().item()
    assert losses[3.0] - losses[1.0] == pytest.approx(2 * kl)


def test_masks_and_subsampled_plates_weigh_the_expectation():
    vae, x = linear_vae(), data(6)
    mask = torch.tensor([True, False, True, True, False, True])
    whole = exact_loss(vae, x[mask])
    masked = (poutine.mask(program, mask=mask) for program in (vae.model, vae.guide))
    assert ExactELBO().loss(*masked, x) == pytest.approx(whole)
    scaled = (poutine.scale(program, scale=2.5) for program in (vae.model, vae.guide))
    assert ExactELBO().loss(*scaled, x[mask]) == pytest.approx(2.5 * whole)


def test_latent_sites_before_the_codes_are_drawn():
    prior = vsc.SpikeSlabPrior(J, 0.3, learn_inclusion=True, hyperprior=(1.0, 9.0))
    vae, x = linear_vae(gate="score", prior=prior), data()
    sampled = AnalyticELBO(max_plate_nesting=1)
    both = [torch.stack([gradients(vae, x, elbo, seed) for seed in range(150)]) for elbo in (None, sampled)]
    assert both[0].std(0)[0] > 0
    # The same seed draws the same inclusions, first of all.
    assert_mean_equals(both[1] - both[0], torch.zeros(both[0].shape[1]))


def test_pseudo_input_priors_have_it_too():
    decoder = vsc.NormalDecoder(J, SHAPE, hidden=(), scale=0.7)
    vae = vsc.VSC(SHAPE, J, 0.1, 3, hidden=(6,), gate="score", decoder=decoder).double()
    x = data()
    vae.prepare(x)
    sampled = AnalyticELBO(max_plate_nesting=1, num_particles=20, vectorize_particles=True)
    draws = torch.stack([gradients(vae, x, sampled, seed) for seed in range(100)])
    assert_mean_equals(draws, gradients(vae, x))


def test_a_point_is_a_posterior_without_variance():
    decoder = vsc.NormalDecoder(J, SHAPE, hidden=())
    vae = vsc.VAE(vsc.DeltaEncoder(SHAPE, J, (6,)), decoder, vsc.LaplacePrior(J)).double()
    x = data()
    torch.testing.assert_close(gradients(vae, x), gradients(vae, x, AnalyticELBO(max_plate_nesting=1)))


def test_fit_trains_without_sampling_and_evaluate_agrees(digits, device):
    torch.manual_seed(0)
    decoder = vsc.NormalDecoder(16, (1, 8, 8), hidden=(), scale=0.3, variance="shared")
    vae = vsc.VAE(vsc.SpikeSlabEncoder((1, 8, 8), 16, (64,)), decoder, vsc.SpikeSlabPrior(16, 0.3))
    train, test = digits.binarized(None)
    history = vsc.fit(vae, train, objective="exact", epochs=15, lr=3e-3, batch_size=100, device=device, progress=False)
    assert history.elbo[-1] > history.elbo[0] + 20
    x = test.images.to(device)
    with vae.evaluating():
        exact = -exact_loss(vae, x) / len(x)
    result = vsc.evaluate(vae, test, num_draws=200)
    assert exact == pytest.approx(result.elbo, abs=0.15)
    assert exact < result.iwae


def test_bare_pyro(digits):
    vae, x = linear_vae().float(), vsc.datasets.linear_5x5(60, 10).train.images[:, :, :3, :4]
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), ExactELBO())
    losses = [float(svi.step(x)) for _ in range(60)]
    assert losses[-1] < losses[0] - 60
    assert svi.evaluate_loss(x) < losses[0] - 60


def test_the_first_step_refuses_what_is_not_linear(digits):
    for decoder in (vsc.NormalDecoder(4, (1, 8, 8), (8,)), vsc.BernoulliDecoder(4, (1, 8, 8), ())):
        vae = vsc.VAE(vsc.SpikeSlabEncoder((1, 8, 8), 4, (8,)), decoder, vsc.SpikeSlabPrior(4))
        before = [p.clone() for p in vae.parameters()]
        problem = r"needs a linear NormalDecoder \(hidden=\(\)\) of the codes 'z' themselves, .* use 'analytic'"
        with pytest.raises(ValueError, match=problem):
            vsc.fit(vae, digits.train, objective="exact", epochs=1, progress=False)
        assert all(map(torch.equal, vae.parameters(), before))


def test_several_draws_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"draws no codes, and num_draws \(num_particles\) = 3 .* leave it at 1"):
        get_objective("exact", num_draws=3)
    assert type(get_objective("exact")) is ExactELBO


def program(posterior, code=lambda z: z, before=(), after=(), prior=None):
    """Model and guide of one code, decoded as ``code(z)``, with sites of other latents before and after it."""
    prior = prior or dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def others(names):
        for name in names:
            pyro.sample(name, dist.Normal(0.0, 1.0))

    def model():
        others(before)
        z = pyro.sample("z", prior)
        others(after)
        pyro.sample("x", LinearNormal(code(z), torch.ones(2, 3), torch.zeros(3), torch.ones(())), obs=torch.ones(3))

    def guide():
        others(before)
        pyro.sample("z", posterior)
        others(after)

    return model, guide


NORMAL = dist.Normal(torch.ones(2), 0.5).to_event(1)
MIXTURE = dist.MixtureSameFamily(dist.Categorical(torch.ones(2, 2)), dist.Normal(torch.zeros(2, 2), 1.0)).to_event(1)
CORRELATED = dist.MultivariateNormal(torch.ones(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
CAUCHY = dist.Cauchy(torch.ones(2), 0.5)
WARPED = dist.TransformedDistribution(dist.Normal(torch.ones(2), 0.5), [dist.transforms.TanhTransform()]).to_event(1)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (
            program(NORMAL, code=lambda z: z + 1),
            "themselves, which the observed site 'x', Normal, does not come from",
        ),
        (program(NORMAL, after=["w"]), "no expectation over 'w', a latent site that comes after 'z'; use 'analytic'"),
        (program(CORRELATED), "independent coordinates at site 'z', got MultivariateNormal; build it with"),
        (program(CAUCHY.to_event(1)), "a mean and a variance at site 'z', got Cauchy; take a Normal or Laplace"),
        (program(SpikeSlab(CAUCHY, probs=0.3).to_event(1)), "a mean and a variance at site 'z', got SpikeSlab"),
        (program(WARPED), "a mean and a variance at site 'z', got TransformedDistribution"),
        (program(NORMAL, prior=MIXTURE), "none of Normal from MixtureSameFamily; use 'analytic'"),
    ],
)
@pytest.mark.parametrize("validate", [True, False])
def test_what_is_not_exact_is_refused(sites, message, validate):
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=message):
        ExactELBO().loss_and_grads(*sites)


def test_the_codes_go_by_their_name():
    with pytest.raises(ValueError, match=r"no common latent site 'code'; name the codes' site, ExactELBO\(latent="):
        ExactELBO(latent="code").loss(*program(NORMAL))
    # Latents before the codes may be anything; here they are independent of x.
    both = [ExactELBO().loss(*program(NORMAL, before=before)) for before in ([], ["w"])]
    assert both[0] == pytest.approx(both[1])
