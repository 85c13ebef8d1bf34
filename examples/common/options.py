"""Command-line options that several examples share, and the conversion of their values."""

import argparse
from pathlib import Path

from vsc_pyro._arguments import positive_float, positive_int
from vsc_pyro._files import expanded


def whole(text):
    """Convert to an integer of at least 1."""
    try:
        return positive_int("the value", int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}") from error


def natural(text):
    """Convert to an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def positive(text):
    """Convert to a number above 0."""
    try:
        return positive_float("the value", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}") from error


def path(text):
    """Convert to a path with ~ expanded; a shell does not expand it in --output=~/run."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        is_stated = action.default in (None, False) or "default" in action.help
        return action.help if is_stated else super()._get_help_string(action)


def described(description):
    """Return a parser whose --help keeps the line breaks of `description`, and states defaults."""
    return argparse.ArgumentParser(description=description, formatter_class=_Help)


def add_data(parser, datasets):
    """Add --dataset, one of `datasets`, and --data-root."""
    parser.add_argument(
        "--dataset", default="auto", choices=["auto", *datasets], help="auto: MNIST, or digits without MNIST"
    )
    add_data_root(parser)


def add_data_root(parser):
    parser.add_argument(
        "--data-root",
        type=path,
        help="folder of MNIST/raw, FashionMNIST/raw and other data; default: VSC_PYRO_DATA, else a cache",
    )


def add_finished_run(parser):
    """Add the folder of a finished run of mnist_vsc.py, and --data-root."""
    parser.add_argument("run", type=path, metavar="RUN_DIR", help="output folder of a finished run of mnist_vsc.py")
    add_data_root(parser)


def add_output(parser, output, device=True):
    """Add the last options of an example that cannot resume: --seed, --device, --output, --overwrite and --quiet."""
    add = parser.add_argument
    add("--seed", type=natural, default=0, help="of random numbers")
    if device:
        add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--output", type=path, default=Path(output), metavar="DIR", help="folder of the results")
    add("--overwrite", action="store_true", help="replace the results in --output")
    add("--quiet", action="store_true", help="no progress bars")


def run_options(description, output, epochs, datasets, latent_dim="50", binarize="the choice of the data set"):
    """Return a parser with the options of a resumable run on one of `datasets`.

    `epochs`, `latent_dim` and `binarize` describe their defaults in the help.
    """
    parser = described(description)
    add = parser.add_argument
    add_data(parser, datasets)
    add("--binarize", default="auto", choices=["auto", "dynamic", "static", "none"], help=f"auto: {binarize}")
    add("--inclusion", type=float, default=0.1, help="prior probability that a latent is on")
    add("--latent-dim", type=whole, default=50, help=f"number of latents; default: {latent_dim}")
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
    add("--resume", action="store_true", help="continue the run in --output")
    add("--overwrite", action="store_true", help="replace the run in --output by a new one")
    add("--quiet", action="store_true", help="no progress bars")
    return parser
