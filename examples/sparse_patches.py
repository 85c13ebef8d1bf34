"""Sparse coding of natural images: learn the dictionary of a linear decoder from whitened patches of photographs.

    python examples/sparse_patches.py

trains a Laplace and a spike-and-slab model with the same linear decoder and writes to --output their receptive fields
and metrics.json. Two figures compare the fields with those of Olshausen and Field (1996): *localisation*, the share of
a field's energy in the best window of half its side, and *orientation*, (a - b) / (a + b) of the eigenvalues a > b of
the covariance of its gradients (0: no direction is preferred, 1: a straight edge). Both are means over the fields that
the code uses, and are printed beside those of white noise.
"""

import torch
from common.files import write_figure, write_json
from common.options import add_output, described, path, positive, whole
from common.outputs import refuse_to_replace
from common.running import run

import vsc_pyro as vsc
from vsc_pyro import plots


def laplace(args, shape):
    return vsc.NormalEncoder(shape, args.latent_dim), vsc.LaplacePrior(args.latent_dim)


def spike_slab(args, shape):
    return vsc.SpikeSlabEncoder(shape, args.latent_dim), vsc.SpikeSlabPrior(args.latent_dim, args.inclusion)


SYSTEMS = {"laplace": laplace, "spike-slab": spike_slab}


def localisation(fields):
    """Return the share of energy in the best square window, of half the side, of each field; fields (J, S, S)."""
    energy = fields.square()
    side = fields.shape[-1] // 2
    windows = torch.nn.functional.avg_pool2d(energy.unsqueeze(1), side, stride=1) * side**2
    return windows.flatten(1).amax(1) / energy.flatten(1).sum(1)


def orientation(fields):
    """Return (a - b) / (a + b) of the eigenvalues a > b of the gradients' second moments; fields (J, S, S)."""
    down, across = torch.gradient(fields, dim=(-2, -1))
    gradients = torch.stack([down.flatten(1), across.flatten(1)], 1)
    low, high = torch.linalg.eigvalsh(gradients @ gradients.mT).unbind(-1)
    return (high - low) / (high + low)


def parse(argv):
    parser = described(__doc__)
    add = parser.add_argument
    add("--folder", type=path, help="folder of photographs; default: the two that scikit-learn bundles")
    add("--size", type=whole, default=12, help="side of a patch")
    add("--num-patches", type=whole, default=50_000)
    add("--latent-dim", type=whole, default=144)
    add("--inclusion", type=float, default=0.05, help="prior probability that a latent is on")
    add(
        "--noise",
        type=positive,
        default=0.7,
        help="standard deviation of a pixel given its code; that of the data is 1",
    )
    add("--epochs", type=whole, default=30)
    add("--lr", type=positive, default=3e-3)
    add_output(parser, "runs/sparse_patches")
    return parser.parse_args(argv)


def build(name, args, shape):
    torch.manual_seed(args.seed)
    decoder = vsc.NormalDecoder(args.latent_dim, shape, hidden=(), scale=args.noise)
    encoder, prior = SYSTEMS[name](args, shape)
    return vsc.VAE(encoder, decoder, prior)


def train_and_measure(model, train, test, args):
    history = vsc.fit(
        model, train, epochs=args.epochs, lr=args.lr, device=args.device, seed=args.seed, progress=not args.quiet
    )
    result = vsc.evaluate(model, test, num_draws=20, seed=args.seed)
    used = vsc.encode(model, test, seed=args.seed).var(0) > 0.01
    fields = model.decoder.dictionary.detach().cpu()[used if used.any() else ~used, 0]
    return {
        "elbo": result.elbo,
        "iwae": result.iwae,
        "expected_l0": result.expected_l0,
        "active_units": result.active_units,
        "localisation": localisation(fields).mean().item(),
        "orientation": orientation(fields).mean().item(),
        "seconds": round(sum(history.seconds), 1),
    }


def main(argv=None):
    args = parse(argv)
    if args.size < 4:
        raise SystemExit(f"--size must be at least 4, for a field to have a direction in it, got {args.size}")
    refuse_to_replace(args, "metrics.json")
    # The finest gratings are mostly noise; the regularisation leaves them out of the whitening.
    train, test = vsc.datasets.patches(args.size, args.num_patches, 5_000, args.seed, args.folder, regularisation=0.1)
    shape = tuple(train.images.shape[1:])
    noise = torch.randn(2000, *shape[1:], generator=torch.Generator().manual_seed(0))
    chance = {"localisation": localisation(noise).mean().item(), "orientation": orientation(noise).mean().item()}
    models = {name: build(name, args, shape) for name in SYSTEMS}
    results = {}
    for name, model in models.items():
        results[name] = train_and_measure(model, train, test, args)
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in results[name].items()))
    print(f"white noise: localisation {chance['localisation']:.4g}, orientation {chance['orientation']:.4g}")
    for name, model in models.items():
        write_figure(args.output / f"receptive_fields_{name}.png", plots.receptive_fields(model), dpi=110)
    settings = {name: str(value) for name, value in vars(args).items()}
    write_json(args.output / "metrics.json", {"systems": results, "white_noise": chance, "settings": settings})
    return results


if __name__ == "__main__":
    run(main)
