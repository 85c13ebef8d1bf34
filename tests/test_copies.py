"""A value that was computed from a draw is scored as the draw would be, or as a number of its own, or refused."""

import gc
import math
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.reparam import TransformReparam
from torch.nn import functional

import vsc_pyro as vsc
from vsc_pyro.distributions import SpikeSlab
from vsc_pyro.gates import GATES, get_gate

N, J, LOGIT, LOC, SCALE = 3000, 3, 0.3, 0.8, 0.4
PRIOR = SpikeSlab(dist.Normal(torch.zeros((), dtype=torch.float64), 1.0), probs=torch.tensor(0.3, dtype=torch.float64))
MASK = torch.rand(N, J, generator=torch.Generator().manual_seed(0)) > 0.3
SHIFT = torch.zeros(N, 1, dtype=torch.long)


def drawn(gate="concrete", n=N):
    torch.manual_seed(0)
    logits = torch.full((n, J), LOGIT, dtype=torch.float64, requires_grad=True)
    loc = torch.full((n, J), LOC, dtype=torch.float64, requires_grad=True)
    return logits, loc, SpikeSlab(dist.Normal(loc, SCALE), logits=logits, gate=gate)()


# Each operation, and how it turns the position of a cell into that of its copies.
COPIES = {
    "view": lambda z: z.view(-1),
    "clone": lambda z: z.clone(),
    "unbind": lambda z: torch.stack(z.unbind(-1)),
    "one unbound": lambda z: z.unbind(-1)[1],
    "split": lambda z: z.split(1, -1)[2],
    "chunk": lambda z: z.chunk(3, -1)[0],
    "cat": lambda z: torch.cat([z[:, 1:], z[:, :1]], -1),
    "stack": lambda z: torch.stack([z]),
    "flip": lambda z: z.flip(-1),
    "roll": lambda z: z.roll(1, -1),
    "pad": lambda z: functional.pad(z, (1, 2)),
    "diagonal": lambda z: z.reshape(-1, J, J)[:100].diagonal(dim1=1, dim2=2),
    "identity": lambda z: z @ torch.eye(J, dtype=z.dtype),
    "learned scale of one": lambda z: z * torch.ones((), dtype=z.dtype, requires_grad=True),
    "twice and half": lambda z: z * 3 / 3,
}
REPEATS = {
    "repeat": lambda z: z.repeat(2, 1),
    "tile": lambda z: z.tile(2),
    "cat with itself": lambda z: torch.cat([z, z]),
    "expand": lambda z: z.expand(2, N, J),
    "unfold": lambda z: z.unfold(-1, 2, 1),
}
REFUSED = {
    "where": lambda z: torch.where(MASK, z, 0.0),
    "masked_fill": lambda z: z.masked_fill(MASK, 0.0),
    "mask": lambda z: z * MASK,
    "masked_select": lambda z: z[MASK],
    "what is on": lambda z: z[z != 0],
    "tril": lambda z: z.T.tril(),
    "sort": lambda z: z.sort(-1).values,
    "gather": lambda z: z.gather(-1, SHIFT),
    "index_select": lambda z: z.index_select(-1, torch.tensor([0, 1])),
    "take_along_dim": lambda z: torch.take_along_dim(z, SHIFT + 1, -1),
    "indices": lambda z: z[:, [2, 0, 1]],
    "scatter": lambda z: torch.zeros_like(z).scatter(-1, SHIFT + torch.tensor([2, 0, 1]), z),
    "index_copy": lambda z: torch.zeros_like(z).index_copy(-1, torch.tensor([1, 2, 0]), z),
    "nan_to_num": lambda z: z.nan_to_num(),
    "plus nothing": lambda z: z + 0 * torch.tanh(z),
    "first power": lambda z: z**1,
    "max": lambda z: z.max(-1).values,
    "top": lambda z: z.topk(2, -1).values,
    "clamp at zero": lambda z: z.clamp(min=0),
    "relu": lambda z: z.relu(),
    "abs": lambda z: z.abs(),
    "tanh": lambda z: z.tanh(),
    "sine": lambda z: z.sin(),
    "leaky relu": lambda z: functional.leaky_relu(z, 0.1),
    "prelu": lambda z: functional.prelu(z, torch.tensor(0.25, dtype=z.dtype)),
    "two slopes": lambda z: torch.where(z > 0, 2 * z, z),
    "clamp": lambda z: z.clamp(-1, 1),
    "mean": lambda z: z[:, :3].mean(-1),
    "square": lambda z: z**2,
    "dropout": lambda z: functional.dropout(z, 0.2),
    "sum": lambda z: z.sum(-1),
    "product": lambda z: z[:, 0] * z[:, 1],
    "difference": lambda z: z[:, 0] - z[:, 1],
}


@pytest.mark.parametrize("gate", ["concrete", "shifted-sigmoid"])
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_has_the_gradient_of_the_draw(name, gate):
    logits, loc, z = drawn(gate)
    position = torch.arange(z.numel(), dtype=z.dtype).reshape(z.shape) + 1
    copies = COPIES[name](position).detach().reshape(-1).round().long() - 1
    own = PRIOR.log_prob(z).reshape(-1)[copies.clamp(min=0)]
    own = torch.where(copies < 0, PRIOR.log_prob(torch.zeros(()).double()), own)
    copy = PRIOR.log_prob(COPIES[name](z))
    torch.testing.assert_close(copy.reshape(-1), own)
    for ours, exact in zip(
        *(torch.autograd.grad(v.sum(), (logits, loc), retain_graph=True) for v in (copy, own)), strict=True
    ):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("name", REPEATS)
def test_repeated_copies_are_warned_of_since_a_mixture_may_follow(name):
    logits, _, z = drawn()
    position = torch.arange(z.numel()).reshape(z.shape)
    own = PRIOR.log_prob(z).reshape(-1)[REPEATS[name](position).reshape(-1)]
    with pytest.warns(UserWarning, match="under a batch of priors at once"):
        copy = PRIOR.log_prob(REPEATS[name](z))
    ours, exact = (torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (copy, own))
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_neither_a_copy_nor_a_number_of_its_own_is_refused(name):
    _, _, z = drawn()
    with pytest.raises(ValueError, match="not the spike-and-slab draw it came from"):
        PRIOR.log_prob(REFUSED[name](z))


@pytest.mark.parametrize("type_", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_in_another_precision_is_one(type_):
    logits, _, z = drawn()
    for copy in (z.to(type_).double(), z.to(type_)):
        ours, exact = (torch.autograd.grad(PRIOR.log_prob(v).sum(), logits, retain_graph=True)[0] for v in (copy, z))
        torch.testing.assert_close(ours, exact, rtol=0.0, atol=8 * torch.finfo(type_).eps)


@pytest.mark.parametrize("shift", [1e-9, 1e-6, 1e-3])
def test_a_small_shift_is_none_to_be_left_out(shift):
    logits, _, z = drawn(n=20_000)
    (gradient,) = torch.autograd.grad(PRIOR.log_prob(shift - z).sum(), logits)
    gamma = 1 / (1 + math.exp(-LOGIT))
    # The density of the prior's slab at shift - w, less that at shift, which is not zero.
    difference = -0.5 * ((shift - LOC) ** 2 + SCALE**2 - shift**2)
    assert_mean_equals(gradient.reshape(-1), gamma * (1 - gamma) * difference)


ONE_OR_TWO_CELLS = {
    "tanh": lambda z: z[0].tanh(),
    "clamp": lambda z: z[0].clamp(-1, 1),
    "sine": lambda z: z[0].sin(),
    "max": lambda z: z.max(),
    "sort": lambda z: z.sort().values,
    "mean": lambda z: z.mean(),
}


@pytest.mark.parametrize("name", ONE_OR_TWO_CELLS)
def test_so_it_is_for_one_cell_or_two(name):
    """Values that are not zero and no copy are numbers of their own; every other is refused."""
    refused = 0
    for seed in range(20):
        torch.manual_seed(seed)
        q = SpikeSlab(dist.Normal(torch.full((2,), 0.2), 0.8), logits=torch.full((2,), 0.3, requires_grad=True))
        value = ONE_OR_TWO_CELLS[name](q())
        try:
            PRIOR.log_prob(value)
        except ValueError:
            refused += 1
        else:
            assert (value != 0).all()
    assert refused


def test_checkpointed_copies_are_refused():
    _, _, z = drawn()
    with pytest.raises(ValueError, match="not the spike-and-slab draw it came from"):
        PRIOR.log_prob(torch.utils.checkpoint.checkpoint(lambda v: v * 1.0, z, use_reentrant=True))


def test_copies_of_several_draws_meet_in_one_value():
    (a_logits, _, a), (b_logits, _, b) = drawn(), drawn("straight-through")
    both = PRIOR.log_prob(torch.cat([torch.ones(N, 1, dtype=a.dtype), a, b[:, :2]], -1))
    own = PRIOR.log_prob(torch.tensor(1.0).double()) * N + PRIOR.log_prob(a).sum() + PRIOR.log_prob(b)[:, :2].sum()
    torch.testing.assert_close(both.sum(), own)
    for logits in (a_logits, b_logits):
        ours, exact = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (both.sum(), own))
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("gate", ["concrete", "straight-through", "shifted-sigmoid"])
@pytest.mark.parametrize("change", [(-1.0, 0.0), (-1.0, 1.3), (2.0, 0.0), (1.0, 1.0)])
def test_a_scaled_and_shifted_draw_under_a_sparse_noise_has_the_exact_gradient(gate, change):
    r"""x - z, 2z or z + 1 under a spike-and-slab: :math:`\gamma E[\log p(c + a w)] + (1 - \gamma) \log p(c)`."""
    a, c = change
    logits, loc, z = drawn(gate, 50_000)
    gradients = torch.autograd.grad(PRIOR.log_prob(a * z + c).sum(), (logits, loc))
    gamma, log_on = 1 / (1 + math.exp(-LOGIT)), math.log(0.3) - 0.5 * math.log(2 * math.pi)
    on = log_on - 0.5 * ((c + a * LOC) ** 2 + (a * SCALE) ** 2)
    off = math.log(0.7) if c == 0 else log_on - 0.5 * c**2
    assert_mean_equals(gradients[0].reshape(-1), gamma * (1 - gamma) * (on - off))
    assert_mean_equals(gradients[1].reshape(-1), -gamma * a * (c + a * LOC))


def test_numbers_of_their_own_are_taken():
    logits, _, z = drawn()
    data = torch.where(MASK, 0.0, 1e-3 * torch.arange(N * J, dtype=z.dtype).reshape(N, J))
    torch.testing.assert_close(PRIOR.log_prob(data - z), PRIOR.log_prob((data - z).detach()))
    dictionary = torch.randn(J, 5, dtype=z.dtype)
    for number in (1.5 - z @ dictionary, z.exp(), torch.sigmoid(z), z.sum(-1) + 1.5):
        log_prob = PRIOR.log_prob(number)
        torch.testing.assert_close(log_prob, PRIOR.log_prob(number.detach()))
        assert torch.autograd.grad(log_prob.sum(), logits, retain_graph=True)[0].abs().sum() > 0


def test_a_learned_scale_has_its_own_gradient():
    _, _, z = drawn()
    scale = torch.tensor(1.7, dtype=z.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(PRIOR.log_prob(z * scale).sum(), scale)
    torch.testing.assert_close(gradient, -(z**2 * scale).sum().detach())


@pytest.mark.parametrize("copied", [torch.clone, lambda z: z[:, :2], lambda z: torch.cat([z, z]), torch.detach])
def test_copies_of_soft_draws_without_a_graph_are_refused(copied):
    q = SpikeSlab(dist.Normal(torch.zeros(5, J), 1.0), probs=torch.tensor(0.2), gate="shifted-sigmoid")
    z = q.rsample()
    with pytest.raises(ValueError, match="soft spikes is never exactly zero"):
        PRIOR.log_prob(copied(z.detach()))
    with torch.no_grad(), pytest.raises(ValueError, match="soft spikes is never exactly zero"):
        PRIOR.log_prob(copied(z))
    PRIOR.log_prob(torch.randn(5, J))


@pytest.mark.parametrize("draw", [lambda q: q(), lambda q: q.rsample()])
def test_without_gradients_soft_gates_draw_exact_spikes(draw):
    q = SpikeSlab(dist.Normal(torch.zeros(5000), 1.0), probs=torch.tensor(0.2), gate="shifted-sigmoid")
    with torch.no_grad():
        z = draw(q)
        torch.testing.assert_close(PRIOR.log_prob(z.clone()), PRIOR.log_prob(z))
    assert_mean_equals((z != 0).double(), 0.2)
    assert (draw(q) != 0).all()


def test_hard_draws_without_a_graph_are_numbers():
    _, _, z = drawn()
    with torch.no_grad():
        for name in COPIES:
            PRIOR.log_prob(COPIES[name](z))


def test_draws_are_freed_without_the_garbage_collector():
    gc.disable()
    try:
        _, _, z = drawn()
        PRIOR.log_prob(z.clone()).sum().backward()
        gone = weakref.ref(z)
        del z
        assert gone() is None
    finally:
        gc.enable()


# One vector site, unbound into the model's sites: Pyro's usual way


def unbound(gate, split, replicas):
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    loc, scale = torch.tensor([0.8, 0.5]).double(), torch.tensor([0.4, 0.5]).double()

    def model():
        with pyro.plate("data", replicas):
            z = [pyro.sample(f"z{j}", SpikeSlab(dist.Normal(loc.new_zeros(()), 1.0), probs=0.1)) for j in range(2)]
            pyro.sample("x", dist.Normal(z[0] + z[1], 3.0), obs=torch.full((replicas,), 1.5, dtype=torch.float64))

    def guide():
        pyro.param("unused", torch.zeros(()))  # without a parameter site Pyro takes no gradient
        with pyro.plate("data", replicas):
            q = SpikeSlab(dist.Normal(loc, scale), logits=logits, gate=gate).to_event(1)
            zs = pyro.sample("zs", q, infer={"is_auxiliary": True})
            for j, z in enumerate(split(zs)):
                pyro.sample(f"z{j}", dist.Delta(z))

    return model, guide, logits, SpikeSlab(dist.Normal(loc, scale), logits=logits)


SPLITS = {"unbind": lambda z: z.unbind(-1), "indices": lambda z: [z[..., 0], z[..., 1]]}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("gate", ["straight-through", "concrete", "shifted-sigmoid"])
def test_an_unbound_site_has_the_gradient_of_one_that_is_not(gate, split):
    """Under a likelihood that does not look at z, the gradient is exactly that of the divergence."""
    replicas = 20_000
    model, guide, logits, q = unbound(gate, SPLITS[split], replicas)
    kl = torch.distributions.kl_divergence(q, SpikeSlab(dist.Normal(q.slab.loc.new_zeros(2), 1.0), probs=0.1)).sum()
    (exact,) = torch.autograd.grad(kl, logits)
    estimates = []
    for seed in range(20):
        torch.manual_seed(seed)
        logits.grad = None
        Trace_ELBO(max_plate_nesting=1).loss_and_grads(pyro.poutine.block(model, hide=["x"]), guide)
        estimates.append(logits.grad / replicas)
    assert_mean_equals(torch.stack(estimates), exact)


@pytest.mark.parametrize("gate", ["score", "disarm"])
def test_score_functions_of_auxiliary_sites_are_warned_of_where_pyro_biases_them(gate):
    model, guide, _, _ = unbound(gate, SPLITS["unbind"], 10)
    kwargs = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    with pytest.warns(UserWarning, match="Trace_ELBO leaves the density of sites that only the guide has"):
        Trace_ELBO(**kwargs).loss_and_grads(model, guide)
    vsc.TraceELBO(**kwargs).loss_and_grads(model, guide)  # warnings are errors in these tests
    if gate == "score":
        TraceGraph_ELBO(max_plate_nesting=1).loss_and_grads(model, guide)


# Distributions of a draw that is transformed


@pytest.mark.parametrize("transform", ["AffineTransform", "ExpTransform", "TanhTransform", "SigmoidTransform"])
@pytest.mark.parametrize("gate", [*(name for name in GATES if get_gate(name).reparametrized), "score"])
def test_a_transformed_distribution_is_refused_with_the_remedy(gate, transform):
    arguments = (0.0, 3.0) if transform == "AffineTransform" else ()
    q = SpikeSlab(dist.Normal(torch.zeros(3), 1.0), probs=torch.tensor(0.3), gate=gate)
    for base in (q, q.to_event(1)):
        y = dist.TransformedDistribution(base, [getattr(dist.transforms, transform)(*arguments)])
        for use in (lambda y=y: y.log_prob(torch.full((3,), 0.5)), lambda y=y: y.to_event(0).log_prob(y())):
            with pytest.raises(
                ValueError, match=f"{transform}.*transform the value after pyro.sample.*TransformReparam"
            ):
                use()


def test_a_transformed_mixture_of_spike_slabs_is_refused():
    parts = SpikeSlab(dist.Normal(torch.zeros(2), 1.0), probs=torch.tensor([0.3, 0.4]))
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)
    y = dist.TransformedDistribution(mixture, [dist.transforms.AffineTransform(0.0, 3.0)])
    with pytest.raises(ValueError, match="transform the value after"):
        y.log_prob(torch.tensor(0.0))


def test_the_remedy_for_transformed_distributions_works():
    transform = dist.transforms.AffineTransform(0.0, 3.0)
    q = SpikeSlab(dist.Normal(torch.tensor(0.5).double(), 1.0), probs=torch.tensor(0.3).double())

    def program():
        with pyro.plate("data", 50_000):
            return pyro.sample("y", dist.TransformedDistribution(q, [transform]))

    reparametrised = pyro.poutine.reparam(program, {"y": TransformReparam()})
    trace = pyro.poutine.trace(reparametrised).get_trace()
    trace.compute_log_prob()
    assert_mean_equals((trace.nodes["y"]["value"] == 0).double(), 0.7)
    torch.testing.assert_close(trace.nodes["y_base"]["log_prob"], q.log_prob(trace.nodes["y_base"]["value"]))


# Inference that would never draw the atom


def regression():
    weight = pyro.sample("w", SpikeSlab(dist.Normal(0.0, 1.0), probs=torch.tensor(0.3)))
    pyro.sample("y", dist.Normal(weight, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize("automatic", ["AutoNormal", "AutoDelta", "AutoMultivariateNormal", "AutoDiagonalNormal"])
def test_automatic_guides_are_refused(automatic):
    guide = getattr(pyro.infer.autoguide, automatic)(regression)
    with pytest.raises((ValueError, NotImplementedError), match="would lose its atom; write a guide"):
        guide()


@pytest.mark.parametrize("kernel", [pyro.infer.NUTS, pyro.infer.HMC])
def test_samplers_that_follow_gradients_are_refused(kernel):
    chains = pyro.infer.MCMC(kernel(regression), num_samples=1, warmup_steps=1, disable_progbar=True)
    with pytest.raises((ValueError, NotImplementedError), match="would lose its atom; write a guide"):
        chains.run()


def test_a_batch_of_priors_is_warned_of_by_its_shape():
    q = SpikeSlab(dist.Normal(torch.zeros(1), 1.0), logits=torch.zeros(1, requires_grad=True))
    priors = SpikeSlab(dist.Normal(torch.zeros(2), 1.0), probs=torch.tensor([0.1, 0.2]))
    with pytest.warns(UserWarning, match="under a batch of priors at once"):
        priors.log_prob(q())
