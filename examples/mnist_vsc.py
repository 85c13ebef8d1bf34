"""Train a sparse variational autoencoder on handwritten digits and look at what it learnt.

    python examples/mnist_vsc.py

takes MNIST from --data-root, $VSC_PYRO_DATA or the user's cache, tries to download it, and falls back on the small
digits that scikit-learn bundles. On those, few and small as they are, what is not said is other than on MNIST: fewer
latents, pixels binarised once for all, inclusion learned. --latent-dim, --binarize and --learn-inclusion say otherwise.

It prints a table and leaves in --output: metrics.json, history.csv, checkpoint.pt, config.json and the figures.
`torchrun --nproc-per-node=2 examples/mnist_vsc.py` trains by two processes.
"""

import argparse
import contextlib
import math
import sys
import time

import torch
from common.finished import read_metrics, read_settings
from common.options import natural, positive, run_options, whole
from common.outputs import check_output, in_place_of, settings, write_json
from common.running import run

import vsc_pyro as vsc
from vsc_pyro import load_checkpoint, load_weights, parallel, plots
from vsc_pyro._files import replacing
from vsc_pyro.distributions import SLABS
from vsc_pyro.gates import GATES, Gate
from vsc_pyro.models.networks import ACTIVATIONS
from vsc_pyro.objectives import OBJECTIVES, get_objective
from vsc_pyro.training.checkpoints import shown
from vsc_pyro.training.devices import resolve_device
from vsc_pyro.training.schedules import slab_warmup

COMPILE = {"auto": "auto", "yes": True, "no": False}
# Settings where nobody says, and those that differ on some data. An epoch of the digits has 8 steps, of MNIST 300.
UNSAID = {"latent_dim": 50, "binarize": "auto", "learn_inclusion": "fixed", "epochs": 50}
UNSAID_ON = {"digits": {"latent_dim": 20, "binarize": "static", "learn_inclusion": "per-latent", "epochs": 500}}
IN_WORDS = {
    "latent_dim": "{} latents",
    "binarize": "{} binarisation",
    "learn_inclusion": "inclusion learned {}",
    "epochs": "{} epochs",
}
DATASETS = ("mnist", "fashion-mnist", "digits", "smiley", "cifar10-grey")  # one channel, pixels from 0 to 1
FIGURES = ("reconstructions", "prior_samples", "traversals", "inclusion_map", "training_curve")
FILES = (
    *("config.json", "checkpoint.pt", "history.csv", "metrics.json", "pseudo_inputs.png"),
    *(f"{name}.png" for name in FIGURES),
)
DERIVED = ("inspection/report.html", "explore.html")  # what other examples leave beside
# Settings that may differ between a run and its resumption; every other decides what the run computes.
FREE_TO_CHANGE = ("epochs", "device", "compile", "output", "data_root", "resume", "overwrite", "quiet", "iwae_draws")


def spike_slab_encoder(args, shape):
    return vsc.SpikeSlabEncoder(shape, args.latent_dim, args.hidden, args.encoder_activation, args.gate, slab=args.slab)


def spike_slab(args, shape):
    learned = args.learn_inclusion != "fixed" and args.learn_inclusion
    prior = vsc.SpikeSlabPrior(args.latent_dim, args.inclusion, learned, args.hyperprior, args.slab, args.learn_slab)
    return spike_slab_encoder(args, shape), prior


def pseudo_input(args, shape):
    encoder = spike_slab_encoder(args, shape)
    inclusion = args.inclusion if args.sparsity_weight else None
    prior = vsc.PseudoInputPrior(encoder, args.num_pseudo_inputs, inclusion, args.sparsity_weight, args.assignment)
    return encoder, prior


def dense(encoder, prior):
    def build(args, shape):
        return encoder(shape, args.latent_dim, args.hidden, args.encoder_activation), prior(args.latent_dim)

    return build


# Name: how to build encoder and prior, and the options that only some priors take.
SPIKES = ("gate", "inclusion", "slab", "warmup")
PRIORS = {
    "spike-slab": (spike_slab, (*SPIKES, "learn_inclusion", "hyperprior", "learn_slab")),
    "pseudo-input": (pseudo_input, (*SPIKES, "num_pseudo_inputs", "assignment", "sparsity_weight")),
    "normal": (dense(vsc.NormalEncoder, vsc.NormalPrior), ()),
    "laplace": (dense(vsc.LaplaceEncoder, vsc.LaplacePrior), ()),
    "cauchy": (dense(vsc.CauchyEncoder, vsc.CauchyPrior), ()),
    "normal-mixture": (dense(vsc.NormalEncoder, vsc.NormalMixturePrior), ()),
}


def by_default(name):
    """The words of --help for a setting that differs between data sets."""
    return f"{UNSAID[name]}, and {UNSAID_ON['digits'][name]} on the small digits"


def parse(argv):
    own = "the data set's own, and static on the small digits"
    parser = run_options(__doc__, "runs/mnist_vsc", by_default("epochs"), DATASETS, by_default("latent_dim"), own)
    parser.set_defaults(latent_dim=None)
    add = parser.add_argument
    add("--prior", default="spike-slab", choices=PRIORS)
    add(
        "--learn-inclusion",
        nargs="?",
        const="per-latent",
        default="auto",
        choices=["auto", "fixed", "per-latent", "global"],
        help="learn that probability, from there, for every latent (without a word behind) or one for all; "
        f"auto: {by_default('learn_inclusion')}",
    )
    add("--hyperprior", type=positive, nargs=2, metavar=("A", "B"), help="Beta(A, B) of a learned inclusion")
    add("--slab", default="normal", choices=SLABS, help="family of the slab, posterior and prior")
    add("--learn-slab", action="store_true", help="learn location and scale of every latent's slab in the prior")
    add("--num-pseudo-inputs", type=whole, default=20)
    add("--assignment", default="bound", choices=["bound", "paper"], help="of data to pseudo-inputs; paper: no bound")
    add("--sparsity-weight", type=float, default=0.0, help="of the pseudo-inputs' aggregate sparsity term")
    add(
        "--warmup",
        type=natural,
        nargs="*",
        metavar="STEPS",
        help="slab warm-up: steps at the standard slab and of the ramp; without numbers the paper's 15 and 5 of 70",
    )
    add("--encoder-activation", default="silu", choices=ACTIVATIONS)
    add("--decoder-activation", choices=ACTIVATIONS, help="default: relu, and tanh where a Cauchy has no mean")
    add("--gate", default="concrete", choices=GATES, help="how a gradient passes a spike")
    sampled = [name for name in OBJECTIVES if name != "exact"]  # which is for linear decoders of real data
    add("--objective", default="analytic", choices=sampled)
    add("--num-draws", type=whole, help="of each code in a step; default: as few as gate and objective take")
    add("--compile", default="auto", choices=COMPILE, help="the training step; auto: in runs of 10,000 steps or more")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--lr-drop", type=whole, metavar="EPOCH", help="divide the learning rate by ten after so many")
    rates.add_argument(
        "--lr-decay", action="store_true", help="let the learning rate fall to zero over the second half of the run"
    )
    rates.add_argument(
        "--cooldown",
        type=float,
        metavar="SHARE",
        help="of the epochs, the last, in which the learning rate falls; default: .25, or what a resumed run has",
    )
    add("--beta", type=positive, default=1.0, help="weight of the KL divergence")
    args = parser.parse_args(argv)
    for option in sorted({option for _, options in PRIORS.values() for option in options}):
        takers = [name for name, (_, options) in PRIORS.items() if option in options]
        if args.prior not in takers and getattr(args, option) != parser.get_default(option):
            flag = "--" + option.replace("_", "-")
            parser.error(f"{flag} goes with --prior {' or '.join(takers)}, got --prior {args.prior}")
    if args.prior == "pseudo-input" and not args.sparsity_weight and args.inclusion != parser.get_default("inclusion"):
        parser.error("--inclusion goes with --prior pseudo-input only as the target of --sparsity-weight, which is 0")
    if args.warmup is not None and len(args.warmup) not in (0, 2):
        parser.error(f"--warmup takes no number or two, steps at the standard slab and of the ramp, got {args.warmup}")
    if args.decoder_activation is None:
        args.decoder_activation = "tanh" if "cauchy" in (args.prior, args.slab) else "relu"
    return args


def free_to_change(lr_decay):
    """A run under --lr-decay cannot be gone on with for longer: it would have had other rates all along."""
    return [name for name in FREE_TO_CHANGE if not (lr_decay and name == "epochs")]


def settled(args, dataset):
    """The settings `args` with what they leave open as it is on a data set."""
    given = UNSAID | UNSAID_ON.get(dataset, {})
    if "learn_inclusion" not in PRIORS[args.prior][1]:
        del given["learn_inclusion"]
    open_ones = {name: value for name, value in given.items() if getattr(args, name) in (None, "auto")}
    return argparse.Namespace(**(vars(args) | open_ones))


def load_data(args, settled=lambda args, dataset: args):
    """The data set that was asked for; for "auto", MNIST or else, after saying so, the digits.

    Settings may depend on which it is: `settled(args, dataset)` are those that it is loaded with.
    """
    if args.dataset != "auto":
        return load_as(settled(args, args.dataset), args.dataset)
    try:
        return load_as(settled(args, "mnist"), "mnist")
    except (FileNotFoundError, ImportError) as error:
        own = settled(args, "digits")
        words = [how.format(getattr(own, k)) for k, how in IN_WORDS.items() if vars(own).get(k) != vars(args).get(k)]
        instead = ", ".join(["instead", *words]).replace(",", ", with", 1)
        print(
            f"MNIST is not at hand, training on scikit-learn's bundled 8x8 digits {instead} ({error})", file=sys.stderr
        )
        return load_as(own, "digits")


def load_as(args, dataset):
    return vsc.datasets.load(dataset, args.data_root, None if args.binarize == "none" else args.binarize, args.seed)


def build_model(args, shape):
    build, _ = PRIORS[args.prior]
    encoder, prior = build(args, shape)
    decoder = vsc.BernoulliDecoder(args.latent_dim, shape, args.hidden[::-1], args.decoder_activation)
    return vsc.VAE(encoder, decoder, prior, beta=args.beta)


def load_run(directory, data_root=None):
    """The trained model of a finished run of this script, its settings and metrics, and its training and test data."""
    config, metrics, checkpoint = (directory / name for name in ("config.json", "metrics.json", "checkpoint.pt"))
    missing = [file.name for file in (config, checkpoint, metrics) if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory} holds no finished run of mnist_vsc.py: {', '.join(missing)} not there; "
            f"run examples/mnist_vsc.py --output {directory}, with --resume if it was interrupted"
        )
    args = read_settings(config, parse, free_to_change)
    needed = set(PRIORS[args.prior][1])
    if not args.sparsity_weight and args.prior == "pseudo-input":
        needed.discard("inclusion")
    found = read_metrics(metrics, args, config, needed, settled)
    state = load_checkpoint(checkpoint)
    if state.get("epoch") != found["epochs"]:
        raise ValueError(
            f"{directory} was measured after {found['epochs']} epochs and has since been trained to "
            f"{shown(state.get('epoch'))}; let mnist_vsc.py --resume finish it"
        )
    args = settled(args, found["dataset"])
    args.dataset, args.data_root = found["dataset"], data_root
    train, test = load_data(args)
    model = build_model(args, tuple(train.images.shape[1:]))
    try:
        load_weights(model, state, checkpoint)
    except ValueError as error:
        raise ValueError(f"{error}; {config} says dataset={args.dataset}, latent_dim={args.latent_dim}") from error
    return model, args, found, train, test


def warmup(args, num_steps):
    if args.warmup is None:
        return {}
    return {"encoder.slab_weight": vsc.Ramp(0, 1, *args.warmup)} if args.warmup else slab_warmup(num_steps)


def lr_schedule(args):
    if args.lr_decay:
        return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: min(1, 2 - 2 * epoch / args.epochs)
        )
    if args.lr_drop is None:
        return None
    return lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [args.lr_drop])


def main(argv=None):
    args = parse(argv)
    with parallel.joined(args.device) as device:
        return train_and_measure(args, resolve_device(device))


def train_and_measure(args, device):
    start = time.perf_counter()
    free = free_to_change(args.lr_decay)
    check_output(args, FILES, "metrics.json", free)
    with parallel.first_process_first():  # which downloads
        train, test = load_data(args, settled)
    asked, args = args, settled(args, train.name)
    torch.manual_seed(args.seed)
    model = build_model(args, tuple(train.images.shape[1:]))
    model.check_data(train.images)
    get_objective(args.objective, args.num_draws, getattr(model.encoder, "gate", Gate()).draws_at_once)
    if not args.resume:
        model.prepare(train.images)  # which may refuse the data: before anything is written
    parallel.wait_for_all()  # who might refuse as well
    is_first = parallel.rank() == 0
    with (
        in_place_of(args.output, FILES, ["checkpoint.pt"]) if is_first and args.overwrite else contextlib.nullcontext()
    ):
        if is_first:
            for file in (args.output / name for name in DERIVED if (args.output / name).exists()):
                print(f"{file} is of the run as it was; make it anew when this one is finished", file=sys.stderr)
            write_json(args.output / "config.json", settings(asked, free))
        parallel.wait_for_all()  # before anyone looks for a checkpoint
        try:
            history = trained(args, model, train, device)
            return measured(args, model, test, history, device, start) if is_first else None
        except KeyboardInterrupt:
            is_lost = args.overwrite and not (args.output / "checkpoint.pt").exists()
            raise KeyboardInterrupt(
                f"the run in {args.output} is as it was"
                if is_lost
                else f"pass --resume to go on with the run in {args.output}"
            ) from None


def trained(args, model, train, device):
    """The history of the run, of which `model` is left as it is at the end."""
    return vsc.fit(
        model,
        train,
        objective=args.objective,
        num_draws=args.num_draws,
        compile=COMPILE[args.compile],
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        cooldown=args.cooldown,
        lr_schedule=lr_schedule(args),
        schedules=warmup(args, args.epochs * -(-len(train) // args.batch_size)),
        device=device,
        seed=args.seed,
        checkpoint=args.output / "checkpoint.pt",
        resume=args.resume,
        progress=not args.quiet,
    )


def measured(args, model, test, history, device, start):
    """Metrics of a trained model, which are written with the figures and printed."""
    result = vsc.evaluate(model, test, num_draws=args.iwae_draws, seed=args.seed, progress=not args.quiet)
    history.to_csv(args.output / "history.csv")
    figures = [name for name in FIGURES if name != "inclusion_map" or test.labels is not None]
    for name in figures + ["pseudo_inputs"] * hasattr(model.prior, "pseudo_inputs"):
        function = getattr(plots, name)
        figure = function(history) if name == "training_curve" else function(model, test, seed=args.seed)
        with replacing(args.output / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=130)
    metrics = metrics_of(args, model, test, history, result, device)
    metrics["seconds_this_run"] = round(time.perf_counter() - start, 2)
    write_json(args.output / "metrics.json", metrics)
    compiling = f", {history.compile_seconds:.0f} of them compiling" if history.compiled else ""
    seconds = f"{sum(history.seconds):.0f} s{compiling}"
    print(f"{test.name}, test: {result}\ntrained {seconds} on {device}; results in {args.output}")
    return metrics


def metrics_of(args, model, test, history, result, device):
    encoder, prior = model.encoder, model.prior
    metrics = {
        "dataset": test.name,
        "binarize": test.binarize,
        "prior": args.prior,
        "latent_dim": args.latent_dim,
        "inclusion": getattr(prior, "inclusion", None),
        "learn_inclusion": args.learn_inclusion if hasattr(prior, "learn_inclusion") else None,
        "hyperprior": args.hyperprior,
        "slab": getattr(encoder, "slab", None),
        "learn_slab": getattr(prior, "learn_slab", None),
        "warmup": args.warmup,
        "num_pseudo_inputs": getattr(prior, "num_pseudo_inputs", None),
        "assignment": getattr(prior, "assignment", None),
        "sparsity_weight": getattr(prior, "sparsity_weight", None),
        "gate": args.gate if hasattr(encoder, "gate") else None,
        "hidden": args.hidden,
        "encoder_activation": args.encoder_activation,
        "decoder_activation": args.decoder_activation,
        "objective": args.objective,
        "num_draws": args.num_draws,
        "beta": args.beta,
        "epochs": len(history),
        "batch_size": args.batch_size,
        "processes": parallel.num_processes(),
        "lr": args.lr,
        "compiled": history.compiled,
        "lr_drop": args.lr_drop,
        "lr_decay": args.lr_decay,
        "cooldown": args.cooldown,
        "seed": args.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "compile_seconds": round(history.compile_seconds, 2),
        "seconds": round(sum(history.seconds), 2),
        "train_objective": history.elbo[-1],
        "test_elbo": result.elbo,
        "test_objective": result.objective,
        "test_reconstruction": result.reconstruction,
        "test_kl": result.kl,
        "test_iwae": result.iwae,
        "iwae_draws": result.num_draws,
        "relaxation_gap": result.relaxation_gap,
        "test_soft_objective": result.objective + result.relaxation_gap,
        "used_per_datum": result.used_per_datum,
        "informative_latents": result.informative_latents,
        "r2": result.r2,
        "hard_r2": result.hard_r2,
        "entropy_explained": result.entropy_explained,
        "hard_entropy_explained": result.hard_entropy_explained,
        "advice": list(result.advice),
        "expected_l0": result.expected_l0,
        "hard_l0": result.hard_l0,
        "hard_l0_odds": result.hard_l0_odds,
        "hoyer": result.hoyer,
        "active_units": result.active_units,
        "used_latents": result.used_latents,
        "usage": result.usage.tolist(),
        "information": result.information.tolist(),
        "num_test": result.num_data,
    }
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in metrics.items()}


if __name__ == "__main__":
    run(main)
