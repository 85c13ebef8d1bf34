"""Compare inferred posteriors with the true ones, for linear models whose few latents can be enumerated.

    python examples/exact_inference.py

fits dictionaries of 8 latents to several data sets and writes to --output: table.md and metrics.json, and for each data
set a figure of reliability and one of ranks. On test data it compares the encoder's posterior, and the same posterior
refined datum by datum, with the exact one: bounds with the evidence, inclusion probabilities with the true ones (mean
absolute error). On data simulated from the fitted model it checks the calibration of all three posteriors. *Overlap* is
the mean over atoms of their largest cosine with another atom. Atoms that overlap explain the same parts of a datum, and
their latents are dependent in the posterior; no posterior with independent latents, refined or not, can represent that.
"""

import pyro
import torch
from common.files import markdown, write_figure, write_json, write_text
from common.options import add_output, described, positive, whole
from common.outputs import refuse_to_replace
from common.running import run
from torch.nn.functional import normalize

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.objectives import OBJECTIVES, get_objective

# For each data set: a function that loads it, and the initial standard deviation of the noise in units of the data.
DATASETS = {
    "patches": (lambda num, seed: vsc.datasets.patches(8, num, 1000, seed, regularisation=0.1), 1.0),
    "templates": (lambda num, seed: vsc.datasets.templates(num, 1000, seed=seed), 0.3),
    "digits": (lambda num, seed: vsc.datasets.load("digits", None, None, seed), 0.3),
    "linear-5x5": (lambda num, seed: vsc.datasets.linear_5x5(num, 1000, seed=seed), 0.3),
}
COLUMNS = {
    "overlap": ".2f",
    "evidence": ".2f",
    "elbo": ".2f",
    "elbo_refined": ".2f",
    "inclusion_error": ".4f",
    "inclusion_error_refined": ".4f",
    "ece_encoder": ".4f",
    "ece_refined": ".4f",
    "ece_exact": ".4f",
}


def parse(argv):
    parser = described(__doc__)
    add = parser.add_argument
    add("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    add("--num-data", type=whole, default=10_000, help="training data; digits has 1,437")
    add("--latent-dim", type=whole, default=8)
    add("--inclusion", type=float, default=0.2, help="prior probability that a latent is on")
    add("--steps", type=whole, default=4000, help="training steps, rounded up to whole epochs with batches of 100")
    add("--lr", type=positive, default=2e-3)
    add("--objective", choices=OBJECTIVES, default="analytic", help="objective of training")
    add("--refine-objective", choices=OBJECTIVES, default="exact", help="objective of refinement")
    add("--refine-steps", type=whole, default=500)
    add("--refine-draws", type=whole, help="draws of each code in a step, if the objective draws codes; default: 20")
    add("--num-test", type=whole, default=500, help="test data to refine, at most")
    add("--num-simulated", type=whole, default=1000, help="data to simulate for calibration")
    add_output(parser, "runs/exact_inference")
    return parser.parse_args(argv)


def build(args, train, scale):
    shape = tuple(train.images.shape[1:])
    torch.manual_seed(args.seed)
    decoder = vsc.NormalDecoder(args.latent_dim, shape, hidden=(), scale=scale, variance="shared")
    prior = vsc.SpikeSlabPrior(args.latent_dim, args.inclusion)
    return vsc.VAE(vsc.SpikeSlabEncoder(shape, args.latent_dim, hidden=(100,)), decoder, prior)


def overlap(dictionary):
    atoms = normalize(dictionary.flatten(1), dim=1)
    return (atoms @ atoms.T).fill_diagonal_(0).abs().amax(1).mean().item()


def exact_elbo(model, x, posterior):
    """Return the ELBO per datum of a posterior of the codes of x, without sampling: noise would hide a small gap."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", posterior)

    with model.evaluating():
        return -vsc.ExactELBO().loss(model.model, guide, x) / len(x)


def refined(model, x, args, progress=False):
    return vsc.refine(
        model,
        x,
        steps=args.refine_steps,
        num_draws=args.refine_draws,
        objective=args.refine_objective,
        seed=args.seed,
        progress=progress,
    )


def calibrations_of(model, args):
    """Return the calibration of each posterior on data simulated from the model."""
    posteriors = {
        "encoder": None,
        "refined": lambda x: refined(model, x, args).posterior,
        "exact": lambda x: vsc.exact_posterior(model, x),
    }
    return {
        name: vsc.check_calibration(
            model, posterior=posterior, num_data=args.num_simulated, seed=args.seed, progress=not args.quiet
        )
        for name, posterior in posteriors.items()
    }


def measure(args, model, test):
    """Return the errors on test data, and the calibrations by name of the posterior."""
    test = test.images[: args.num_test]
    amortised = vsc.evaluate(model, test, seed=args.seed, reference="exact")
    truth = vsc.exact_posterior(model, test)
    x = test.to(model.reference)
    with model.evaluating():
        elbo = exact_elbo(model, x, model.encoder(x))
    better = refined(model, test, args, not args.quiet).posterior
    elbo_refined = exact_elbo(model, x, better)
    calibrations = calibrations_of(model, args)
    results = {
        "overlap": overlap(model.decoder.dictionary.detach()),
        "noise": model.decoder.scale.item(),
        "evidence": amortised.evidence,
        "elbo": elbo,
        "elbo_refined": elbo_refined,
        "gap": amortised.evidence - elbo,
        "gap_refined": amortised.evidence - elbo_refined,
        "expected_l0": truth.inclusion.sum(1).mean().item(),
        "inclusion_error": amortised.inclusion_error,
        "inclusion_error_refined": (better.base_dist.probs - truth.inclusion).abs().mean().item(),
        **{f"ece_{name}": result.ece for name, result in calibrations.items()},
        "calibration": {name: result.as_dict() for name, result in calibrations.items()},
    }
    return results, calibrations


def table(results):
    names = {key: key.replace("_", " ") for key in COLUMNS}
    return markdown(
        [
            {"data": data} | {names[key]: format(row[key], form) for key, form in COLUMNS.items()}
            for data, row in results.items()
        ]
    )


def main(argv=None):
    args = parse(argv)
    refuse_to_replace(args, "metrics.json")
    get_objective(args.objective)
    get_objective(args.refine_objective, args.refine_draws)
    data, models = {}, {}
    for name in args.datasets:  # errors of any model appear before the first is trained
        load, scale = DATASETS[name]
        data[name] = load(args.num_data, args.seed)
        models[name] = build(args, data[name].train, scale)
        vsc.exact_posterior(models[name], data[name].test.images[:1])
    results, figures = {}, {}
    for name, model in models.items():
        train, test = data[name]
        vsc.fit(
            model,
            train,
            objective=args.objective,
            epochs=-(-args.steps // -(-len(train) // 100)),
            batch_size=100,
            lr=args.lr,
            device=args.device,
            seed=args.seed,
            progress=not args.quiet,
        )
        results[name], calibrations = measure(args, model, test)
        figures[f"reliability_{name}.png"] = plots.reliability(calibrations)
        figures[f"ranks_{name}.png"] = plots.rank_histograms(calibrations)
        for posterior, result in calibrations.items():
            print(f"{name}, {posterior}: {result}")
    for file, figure in figures.items():
        write_figure(args.output / file, figure, dpi=110)
    write_text(args.output / "table.md", table(results) + "\n")
    settings = {name: str(value) for name, value in vars(args).items()}
    write_json(args.output / "metrics.json", {"datasets": results, "settings": settings})
    print(table(results))
    return results


if __name__ == "__main__":
    run(main)
