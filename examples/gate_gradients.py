r"""Bias, variance and cost of each gradient estimator of the spikes, in the course of training.

    python examples/gate_gradients.py

trains a spike-and-slab VAE with the defaults of the library, once with few latents and once with many. At the start,
half-way and at the end it measures the gradient of minus the ELBO (hard spikes, mean over a few fixed images), by the
log-odds of inclusion and by all weights of the encoder. With g an estimate and g* the true gradient, it reports

* the bias |E g - g*| / |g*|;
* the variance E |g - E g|^2 / |g*|^2 of a step. Multiplied by the decoder passes of a step (draws of each code), it
  compares estimators at equal work;
* the signal-to-noise ratio (SNR) |E g|^2 / E |g - E g|^2, per step and per millisecond;
* for biased estimators, the cosine of the angle between E g and g*.

Squared expectations are averages over pairs of independent blocks of draws, so that noise does not bias them. A bias
within three standard errors of zero is reported as a bound. Up to 8 latents, g* is a sum over all patterns of spikes,
with the KL in closed form, averaged over draws of the slabs; for more latents it is the mean of many draws of the
unbiased gate ``disarm``. It writes to --output gradients.json, and by gradient_report.py gradients.csv, gradients.md
and gradients.png.
"""

import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from common.data import DATASETS, load_data
from common.files import write_json
from common.options import add_data, add_output, described, whole
from common.outputs import refuse_to_replace
from common.running import run
from gradient_report import write_report
from torch.distributions import kl_divergence
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm

import vsc_pyro as vsc
from vsc_pyro.gates import BinaryConcrete, Gate, ShiftedSigmoid, get_gate
from vsc_pyro.objectives import get_objective

EPOCHS = {"digits": 100}  # of 8 steps each; MNIST, with 300 steps an epoch, gets 10
ENUMERABLE = 8  # latents: 256 patterns of spikes
BLOCKS = 50  # independent blocks of draws, for standard errors
ROWS = 2000  # codes decoded at once; they fit into the cache of a processor
SIGNIFICANT = 3.0  # standard errors
STATES = "initialisation", "mid-training", "end"


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A gate, an objective, and the number of draws of each code."""

    gate: str | Gate
    objective: str = "analytic"
    draws: int = 1

    @property
    def unbiased(self):
        return not get_gate(self.gate).reparametrized


REFERENCE = Estimator("disarm", draws=2)
ESTIMATORS = {
    "straight-through": Estimator("straight-through"),
    "concrete t=1": Estimator(BinaryConcrete(1.0)),
    "concrete t=.5": Estimator(BinaryConcrete(0.5)),
    "concrete t=.1": Estimator(BinaryConcrete(0.1)),
    "concrete t=.5, trace": Estimator(BinaryConcrete(0.5), "trace"),
    "shifted-sigmoid c=50": Estimator(ShiftedSigmoid(50.0)),
    "score": Estimator("score"),
    "leave-one-out x2": Estimator("score", draws=2),
    "leave-one-out x4": Estimator("score", draws=4),
    "leave-one-out x2, trace": Estimator("score", "trace", 2),
    "disarm x2": Estimator("disarm", draws=2),
    "disarm x4": Estimator("disarm", draws=4),
    "disarm x2, trace": Estimator("disarm", "trace", 2),
}


def parse(argv):
    parser = described(__doc__)
    add = parser.add_argument
    add_data(parser, DATASETS)
    add(
        "--latents",
        type=whole,
        nargs="+",
        default=[6, 50],
        help=f"number of latents of each model; exact truth up to {ENUMERABLE}",
    )
    add(
        "--hidden",
        type=whole,
        nargs="+",
        default=[400],
        help="widths of the encoder's hidden layers; the decoder mirrors them",
    )
    add("--inclusion", type=float, default=0.1, help="prior probability that a latent is on")
    add("--epochs", type=whole, help="at least 2; default: 10, and 100 on the small digits")
    add("--batch-size", type=whole, default=200, help="data per step, in training and in timed steps")
    add("--images", type=whole, default=20, help="number of fixed images")
    add("--passes", type=whole, default=4000, help="decoder passes per image for each estimator")
    add("--reference-draws", type=whole, default=100_000, help="draws of each code, for the truth with many latents")
    add("--slab-draws", type=whole, default=1600, help="draws of the slabs, for the exact truth")
    add("--timed-steps", type=whole, default=40, help="timed steps of each estimator")
    add_output(parser, "runs/gate_gradients", device=False)
    parser.set_defaults(binarize="auto")
    args = parser.parse_args(argv)
    if args.epochs == 1:
        parser.error("--epochs must be at least 2, so that training has a middle, got 1")
    least = BLOCKS * max(estimator.draws for estimator in ESTIMATORS.values())
    for option, minimum in (("passes", 2 * least), ("reference_draws", 2 * least), ("slab_draws", BLOCKS)):
        if getattr(args, option) < minimum:
            flag = "--" + option.replace("_", "-")
            parser.error(f"{flag} must be at least {minimum}, for {BLOCKS} blocks, got {getattr(args, option)}")
    return args


# Gradients by the outputs of the encoder's network: D numbers for each of B images, the last J of them log-odds


class Given(torch.nn.Module):
    """A stand-in for the encoder's network: its outputs are a leaf of the autograd graph and ignore the data."""

    def forward(self, x):
        return self.outputs


def without_network(model, x):
    """Return a copy of the model whose encoder has `Given` as its network, and the outputs ``(B, D)`` for x."""
    given = copy.deepcopy(model).requires_grad_(False)
    outputs = given.encoder.network(x)
    given.encoder.network = Given()
    return given, outputs


def estimated(model, x, estimator, num):
    """Return `num` independent estimates, ``(num, B, D)``."""
    given, outputs = without_network(model, x)
    given.encoder.gate = get_gate(estimator.gate)
    objective = get_objective(estimator.objective, estimator.draws)
    at_once = max(1, ROWS // (len(x) * estimator.draws))
    parts = []
    for start in range(0, num, at_once):
        repeats = min(at_once, num - start)
        # Images are independent given the weights, so each repetition is an independent estimate.
        leaf = given.encoder.network.outputs = outputs.repeat(repeats, 1).requires_grad_()
        objective.loss_and_grads(given.model, given.guide, x.repeat(repeats, *[1] * (x.ndim - 1)))
        parts.append(leaf.grad.unflatten(0, (repeats, len(x))))
    return torch.cat(parts)


def enumerated(model, x, size, seed):
    """Yield BLOCKS independent estimates ``(B, D)`` of the gradient, each with `size` draws of the slabs.

    Spikes are summed over. The slabs of a block are a scrambled Sobol sequence, whose error falls faster than the
    inverse square root of their number.
    """
    given, outputs = without_network(model, x)
    num_latents = model.encoder.latent_dim
    on_off = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * num_latents).reshape(-1, 1, num_latents)
    at_once = max(1, ROWS // (len(on_off) * len(x)))
    for block in range(BLOCKS):
        sobol = torch.quasirandom.SobolEngine(num_latents, scramble=True, seed=BLOCKS * seed + block)
        total = torch.zeros_like(outputs)
        for uniform in sobol.draw(size).clamp(1e-6, 1 - 1e-6).split(at_once):
            leaf = given.encoder.network.outputs = outputs.clone().requires_grad_()
            posterior = given.encoder(x)
            slab, logits = posterior.base_dist.slab, posterior.base_dist.logits
            prob = (on_off * logsigmoid(logits) + (1 - on_off) * logsigmoid(-logits)).sum(-1).exp()
            z = on_off.unsqueeze(1) * slab.icdf(uniform.unsqueeze(1))
            likelihood = prob.unsqueeze(1) * given.decoder(z).log_prob(x)  # (patterns, draws, B)
            kl = kl_divergence(posterior, given.prior(x).expand(posterior.batch_shape))
            total += torch.autograd.grad(len(uniform) * kl.sum() - likelihood.sum(), leaf)[0]
        yield total / size


def reference(model, x, args):
    """Return independent unbiased estimates ``(BLOCKS, B, D)`` of the true gradient."""
    if model.encoder.latent_dim <= ENUMERABLE:
        return torch.stack(list(enumerated(model, x, args.slab_draws // BLOCKS, args.seed)))
    size = args.reference_draws // (BLOCKS * REFERENCE.draws)
    return torch.stack([estimated(model, x, REFERENCE, size).mean(0) for _ in range(BLOCKS)])


# Bias, variance and cost


class Target(NamedTuple):
    """Variables that the gradient is taken by.

    `of` is the linear map from gradients by the outputs, ``(n, B, D)``, to gradients of the mean over images,
    ``(n, P)``. `kernel`, ``(B, D, D)``, is that map times its transpose, for each image.
    """

    of: Callable
    kernel: torch.Tensor


def targets(model, x):
    """Return two targets by name: the log-odds of inclusion, and all weights of the encoder."""
    num_latents, weights = model.encoder.latent_dim, list(model.encoder.parameters())

    def by_weights(gradients, x):
        outputs = model.encoder.network(x)
        parts = torch.autograd.grad(outputs, weights, gradients, is_grads_batched=True)
        return torch.cat([part.flatten(1) for part in parts], 1)

    unit = torch.eye(model.encoder.num_heads * num_latents)
    chosen = torch.diag((torch.arange(len(unit)) >= len(unit) - num_latents).float())
    jacobians = (by_weights(unit.unsqueeze(1), image) for image in x.split(1))
    return {
        "logits": Target(lambda g: g[..., -num_latents:].flatten(1) / len(x), chosen.expand(len(x), -1, -1)),
        "weights": Target(lambda g: by_weights(g, x) / len(x), torch.stack([j @ j.T for j in jacobians])),
    }


def squared_norm(blocks):
    """Return an unbiased estimate of |E b|^2 from independent rows b ``(n, P)``, and its jackknife standard error."""
    gram = (blocks.double() @ blocks.double().T).fill_diagonal_(0)
    n, total = len(gram), gram.sum()
    without_one = (total - 2 * gram.sum(1)) / ((n - 1) * (n - 2))
    error = ((n - 1) * without_one.var(correction=0)).sqrt()
    return float(total / (n * (n - 1))), float(error)


def total_variance(samples, kernel):
    """Return E |g - E g|^2 of the gradient g by a target, from estimates ``(n, B, D)`` with independent images."""
    centred = (samples - samples.mean(0)).transpose(0, 1)
    return float(((centred @ kernel) * centred).sum() / (len(samples) - 1) / len(kernel) ** 2)


def measure(estimator, samples, truth, target, milliseconds):
    """Return the figures of one estimator; samples ``(BLOCKS, n, B, D)``, truth ``(BLOCKS, B, D)``."""
    means, truths = target.of(samples.mean(1)), target.of(truth)
    norm, _ = squared_norm(truths)
    bias, error = squared_norm(means - truths)
    # An unbiased estimator has the signal of the truth, which is known with less noise.
    signal, signal_error = (norm, 0.0) if estimator.unbiased else squared_norm(means)
    variance = total_variance(samples.flatten(0, 1), target.kernel)
    cosine = None
    if not estimator.unbiased and signal > 10 * signal_error:
        cosine = float(means.mean(0) @ truths.mean(0)) / math.sqrt(signal * norm)
    return {
        "bias": math.sqrt(max(0.0, bias) / norm),
        "bias_z": bias / error,
        "bias_below": math.sqrt((max(0.0, bias) + SIGNIFICANT * error) / norm),
        "variance": variance / norm,
        "variance_times_passes": estimator.draws * variance / norm,
        "snr": max(0.0, signal) / variance,
        "snr_per_ms": max(0.0, signal) / variance / milliseconds,
        "cosine": cosine,
    }


def step_times(model, x, args):
    """Return the median CPU milliseconds of a full step with each estimator, by name."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    steps = {
        name: vsc.SVI(model.model, model.guide, optimizer, get_objective(estimator.objective, estimator.draws))
        for name, estimator in ESTIMATORS.items()
    }
    times = {name: [] for name in steps}
    with pyro.get_param_store().scope():
        for _ in range(args.timed_steps + 3):  # the first three are slower
            for name, svi in steps.items():  # in turn, so that a slow minute affects all estimators
                model.encoder.gate = get_gate(ESTIMATORS[name].gate)
                start = time.process_time()
                svi.step(x)
                times[name].append(1000 * (time.process_time() - start))
    return {name: float(torch.tensor(values[3:]).median()) for name, values in times.items()}


# The course of training


def trained(args, train, num_latents, epochs):
    """Yield the number of epochs so far and the model: at the start, half-way and at the end."""
    shape = tuple(train.images.shape[1:])
    torch.manual_seed(args.seed)
    encoder = vsc.SpikeSlabEncoder(shape, num_latents, args.hidden)
    decoder = vsc.BernoulliDecoder(num_latents, shape, args.hidden[::-1])
    model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(num_latents, args.inclusion))
    model.check_data(train.images)
    yield 0, model
    with tempfile.TemporaryDirectory() as folder:
        settings = {"batch_size": args.batch_size, "cooldown": 0, "device": "cpu", "seed": args.seed}
        settings["progress"] = not args.quiet
        for so_far in (epochs // 2, epochs):
            vsc.fit(model, train, epochs=so_far, checkpoint=Path(folder) / "checkpoint.pt", resume=True, **settings)
            yield so_far, model


def rows_of(model, x, args, milliseconds, progress):
    """Return norm and error of the true gradient by target, and a row for each estimator and target."""
    truth = reference(model, x, args)
    progress.update()
    known, rows, by_target = {}, [], targets(model, x)
    for of, target in by_target.items():
        blocks = target.of(truth)
        norm, _ = squared_norm(blocks)
        relative_error = math.sqrt(float(blocks.var(0).sum()) / BLOCKS / norm)
        known[of] = {"norm": math.sqrt(norm), "relative_standard_error": relative_error}
    for name, estimator in ESTIMATORS.items():
        ms = milliseconds[name]
        samples = estimated(model, x, estimator, args.passes // (BLOCKS * estimator.draws) * BLOCKS)
        samples = samples.unflatten(0, (BLOCKS, -1))
        gate = type(get_gate(estimator.gate)).__name__
        about = {"estimator": name, "gate": gate, "unbiased": estimator.unbiased, "passes": estimator.draws, "ms": ms}
        for of, target in by_target.items():
            rows.append(about | {"of": of} | measure(estimator, samples, truth, target, ms))
        progress.update()
    return known, rows


def main(argv=None):
    args = parse(argv)
    table = args.output / "gradients.json"
    refuse_to_replace(args, table.name)
    torch.set_num_threads(1)  # CPU time of one thread is comparable
    train, _ = load_data(args)
    epochs = args.epochs or EPOCHS.get(train.name, 10)
    if max(args.images, args.batch_size) > len(train):
        raise SystemExit(f"--images and --batch-size must be at most the {len(train)} training images there are")
    generator = torch.Generator().manual_seed(args.seed)
    x = train.draw(torch.arange(args.images), generator)
    batch = train.draw(torch.arange(args.batch_size), generator)
    states, latents = [], list(dict.fromkeys(args.latents))
    progress = tqdm(total=len(latents) * len(STATES) * (1 + len(ESTIMATORS)), disable=args.quiet)
    with progress, pyro.validation_enabled(False):
        for num_latents in latents:
            course = trained(args, train, num_latents, epochs)
            for state, (so_far, model) in zip(STATES, course, strict=True):
                if not so_far:
                    milliseconds = step_times(model, batch, args)
                torch.manual_seed(args.seed)
                known, rows = rows_of(model, x, args, milliseconds, progress)
                expected_l0 = float(model.encoder(x).base_dist.probs.detach().sum(-1).mean())
                about = {"latents": num_latents, "state": state, "epochs": so_far, "expected_l0": expected_l0}
                source = {"exact": num_latents <= ENUMERABLE, "truth": known}
                states.append(about | source | {"rows": rows})
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    data = {"dataset": train.name, "binarize": train.binarize}
    write_json(table, {**data, "significant": SIGNIFICANT, "settings": settings, "states": states})
    print(write_report(args.output), f"results in {args.output}", sep="\n")
    return states


if __name__ == "__main__":
    run(main)
