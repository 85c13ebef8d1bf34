"""Measure how well codes recover the factors of the data: sparse and dense systems, on data with known factors.

    python examples/recover_factors.py --dataset smiley

prints a table and writes it to --output: for each system, how well its best single latent detects a factor, as area
under the ROC curve, averaged over factors. The score is the inclusion probability, for systems that have one, and for
all systems the posterior mean (for each factor the better of mean, -mean and |mean|, chosen on training data).
"""

import torch
from common.files import write_csv, write_json
from common.options import add_output, described, positive, whole
from common.outputs import in_place_of, refuse_to_replace
from common.running import run

import vsc_pyro as vsc


def dense(args, shape):
    return vsc.NormalEncoder(shape, args.latent_dim, args.hidden), vsc.NormalPrior(args.latent_dim)


def spike_slab(args, shape, **prior):
    encoder = vsc.SpikeSlabEncoder(shape, args.latent_dim, args.hidden)
    return encoder, vsc.SpikeSlabPrior(args.latent_dim, args.inclusion, **prior)


def learned(args, shape):
    return spike_slab(args, shape, learn_inclusion="per-latent")


def pseudo_input(args, shape):
    encoder = vsc.SpikeSlabEncoder(shape, args.latent_dim, args.hidden)
    return encoder, vsc.PseudoInputPrior(encoder)


SYSTEMS = {
    "vae": (dense, 1.0),
    "beta-vae": (dense, 4.0),
    "spike-slab": (spike_slab, 1.0),
    "spike-slab-learned": (learned, 1.0),
    "pseudo-input": (pseudo_input, 1.0),
}


def linear(args, shape):
    return vsc.NormalDecoder(args.latent_dim, shape, hidden=(), scale=0.3, variance="shared")


def binary(args, shape):
    return vsc.BernoulliDecoder(args.latent_dim, shape, args.hidden[::-1])


# For each data set: a decoder of the kind that made the data, and the defaults of options.
DATASETS = {
    "linear-5x5": (linear, {"latent_dim": 10, "hidden": [100], "inclusion": 0.3, "epochs": 60}),
    "smiley": (binary, {"latent_dim": 50, "hidden": [400], "inclusion": 0.2, "epochs": 60}),
}


def parse(argv):
    parser = described(__doc__)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, required=True)
    add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    add("--latent-dim", type=whole)
    add("--hidden", type=whole, nargs="+", help="widths of the encoder's hidden layers")
    add("--inclusion", type=float, help="prior probability that a latent is on; initial value where it is learned")
    add("--epochs", type=whole)
    add("--batch-size", type=whole, default=100)
    add("--lr", type=positive, default=1e-3)
    add_output(parser, "runs/recover_factors")
    args = parser.parse_args(argv)
    for name, value in DATASETS[args.dataset][1].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def build(name, args, shape):
    parts, beta = SYSTEMS[name]
    decoder, _ = DATASETS[args.dataset]
    torch.manual_seed(args.seed)
    encoder, prior = parts(args, shape)
    return vsc.VAE(encoder, decoder(args, shape), prior, beta)


def row(name, model, args, train, test):
    """Train one system and return its row of the table."""
    settings = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr, "device": args.device}
    history = vsc.fit(model, train, seed=args.seed, progress=not args.quiet, **settings)
    result = vsc.evaluate(model, test, seed=args.seed)
    own = vsc.factor_auroc(model, train, test, seed=args.seed)
    means = vsc.factor_auroc(model, train, test, score="mean", seed=args.seed)
    print(f"\n{name}\n{own}")
    return {
        "system": name,
        "auroc_inclusion": round(own.mean, 4) if own.score == "inclusion" else "",
        "auroc_mean": round(means.mean, 4),
        "worst_factor": round(min(own.auroc), 4),
        "latents_chosen": len(set(own.latents)),
        "elbo": round(result.elbo, 2),
        "iwae": round(result.iwae, 2),
        "expected_l0": round(result.expected_l0, 2),
        "used_latents": result.used_latents,
        "seconds": round(sum(history.seconds), 1),
    }


def main(argv=None):
    args = parse(argv)
    files = [f"{args.dataset}.{suffix}" for suffix in ("csv", "json")]
    refuse_to_replace(args, files[0])
    train, test = vsc.datasets.load(args.dataset, seed=args.seed)
    shape = tuple(train.images.shape[1:])
    models = {name: build(name, args, shape) for name in args.systems}
    settings, rows = vars(args) | {"output": str(args.output)}, []
    with in_place_of(args.output, files, worth_keeping=files):
        for name, model in models.items():
            rows.append(row(name, model, args, train, test))
            # Written after each system, so that no result is lost if a later system fails.
            write_json(args.output / f"{args.dataset}.json", {"settings": settings, "rows": rows})
            write_csv(args.output / f"{args.dataset}.csv", rows)
    print(f"\n{args.dataset}, {len(test)} test data\n{(args.output / files[0]).read_text()}")
    return rows


if __name__ == "__main__":
    run(main)
