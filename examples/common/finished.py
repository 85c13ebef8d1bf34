"""The files of a finished run of mnist_vsc.py: metrics.json written, and all of them read back and checked."""

import contextlib
import io
import math
import re

import torch

from common.files import (
    check_entries,
    check_known,
    count,
    number,
    number_or_none,
    numbers,
    read_json,
    text,
    text_or_none,
    texts,
    truth,
)
from common.model_options import OPTIONS_OF, free_to_change
from common.outputs import EARLIER, settings
from vsc_pyro import parallel
from vsc_pyro.datasets import DATASETS
from vsc_pyro.training.checkpoints import shortened, shown

# Settings in metrics.json, with the values of config.json; null if the prior does not take them.
ONLY_WITH_SOME = (
    *("inclusion", "learn_inclusion", "slab", "learn_slab", "num_pseudo_inputs", "assignment", "sparsity_weight"),
    "gate",
)
SETTINGS = (
    *("prior", "latent_dim", "hyperprior", "warmup", "hidden", "encoder_activation", "decoder_activation"),
    *("objective", "num_draws", "beta", "batch_size", "lr", "lr_drop", "lr_decay", "cooldown", "seed"),
    *("validation", "patience"),
    *ONLY_WITH_SOME,
)
# Figures in metrics.json, by the names that `vsc_pyro.Evaluation` gives them.
FIGURES = {
    **{name: f"test_{name}" for name in ("elbo", "objective", "reconstruction", "kl", "iwae")},
    **{name: name for name in ("relaxation_gap", "expected_l0", "hard_l0", "hard_l0_odds", "hoyer", "used_per_datum")},
    **{name: name for name in ("r2", "hard_r2", "entropy_explained", "hard_entropy_explained")},
}
COUNTS = {
    "num_draws": "iwae_draws",
    "num_data": "num_test",
    **{name: name for name in ("active_units", "used_latents", "informative_latents")},
}
LISTS = {"usage": numbers, "information": numbers, "advice": texts}
KINDS = {
    **dict.fromkeys((*FIGURES.values(), "train_objective", "test_soft_objective"), number_or_none),
    **dict.fromkeys((*COUNTS.values(), "epochs", "processes"), count),
    **dict.fromkeys(("compile_seconds", "seconds", "seconds_this_run"), number),
    "dataset": text,
    "binarize": text_or_none,
    "device": text,
    "compiled": truth,
    **LISTS,
}


def settings_of(args):
    """Return the settings that metrics.json repeats; None for those that the prior does not take."""
    taken = {*OPTIONS_OF[args.prior]}
    if args.prior == "pseudo-input" and not args.sparsity_weight:
        taken.discard("inclusion")
    return {name: getattr(args, name) if name in taken or name not in ONLY_WITH_SOME else None for name in SETTINGS}


def metrics_of(args, history, result, dataset, device):
    """Return the content of metrics.json for the `result` of `vsc_pyro.evaluate`; NaN becomes None."""
    found = result.as_dict()
    metrics = {
        "dataset": dataset,
        "binarize": result.binarize,
        **settings_of(args),
        "epochs": len(history),
        "processes": parallel.num_processes(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "compiled": history.compiled,
        "compile_seconds": round(history.compile_seconds, 2),
        "seconds": round(sum(history.seconds), 2),
        "train_objective": history.elbo[-1],
        "test_soft_objective": result.objective + result.relaxation_gap,
        **{name: found[own] for own, name in (FIGURES | COUNTS).items()},
        **{name: found[name] for name in LISTS},
    }
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in metrics.items()}


def read_run(directory, parse, with_defaults):
    """Return settings and metrics of a finished run.

    Args:
        parse: parser of the command line.
        with_defaults: `with_defaults(args, dataset)` fills in the defaults that depend on the data set.

    Raises:
        FileNotFoundError: an unfinished run.
        ValueError: a file that no run can have written, or files of different runs.
    """
    config, metrics = (directory / name for name in ("config.json", "metrics.json"))
    missing = [file.name for file in (config, directory / "model", metrics) if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{directory} holds no finished run of mnist_vsc.py: {', '.join(missing)} not there; "
            f"run examples/mnist_vsc.py --output {directory}, with --resume if it was interrupted"
        )
    args = read_settings(config, parse)
    return read_metrics(metrics, args, config, with_defaults)


def read_settings(file, parse):
    """Return the settings of a run; raise `ValueError` if no command line gives them."""
    config = EARLIER | read_json(file)
    least, most = (settings(parse([]), free_to_change(lr_decay)) for lr_decay in (False, True))
    check_known(file, config, most)
    check_entries(file, config, dict.fromkeys(least, lambda value: True))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args = parse([word for name, value in config.items() for word in command_line(name, value)])
    except SystemExit as error:
        reason = complaint.getvalue().partition("error: ")[2].strip()
        reason = shortened(re.sub("--([a-z-]+)", lambda flag: flag[1].replace("-", "_"), reason), 300)
        raise ValueError(f"{file} is damaged: {reason}; repeat the run") from error
    for name, value in config.items():
        if vars(args)[name] != value:
            raise ValueError(f"{file} is damaged: {name} cannot be {shown(value)}; repeat the run")
    if args.lr_decay != ("epochs" in config):
        raise ValueError(f"{file} is damaged: it has epochs if and only if lr_decay is true; repeat the run")
    return args


def command_line(name, value):
    """Return the words that set the option `name` to `value`."""
    flag = "--" + name.replace("_", "-")
    if value is None or isinstance(value, bool):
        return [flag] if value else []
    is_list = name in ("hidden", "hyperprior", "warmup") and numbers(value)
    return [flag, *map(str, value)] if is_list else [f"{flag}={value}"]


def read_metrics(file, args, config, with_defaults):
    """Return the settings with the defaults of the data set, and the metrics; they must agree with `config`."""
    earlier = {name: value for name, value in settings_of(args).items() if name in EARLIER}
    metrics, known = earlier | read_json(file), {**KINDS, **dict.fromkeys(SETTINGS, lambda value: True)}
    check_known(file, metrics, known)
    check_entries(file, metrics, known)
    is_auto = args.dataset == "auto" and metrics["dataset"] in ("mnist", "digits")
    dataset = metrics["dataset"] if is_auto else args.dataset
    args = with_defaults(args, dataset)
    args.dataset = dataset
    own = {"auto": DATASETS[dataset].binarize} if dataset in DATASETS else {}
    binarize = {"none": None, **own}.get(args.binarize, args.binarize)
    for name, value in {"dataset": dataset, **settings_of(args), "binarize": binarize}.items():
        if metrics[name] != value:
            raise ValueError(
                f"{file} is of a run with {name}={shown(metrics[name])}, and {config} of one with {shown(value)}; one "
                "of the two has been changed: repeat the run"
            )
    if len(metrics["usage"]) != args.latent_dim:
        raise ValueError(f"{file} is damaged: usage must have {args.latent_dim} numbers; repeat the run")
    return args, metrics
