"""No tensor of the library stays on the CPU: tried without a GPU, on tensors that have a device and no memory."""

import contextlib
import warnings

import pyro
import pytest
import torch
from problems.pairs import ADMISSIBLE, SHAPE, J, build, covering
from problems.parts import MODELS
from problems.regression import linear, logistic
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import vsc_pyro as vsc
from vsc_pyro.distributions import centre, hard_code, inclusion_of, is_point, scale_of, slab_of
from vsc_pyro.evaluation import relaxation
from vsc_pyro.evaluation.bounds import expected_log_likelihood, figures_of_batch
from vsc_pyro.evaluation.importance import Chunk, Weighing
from vsc_pyro.gates import GATES
from vsc_pyro.inference import impute, linear_exact, linear_gibbs, refine
from vsc_pyro.objectives import OBJECTIVES, get_objective
from vsc_pyro.sae.autoencoder import ACTIVATIONS, Config, SparseAutoencoder

# Autograd asks the driver of a GPU before it computes gradients. On this device it needs none, and fake tensors of it
# refuse those of the CPU, too.
BOTH_WAYS = "meta"
ALL = MODELS | {f"{e}, {p}": lambda e=e, p=p: build(e, p) for e, p in covering(ADMISSIBLE)}


@pytest.fixture(autouse=True, scope="module")
def shapes_of_draws():
    """Shapes of draws from Beta and Gamma distributions and of their gradients, which torch takes from its kernels."""
    library = torch.library.Library("aten", "FRAGMENT")
    for name in ("_sample_dirichlet", "_dirichlet_grad", "_standard_gamma_grad"):
        torch.library.register_fake(f"aten::{name}", lambda first, *_, **__: torch.empty_like(first), lib=library)
    yield
    library._destroy()


@pytest.fixture(autouse=True)
def no_copies(monkeypatch):
    """A deep copy of a fake tensor would copy its mode as well, after which the process may crash."""

    def refuse(tensor, memo):
        raise TypeError("a fake tensor cannot be copied; build modules outside the mode")

    monkeypatch.setattr(FakeTensor, "__deepcopy__", refuse)


def devices(values):
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}


class Uploads(TorchDispatchMode):
    """Refuse copies of arrays from the CPU. A number may come from there, as torch allows it everywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        arrays = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.numel() > 1]
        if "cpu" in devices(arrays) and devices(result) - {"cpu"}:
            raise RuntimeError(f"{func} moves an array from the CPU")
        return result


@contextlib.contextmanager
def on_fakes():
    quiet, store = pyro.validation_enabled(False), pyro.get_param_store().scope()
    with FakeTensorMode(allow_non_fake_inputs=True), Uploads(), quiet, store, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the KL divergence at site 'z' has no closed form and is sampled")
        yield


def moved(model, device="cuda"):
    """The model with fake parameters and buffers on a device, and fake data for it."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return model, torch.empty(7, *getattr(getattr(model, "encoder", None), "input_shape", (9,)), device=device)


def objective_for(name, model):
    gate = getattr(model.encoder, "gate", None)
    at_once = gate.draws_at_once if gate is not None and OBJECTIVES[name].draws_codes else 1
    return get_objective(name, None, at_once)


def check_loss(model, name):
    with on_fakes():
        model, x = moved(model)
        loss = objective_for(name, model).differentiable_loss(model.model, model.guide, x)
    assert loss.device.type == "cuda"


def check_step(model, name):
    with on_fakes():
        model, x = moved(model, BOTH_WAYS)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        loss = vsc.SVI(model.model, model.guide, optimizer, objective_for(name, model)).step(x)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    assert devices([loss, gradients]) == {BOTH_WAYS}


@pytest.mark.parametrize(("encoder_name", "prior_name", "kind"), ADMISSIBLE)
def test_the_loss_of_every_pair(encoder_name, prior_name, kind):
    check_loss(build(encoder_name, prior_name), "analytic")


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_step_of_every_part(make):
    check_step(make(), "trace")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ["trace", "analytic"])
def test_a_step_of_every_gate(gate, name):
    for check in (check_loss, check_step):
        encoder = vsc.SpikeSlabEncoder(SHAPE, J, hidden=(8,), gate=gate)
        check(vsc.VAE(encoder, vsc.BernoulliDecoder(J, SHAPE, (8,)), vsc.SpikeSlabPrior(J)), name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_every_objective(name):
    for check in (check_loss, check_step):
        check(vsc.SparseDictionary(9, J, expected_active=2, gate="score"), name)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_what_is_measured_and_inferred(make):
    model = make()
    with on_fakes():
        model, x = moved(model)
        prior = getattr(model.prior, "marginal", model.prior)(x)
        with model.evaluating():
            q = model.encoder(x)
            decoded = model.decoder(hard_code(q))
            found = [expected_log_likelihood(model, x), inclusion_of(q), scale_of(slab_of(q)), centre(decoded)]
            figures = figures_of_batch(model, True, None, x, Weighing(model, Chunk(7, 2, 1), 2, "", False, id))
            if not is_point(q) and not impute._scalars(decoded).event_shape:
                found.append(impute._run(model, prior, x, x > 0, 1, 1, tqdm(disable=True)))
    assert devices(found) == {"cuda"}
    assert devices(figures) == {"cpu"}


@pytest.mark.parametrize(("encoder_name", "prior_name"), {e: p for e, p, _ in ADMISSIBLE}.items())
def test_refined_posteriors_and_relaxed_codes(encoder_name, prior_name):
    model, gate = build(encoder_name, prior_name), vsc.gates.BinaryConcrete(temperature=0.1)
    with on_fakes():
        model, x = moved(model, BOTH_WAYS)
        with model.evaluating():
            q, p = model.encoder(x), model.prior(x).expand(x.shape[:1])
            codes = relaxation._soft_and_hard_codes(model, x, 0)
        free = refine.FreePosterior(q, moved(gate, BOTH_WAYS)[0])
        vae = vsc.VAE(free, model.decoder, refine._FixedPrior(p))
        refine._climb(vae, x, get_objective("analytic", 2), 1, 0.1, tqdm(disable=True))
        bound = refine._bounds(model.decoder, x, free(x), p, 0)
        free.restart(bound > 0)
    assert devices([codes, bound, free.state_dict()]) == {BOTH_WAYS}


def test_posteriors_of_linear_models():
    with on_fakes():
        gram, projection, *others = (
            torch.empty(shape, device="cuda").double() for shape in ((J, J), (7, J), 7, J, J, J)
        )
        statistics = linear_exact.LinearGaussian(gram, projection, *others)
        patterns = statistics.patterns()
        weights = patterns.log_joint(projection).softmax(-1)
        exact = linear_exact.ExactPosterior(*(4 * [projection]), patterns, projection)
        z = linear_gibbs._from_prior(statistics, 2)
        found = linear_gibbs._run(statistics, z, 2, 1, 2, 1, tqdm(disable=True))
        draws = [posterior.sample((3,)) for posterior in (exact, linear_gibbs.GibbsPosterior(*found))]
        means = patterns.mean(weights, projection)
    assert devices([found, draws, means]) == {"cuda"}


@pytest.mark.parametrize("program", [linear, logistic])
def test_automatic_guides(program):
    guide = vsc.AutoSpikeSlab(program)
    with on_fakes():
        x, y = torch.empty(7, 3, device="cuda"), torch.empty(7, device="cuda")
        loss = vsc.AnalyticELBO(max_plate_nesting=1).differentiable_loss(program, guide, x, y)
        found = [loss, guide.inclusion(), guide.median(), guide.state_dict()]
    assert devices(found) == {"cuda"}


@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_sparse_autoencoders(architecture):
    shapes = {"W_enc": (9, J), "b_enc": J, "W_dec": (J, 9), "b_dec": 9}
    config = Config(architecture, 9, J, k=2)
    model = SparseAutoencoder(config, {name: torch.zeros(shape) for name, shape in shapes.items()})
    with on_fakes():
        model, x = moved(model)
        assert devices([model.encode(x), model(x)]) == {"cuda"}


# What these do next depends on the values of tensors, and a fake tensor has none. Their inner steps are tested above.
# (`fit` and `check_calibration` seed the GPU first, which needs one.)
READS_VALUES = {
    "VAE.check_data": lambda model, x: model.check_data(x),
    "VAE.prepare": lambda model, x: model.prepare(x),
    "bounds": vsc.bounds,
    "evaluate": vsc.evaluate,
    "codes": vsc.codes,
    "encode": vsc.encode,
    "impute": lambda model, x: model.impute(x, x > 0),
    "refine": vsc.refine,
    "exact_posterior": vsc.exact_posterior,
    "gibbs_posterior": vsc.gibbs_posterior,
    "evaluate_dictionary": vsc.evaluate_dictionary,
    "to_arviz": vsc.to_arviz,
}


@pytest.mark.parametrize("function", READS_VALUES.values(), ids=READS_VALUES)
def test_what_reads_values_cannot_be_tried(function):
    model = vsc.SparseDictionary(9, J, expected_active=2)
    with on_fakes(), pytest.raises(DataDependentOutputException):
        function(*moved(model))


KEPT = torch.ones(J)
MISPLACED = {
    "kept": lambda z: KEPT,
    "made": lambda z: torch.ones(J),
    "copied": lambda z: torch.ones(J).to(z),
    "constant": lambda z: torch.tensor([1.0] * J, device=z.device),
}


@pytest.mark.parametrize(
    ("check", "name"),
    # On the device for gradients, a constant is no copy from the CPU.
    [(check_loss, name) for name in MISPLACED] + [(check_step, name) for name in MISPLACED if name != "constant"],
)
def test_a_misplaced_tensor_is_found(check, name):
    class Offset(nn.Module):
        def forward(self, z):
            return z + MISPLACED[name](z)

    model = build("normal", "normal")
    model.decoder.network = nn.Sequential(Offset(), model.decoder.network)
    with pytest.raises((RuntimeError, TypeError), match=r"FakeTensorDeviceMismatch|moves an array from the CPU"):
        check(model, "analytic")
