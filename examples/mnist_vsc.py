"""Train a sparse variational autoencoder on handwritten digits and look at what it learnt.

    python examples/mnist_vsc.py

takes MNIST from --data-root, $VSC_PYRO_DATA or the user's cache, tries to download it, and falls back on the small
digits that scikit-learn bundles. It prints a table and leaves in --output: metrics.json, history.csv, checkpoint.pt,
config.json and the figures.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.files import replacing
from vsc_pyro.gates import GATES
from vsc_pyro.networks import ACTIVATIONS
from vsc_pyro.objectives import OBJECTIVES

# Settings that may differ between a run and its resumption; every other decides what the run computes.
FREE_TO_CHANGE = ("epochs", "device", "output", "data_root", "resume", "overwrite", "quiet", "iwae_draws")


def spike_slab(args, shape):
    encoder = vsc.SpikeSlabEncoder(shape, args.latent_dim, args.hidden, args.activation, args.gate)
    return encoder, vsc.SpikeSlabPrior(args.latent_dim, args.inclusion, args.learn_inclusion)


def normal(args, shape):
    return vsc.NormalEncoder(shape, args.latent_dim, args.hidden, args.activation), vsc.NormalPrior(args.latent_dim)


PRIORS = {"spike-slab": spike_slab, "normal": normal}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="auto", choices=["auto", *vsc.datasets.DATASETS], help="auto: MNIST, or else digits")
    add("--data-root", type=Path, help="folder that holds MNIST/raw or FashionMNIST/raw")
    add("--binarize", default="dynamic", choices=["dynamic", "static", "none"])
    add("--prior", default="spike-slab", choices=PRIORS)
    add("--inclusion", type=float, default=0.1, help="prior probability that a latent is on")
    add("--learn-inclusion", action="store_true", help="learn that probability for every latent")
    add("--latent-dim", type=int, default=50)
    add("--hidden", type=int, nargs="+", default=[400], help="widths of the hidden layers")
    add("--activation", default="relu", choices=ACTIVATIONS)
    add("--gate", default="concrete", choices=GATES, help="how a gradient passes a spike")
    add("--objective", default="analytic", choices=OBJECTIVES)
    add("--epochs", type=int, default=50)
    add("--batch-size", type=int, default=200)
    add("--lr", type=float, default=1e-3)
    add("--beta", type=float, default=1.0, help="weight of the KL divergence")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--iwae-draws", type=int, default=100, help="draws of the importance-weighted bound")
    add("--output", type=Path, default=Path("runs/mnist_vsc"), metavar="DIR")
    add("--resume", action="store_true", help="go on with the run in --output")
    add("--overwrite", action="store_true", help="delete what the run in --output left, and start anew")
    add("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


def prepare_output(args):
    """Refuse to touch a run that is there unless told to; note the settings of a new one."""
    config_file = args.output / "config.json"
    config = {k: v for k, v in vars(args).items() if k not in FREE_TO_CHANGE}
    ours = [config_file, *(args.output / name for name in ("metrics.json", "history.csv", "checkpoint.pt"))]
    if args.overwrite:
        for file in (*ours, *args.output.glob("*.png")):
            file.unlink(missing_ok=True)
    elif any(file.exists() for file in ours):
        if not args.resume:
            state = "finished" if (args.output / "metrics.json").exists() else "unfinished"
            raise SystemExit(
                f"{args.output} holds {'a' if state == 'finished' else 'an'} {state} run; "
                "pass --resume to go on with it, --overwrite to replace it, or another --output"
            )
        if config_file.exists():
            before = json.loads(config_file.read_text())
            changed = [f"{k}={before.get(k)!r} (now {v!r})" for k, v in config.items() if before.get(k) != v]
            if changed:
                raise SystemExit(f"{args.output} holds a run with {', '.join(changed)}; resume with the same settings")
    write_json(config_file, config)


def load_data(args):
    binarize = None if args.binarize == "none" else args.binarize
    if args.dataset != "auto":
        return vsc.datasets.load(args.dataset, args.data_root, binarize, args.seed)
    try:
        return vsc.datasets.load("mnist", args.data_root, binarize, args.seed)
    except FileNotFoundError as error:
        print(f"MNIST is not at hand, training on scikit-learn's bundled 8x8 digits instead ({error})", file=sys.stderr)
        return vsc.datasets.load("digits", None, binarize, args.seed)


def write_json(path, content):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def main(argv=None):
    args = parse(argv)
    start = time.perf_counter()
    prepare_output(args)
    train, test = load_data(args)
    shape = tuple(train.images.shape[1:])
    torch.manual_seed(args.seed)
    encoder, prior = PRIORS[args.prior](args, shape)
    decoder = vsc.BernoulliDecoder(args.latent_dim, shape, args.hidden, args.activation)
    model = vsc.VAE(encoder, decoder, prior, beta=args.beta)

    try:
        history = vsc.fit(
            model,
            train,
            objective=args.objective,
            epochs=args.epochs,
            batch_size=args.batch_size,
            lr=args.lr,
            device=args.device,
            seed=args.seed,
            checkpoint=args.output / "checkpoint.pt",
            resume=args.resume,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; pass --resume to go on with the run in {args.output}") from None
    result = vsc.evaluate(model, test, num_draws=args.iwae_draws, seed=args.seed, progress=not args.quiet)

    history.to_csv(args.output / "history.csv")
    figures = {
        "reconstructions": plots.reconstructions(model, test, seed=args.seed),
        "prior_samples": plots.prior_samples(model, test, seed=args.seed),
        "traversals": plots.traversals(model, test, seed=args.seed),
        "inclusion_map": plots.inclusion_map(model, test, seed=args.seed),
        "training_curve": plots.training_curve(history),
    }
    for name, figure in figures.items():
        with replacing(args.output / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=130)

    device = model.reference.device
    metrics = {
        "dataset": train.name,
        "binarize": train.binarize,
        "prior": args.prior,
        "latent_dim": args.latent_dim,
        "inclusion": args.inclusion if args.prior == "spike-slab" else None,
        "learn_inclusion": args.learn_inclusion,
        "gate": args.gate if args.prior == "spike-slab" else None,
        "hidden": args.hidden,
        "activation": args.activation,
        "objective": args.objective,
        "beta": args.beta,
        "epochs": len(history),
        "batch_size": args.batch_size,
        "lr": args.lr,
        "seed": args.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "seconds": round(sum(history.seconds), 2),
        "seconds_this_run": round(time.perf_counter() - start, 2),
        "train_elbo": history.elbo[-1],
        "test_elbo": result.elbo,
        "test_reconstruction": result.reconstruction,
        "test_kl": result.kl,
        "test_iwae": result.iwae,
        "iwae_draws": result.num_draws,
        "relaxation_gap": result.relaxation_gap,
        "test_soft_objective": result.elbo + result.relaxation_gap,
        "expected_l0": result.expected_l0,
        "hard_l0": result.hard_l0,
        "hard_l0_odds": result.hard_l0_odds,
        "hoyer": result.hoyer,
        "active_units": result.active_units,
        "used_latents": result.used_latents,
        "usage": result.usage.tolist(),
        "num_test": result.num_data,
    }
    write_json(args.output / "metrics.json", metrics)
    print(f"{train.name}, test: {result}\ntrained {sum(history.seconds):.0f} s on {device}; results in {args.output}")
    return metrics


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, vsc.NonFiniteLossError) as error:
        raise SystemExit(f"error: {error}") from error
