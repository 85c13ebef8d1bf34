"""How far are inferred posteriors from the true ones? Fit linear models of few latents, whose truth can be enumerated.

    python examples/exact_inference.py

fits 8-latent dictionaries to several data sets and leaves in --output: table.md and metrics.json, and for every data
set a figure of reliability and one of ranks. For test data it compares the encoder's posterior, and the same refined
datum by datum, with the exact one: bounds with the evidence, inclusion probabilities with the true ones (mean absolute
error). On data simulated from the fitted model it asks whether each of the three is calibrated. *Overlap* is the mean
over atoms of their largest cosine with another atom: atoms that overlap explain the same parts of a datum, their
latents depend on one another given it, and no posterior of independent latents, however refined, can say so.
"""

import argparse
from pathlib import Path

import pyro
import torch
from common.options import natural, path, positive, whole
from common.outputs import refuse_to_replace, write_json
from common.running import run
from torch.nn.functional import normalize

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro._files import replacing
from vsc_pyro.evaluation.calibration import check_calibration
from vsc_pyro.inference.linear_exact import exact_posterior
from vsc_pyro.inference.refine import refine
from vsc_pyro.objectives import OBJECTIVES, get_objective

# Name: how to load so many training data, and a standard deviation of the noise to start from, in units of the data.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    add("--num-data", type=whole, default=10_000, help="for training; digits has 1,437")
    add("--latent-dim", type=whole, default=8)
    add("--inclusion", type=float, default=0.2, help="prior probability that a latent is on")
    add("--steps", type=whole, default=4000, help="of training, rounded up to epochs of batches of 100")
    add("--lr", type=positive, default=2e-3)
    add("--objective", choices=OBJECTIVES, default="analytic", help="of training")
    add("--refine-objective", choices=OBJECTIVES, default="exact", help="of refinement")
    add("--refine-steps", type=whole, default=500)
    add("--refine-draws", type=whole, help="of each code in a step, where the objective draws any; default: 20")
    add("--num-test", type=whole, default=500, help="test data to refine, at most")
    add("--num-simulated", type=whole, default=1000, help="data to simulate for calibration")
    add("--seed", type=natural, default=0)
    add("--device", default="auto")
    add("--output", type=path, default=Path("runs/exact_inference"), metavar="DIR")
    add("--overwrite", action="store_true", help="replace the results that are there")
    add("--quiet", action="store_true", help="no progress bars")
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
    """The bound of a posterior of the codes of x, by datum. Nothing is sampled: draws would drown a small gap."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", posterior)

    with model.evaluating():
        return -vsc.ExactELBO().loss(model.model, guide, x) / len(x)


def measure(args, model, test):
    """Errors on test data, and calibrations on simulated data by name of posterior."""

    def refined(x, progress=False):
        return refine(
            model,
            x,
            steps=args.refine_steps,
            num_draws=args.refine_draws,
            objective=args.refine_objective,
            seed=args.seed,
            progress=progress,
        )

    test = test.images[: args.num_test]
    amortised = vsc.evaluate(model, test, seed=args.seed, reference="exact")
    truth = exact_posterior(model, test)
    x = test.to(model.reference)
    with model.evaluating():
        elbo = exact_elbo(model, x, model.encoder(x))
    better = refined(test, not args.quiet)
    elbo_refined = exact_elbo(model, x, better.posterior)
    error = (better.posterior.base_dist.probs - truth.inclusion).abs().mean().item()
    posteriors = {
        "encoder": None,
        "refined": lambda x: refined(x).posterior,
        "exact": lambda x: exact_posterior(model, x),
    }
    calibrations = {
        name: check_calibration(
            model, posterior=posterior, num_data=args.num_simulated, seed=args.seed, progress=not args.quiet
        )
        for name, posterior in posteriors.items()
    }
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
        "inclusion_error_refined": error,
        **{f"ece_{name}": result.ece for name, result in calibrations.items()},
        "calibration": {name: result.as_dict() for name, result in calibrations.items()},
    }
    return results, calibrations


def table(results):
    heads = ["data", *(name.replace("_", " ") for name in COLUMNS)]
    rows = [[name, *(format(row[key], form) for key, form in COLUMNS.items())] for name, row in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]) + "\n"


def main(argv=None):
    args = parse(argv)
    refuse_to_replace(args, "metrics.json")
    get_objective(args.objective)
    get_objective(args.refine_objective, args.refine_draws)
    data, models = {}, {}
    for name in args.datasets:  # all, before any is trained
        load, scale = DATASETS[name]
        data[name] = load(args.num_data, args.seed)
        models[name] = build(args, data[name].train, scale)
        exact_posterior(models[name], data[name].test.images[:1])
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
        with replacing(args.output / file) as temporary:
            figure.savefig(temporary, dpi=110)
    with replacing(args.output / "table.md") as temporary:
        temporary.write_text(table(results), encoding="utf-8")
    write_json(
        args.output / "metrics.json", {"datasets": results, "settings": {k: str(v) for k, v in vars(args).items()}}
    )
    print(table(results))
    return results


if __name__ == "__main__":
    run(main)
