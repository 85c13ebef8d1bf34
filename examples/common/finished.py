"""Settings (config.json) and figures (metrics.json) of a finished run of mnist_vsc.py, read back and checked."""

import contextlib
import io
import re

from common.outputs import (
    EARLIER,
    check_entries,
    check_known,
    count,
    number,
    number_or_none,
    numbers,
    read_json,
    settings,
    text,
    text_or_none,
    texts,
    truth,
)
from vsc_pyro.datasets import DATASETS
from vsc_pyro.training.checkpoints import shortened, shown

# In metrics.json: settings, as in config.json or null with a prior that does without, and figures, of these kinds.
ONLY_WITH_SOME = (
    "inclusion",
    "learn_inclusion",
    "slab",
    "learn_slab",
    "num_pseudo_inputs",
    "assignment",
    "sparsity_weight",
    "gate",
)
SETTINGS = (
    *("prior", "latent_dim", "hyperprior", "warmup", "hidden", "encoder_activation"),
    *(
        "decoder_activation",
        "objective",
        "num_draws",
        "beta",
        "batch_size",
        "lr",
        "lr_drop",
        "lr_decay",
        "cooldown",
        "seed",
    ),
    *ONLY_WITH_SOME,
)
FIGURES_OF_MERIT = (
    *("train_objective", "test_elbo", "test_objective", "test_reconstruction", "test_kl", "test_iwae"),
    *("relaxation_gap", "test_soft_objective", "expected_l0", "hard_l0", "hard_l0_odds", "hoyer"),
    *("used_per_datum", "r2", "hard_r2", "entropy_explained", "hard_entropy_explained"),
)
LISTS = ("hidden", "hyperprior", "warmup")
COUNTS = ("epochs", "processes", "iwae_draws", "active_units", "used_latents", "informative_latents", "num_test")
KINDS = {
    **dict.fromkeys(FIGURES_OF_MERIT, number_or_none),
    **dict.fromkeys(COUNTS, count),
    **dict.fromkeys(("compile_seconds", "seconds", "seconds_this_run"), number),
    "dataset": text,
    "binarize": text_or_none,
    "device": text,
    "compiled": truth,
    "usage": numbers,
    "information": numbers,
    "advice": texts,
}


def read_settings(file, parse, free_to_change):
    """The settings of a run, which must be some that the command line gives."""
    config = EARLIER | read_json(file)
    least, most = (settings(parse([]), free_to_change(lr_decay)) for lr_decay in (False, True))
    check_known(file, config, most)
    check_entries(file, config, dict.fromkeys(least, lambda value: True))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args = parse([word for name, value in config.items() for word in words(name, value)])
    except SystemExit as error:
        reason = complaint.getvalue().partition("error: ")[2].strip()
        reason = shortened(re.sub("--([a-z-]+)", lambda flag: flag[1].replace("-", "_"), reason), 300)
        raise ValueError(f"{file} is damaged: {reason}; make the run anew") from error
    for name, value in config.items():
        if vars(args)[name] != value:
            raise ValueError(f"{file} is damaged: {name} cannot be {shown(value)}; make the run anew")
    if args.lr_decay != ("epochs" in config):
        raise ValueError(f"{file} is damaged: it has epochs if and only if lr_decay is true; make the run anew")
    return args


def words(name, value):
    """Those of a command line that set an option."""
    flag = "--" + name.replace("_", "-")
    if value is None or isinstance(value, bool):
        return [flag] if value else []
    return [flag, *map(str, value)] if name in LISTS and numbers(value) else [f"{flag}={value}"]


def read_metrics(file, args, config, needed, settled):
    """Figures of a run with the settings `args`, which stand in `config`; its prior takes `needed`.

    `settled(args, dataset)` are these settings on a data set.
    """
    earlier = {name: getattr(args, name) if name in {*needed, "cooldown"} else None for name in EARLIER}
    metrics, known = earlier | read_json(file), {**KINDS, **dict.fromkeys(SETTINGS, lambda value: True)}
    check_known(file, metrics, known)
    check_entries(file, metrics, known)
    is_found = args.dataset == "auto" and metrics["dataset"] in ("mnist", "digits")
    dataset = metrics["dataset"] if is_found else args.dataset
    args = settled(args, dataset)
    asked = {name: getattr(args, name) if name in needed or name not in ONLY_WITH_SOME else None for name in SETTINGS}
    given = {"dataset": dataset, **asked}
    own = {"auto": DATASETS[dataset].binarize} if dataset in DATASETS else {}
    given["binarize"] = {"none": None, **own}.get(args.binarize, args.binarize)
    for name, value in given.items():
        if metrics[name] != value:
            raise ValueError(
                f"{file} is of a run with {name}={shown(metrics[name])}, and {config} of one with {shown(value)}; one "
                "of the two has been changed: make the run anew"
            )
    if len(metrics["usage"]) != args.latent_dim:
        raise ValueError(f"{file} is damaged: usage must have {args.latent_dim} numbers; make the run anew")
    return metrics
