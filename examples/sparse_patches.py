"""Sparse coding of natural images: what a linear decoder learns from whitened patches of photographs.

    python examples/sparse_patches.py

trains a Laplace and a spike-and-slab model with the same linear decoder and leaves in --output their receptive fields
and metrics.json. Two figures say whether the fields are what Olshausen and Field (1996) found: *localisation*, the
share of a field's energy in the best window of half its side, and *orientation*, (a - b) / (a + b) of the eigenvalues
a > b of its gradients' covariance (0: no direction is preferred, 1: a straight edge); both averaged over the fields
that the code uses, beside the same of white noise.
"""

import argparse
from pathlib import Path

import torch
from common.options import natural, path, positive, whole
from common.outputs import refuse_to_replace, write_json
from common.running import run

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro._files import replacing


def laplace(args, shape):
    return vsc.NormalEncoder(shape, args.latent_dim), vsc.LaplacePrior(args.latent_dim)


def spike_slab(args, shape):
    return vsc.SpikeSlabEncoder(shape, args.latent_dim), vsc.SpikeSlabPrior(args.latent_dim, args.inclusion)


SYSTEMS = {"laplace": laplace, "spike-slab": spike_slab}


def localisation(fields):
    """Share of the energy in the best square window of half the side, a quarter of the area; fields (J, S, S)."""
    energy = fields.square()
    side = fields.shape[-1] // 2
    windows = torch.nn.functional.avg_pool2d(energy.unsqueeze(1), side, stride=1) * side**2
    return windows.flatten(1).amax(1) / energy.flatten(1).sum(1)


def orientation(fields):
    """(a - b) / (a + b) of the eigenvalues of the gradients' second moments; fields (J, S, S)."""
    down, across = torch.gradient(fields, dim=(-2, -1))
    gradients = torch.stack([down.flatten(1), across.flatten(1)], 1)
    low, high = torch.linalg.eigvalsh(gradients @ gradients.mT).unbind(-1)
    return (high - low) / (high + low)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=path, help="of photographs; default: the two that scikit-learn bundles")
    add("--size", type=whole, default=12, help="side of a patch")
    add("--num-patches", type=whole, default=50_000)
    add("--latent-dim", type=whole, default=144)
    add("--inclusion", type=float, default=0.05, help="prior probability that a latent is on")
    add("--noise", type=positive, default=0.7, help="standard deviation of a pixel given its code; the data's is 1")
    add("--epochs", type=whole, default=30)
    add("--lr", type=positive, default=3e-3)
    add("--seed", type=natural, default=0)
    add("--device", default="auto")
    add("--output", type=path, default=Path("runs/sparse_patches"), metavar="DIR")
    add("--overwrite", action="store_true", help="replace the results that are there")
    add("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    if args.size < 4:
        raise SystemExit(f"--size must be at least 4, for a field to have a direction in it, got {args.size}")
    refuse_to_replace(args, "metrics.json")
    # Noise of the finest gratings is not worth a code: whitening stops short of it.
    train, test = vsc.datasets.patches(args.size, args.num_patches, 5_000, args.seed, args.folder, regularisation=0.1)
    shape = tuple(train.images.shape[1:])
    noise = torch.randn(2000, *shape[1:], generator=torch.Generator().manual_seed(0))
    chance = {"localisation": localisation(noise).mean().item(), "orientation": orientation(noise).mean().item()}
    models, results, figures = {}, {}, {}
    for name, build in SYSTEMS.items():  # all, before any is trained
        torch.manual_seed(args.seed)
        decoder = vsc.NormalDecoder(args.latent_dim, shape, hidden=(), scale=args.noise)
        encoder, prior = build(args, shape)
        models[name] = vsc.VAE(encoder, decoder, prior)
    for name, model in models.items():
        settings = {"epochs": args.epochs, "lr": args.lr, "device": args.device, "seed": args.seed}
        history = vsc.fit(model, train, progress=not args.quiet, **settings)
        result = vsc.evaluate(model, test, num_draws=20, seed=args.seed)
        used = vsc.encode(model, test, seed=args.seed).var(0) > 0.01
        fields = model.decoder.dictionary.detach().cpu()[used if used.any() else ~used, 0]
        results[name] = {
            "elbo": result.elbo,
            "iwae": result.iwae,
            "expected_l0": result.expected_l0,
            "active_units": result.active_units,
            "localisation": localisation(fields).mean().item(),
            "orientation": orientation(fields).mean().item(),
            "seconds": round(sum(history.seconds), 1),
        }
        figures[f"receptive_fields_{name}.png"] = plots.receptive_fields(model)
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in results[name].items()))
    print(f"white noise: localisation {chance['localisation']:.4g}, orientation {chance['orientation']:.4g}")
    for file, figure in figures.items():
        with replacing(args.output / file) as temporary:
            figure.savefig(temporary, dpi=110)
    write_json(
        args.output / "metrics.json",
        {"systems": results, "white_noise": chance, "settings": {k: str(v) for k, v in vars(args).items()}},
    )
    return results


if __name__ == "__main__":
    run(main)
