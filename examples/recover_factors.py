"""Does a code find what made the data? Train sparse and dense systems on data whose factors are known, and measure it.

    python examples/recover_factors.py --dataset smiley

prints and writes a table to --output: for every system the area under the ROC curve by which its best single latent
tells whether a factor is present, averaged over factors; by inclusion probabilities where there are any, and for all by
posterior means (the better of mean, -mean and |mean| for each factor, chosen on training data).
"""

import argparse
import csv
from pathlib import Path

import torch
from common.options import natural, path, positive, whole
from common.outputs import in_place_of, refuse_to_replace, write_json
from common.running import run

import vsc_pyro as vsc
from vsc_pyro._files import replacing


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


# Name: the decoder that fits how the data were made, and defaults.
DATASETS = {
    "linear-5x5": (linear, {"latent_dim": 10, "hidden": [100], "inclusion": 0.3, "epochs": 60}),
    "smiley": (binary, {"latent_dim": 50, "hidden": [400], "inclusion": 0.2, "epochs": 60}),
}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, required=True)
    add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    add("--latent-dim", type=whole)
    add("--hidden", type=whole, nargs="+", help="widths of the encoder's hidden layers")
    add("--inclusion", type=float, help="prior probability that a latent is on, or where learning it starts")
    add("--epochs", type=whole)
    add("--batch-size", type=whole, default=100)
    add("--lr", type=positive, default=1e-3)
    add("--seed", type=natural, default=0)
    add("--device", default="auto")
    add("--output", type=path, default=Path("runs/recover_factors"), metavar="DIR")
    add("--overwrite", action="store_true", help="replace the table that is there")
    add("--quiet", action="store_true", help="no progress bars")
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


def write(args, rows):
    """The table so far: what is trained is not lost if a later system fails."""
    settings = vars(args) | {"output": str(args.output)}
    write_json(args.output / f"{args.dataset}.json", {"settings": settings, "rows": rows})
    with (
        replacing(args.output / f"{args.dataset}.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main(argv=None):
    args = parse(argv)
    files = [f"{args.dataset}.{suffix}" for suffix in ("csv", "json")]
    refuse_to_replace(args, files[0])
    train, test = vsc.datasets.load(args.dataset, seed=args.seed)
    shape = tuple(train.images.shape[1:])
    models = {name: build(name, args, shape) for name in args.systems}  # all, before any is trained
    rows = []
    with in_place_of(args.output, files, worth_keeping=files):
        for name, model in models.items():
            rows.append(row(name, model, args, train, test))
            write(args, rows)
    print(f"\n{args.dataset}, {len(test)} test data\n{(args.output / files[0]).read_text()}")
    return rows


if __name__ == "__main__":
    run(main)
