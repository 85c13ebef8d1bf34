"""The data set of a run, and the settings whose defaults depend on it."""

import argparse
import sys

import vsc_pyro as vsc
from common.model_options import OPTIONS_OF

DATASETS = ("mnist", "fashion-mnist", "digits", "smiley", "cifar10-grey")  # one channel, pixels from 0 to 1
# An epoch has 8 steps on the digits, and 300 on MNIST.
DEFAULTS = {"latent_dim": 50, "binarize": "auto", "learn_inclusion": "fixed", "epochs": 50}
DEFAULTS_ON = {"digits": {"latent_dim": 20, "binarize": "static", "learn_inclusion": "per-latent", "epochs": 500}}
IN_WORDS = {
    "latent_dim": "{} latents",
    "binarize": "{} binarisation",
    "learn_inclusion": "inclusion learned {}",
    "epochs": "{} epochs",
}


def described_default(name):
    """Return the words of --help for a default that depends on the data set."""
    return f"{DEFAULTS[name]}, and {DEFAULTS_ON['digits'][name]} on the small digits"


def with_defaults(args, dataset):
    """Return `args` with every open setting (None or "auto") replaced by its default on `dataset`."""
    defaults = DEFAULTS | DEFAULTS_ON.get(dataset, {})
    if "learn_inclusion" not in OPTIONS_OF[args.prior]:
        del defaults["learn_inclusion"]
    filled = {name: value for name, value in defaults.items() if getattr(args, name) in (None, "auto")}
    return argparse.Namespace(**(vars(args) | filled))


def load_data(args, with_defaults=lambda args, dataset: args):
    """Load --dataset; for "auto", MNIST, or the digits after a message if MNIST is not available.

    Settings may depend on the data set: each is loaded with the settings `with_defaults(args, dataset)`.
    """
    if args.dataset != "auto":
        return load_as(with_defaults(args, args.dataset), args.dataset)
    try:
        return load_as(with_defaults(args, "mnist"), "mnist")
    except (FileNotFoundError, ImportError) as error:
        on_digits = with_defaults(args, "digits")
        changed = [k for k in IN_WORDS if vars(on_digits).get(k) != vars(args).get(k)]
        words = ", ".join(IN_WORDS[k].format(getattr(on_digits, k)) for k in changed)
        print(
            "MNIST is not at hand, training on scikit-learn's bundled 8x8 digits instead"
            f"{', with ' * bool(words)}{words} ({error})",
            file=sys.stderr,
        )
        return load_as(on_digits, "digits")


def load_as(args, dataset):
    return vsc.datasets.load(dataset, args.data_root, None if args.binarize == "none" else args.binarize, args.seed)
