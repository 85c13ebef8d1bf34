"""Options that several examples have, and what their values must be."""

import argparse
from pathlib import Path

from vsc_pyro._arguments import positive_float, positive_int
from vsc_pyro._files import expanded


def whole(text):
    try:
        return positive_int("the value", int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}") from error


def natural(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def positive(text):
    try:
        return positive_float("the value", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}") from error


def path(text):
    """With ~ for the home folder wherever it stands: a shell leaves it as it is in --output=~/run."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_options(description, output, epochs, datasets, latent_dim="50", binarize="the data set's own"):
    """A parser of the options that a run on any of `datasets` has.

    `epochs`, `latent_dim` and `binarize` say in words what it takes by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="auto", choices=["auto", *datasets], help="auto: MNIST, or else digits")
    add("--data-root", type=path, help="folder that holds MNIST/raw or FashionMNIST/raw")
    add("--binarize", default="auto", choices=["auto", "dynamic", "static", "none"], help=f"auto: {binarize}")
    add("--inclusion", type=float, default=0.1, help="prior probability that a latent is on")
    add("--latent-dim", type=whole, default=50, help=f"default: {latent_dim}")
    add(
        "--hidden",
        type=whole,
        nargs="+",
        default=[400],
        help="widths of the encoder's hidden layers; the decoder mirrors them",
    )
    add("--epochs", type=whole, help=f"default: {epochs}")
    add("--batch-size", type=whole, default=200)
    add("--lr", type=positive, default=1e-3)
    add("--seed", type=natural, default=0)
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--iwae-draws", type=whole, default=100, help="draws of the importance-weighted bound")
    add("--output", type=path, default=Path(output), metavar="DIR")
    add("--resume", action="store_true", help="go on with the run in --output")
    add("--overwrite", action="store_true", help="replace the run in --output by a new one")
    add("--quiet", action="store_true", help="no progress bars")
    return parser
