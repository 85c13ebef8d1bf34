"""Command-line options of mnist_vsc.py for the model and its training."""

import torch

from common.options import natural, positive, whole
from vsc_pyro import Ramp
from vsc_pyro.distributions import POSITIVE_SLABS, SLABS
from vsc_pyro.gates import GATES
from vsc_pyro.models.networks import ACTIVATIONS
from vsc_pyro.objectives import OBJECTIVES
from vsc_pyro.training.schedules import slab_warmup

POSTERIOR_SLABS = [*SLABS, *(name for name, slab in POSITIVE_SLABS.items() if slab.has_loc)]
COMPILE = {"auto": "auto", "yes": True, "no": False}
# For each --prior, the options that not every prior takes.
SPIKES = ("gate", "inclusion", "slab", "warmup")
OPTIONS_OF = {
    "spike-slab": (*SPIKES, "learn_inclusion", "hyperprior", "learn_slab"),
    "pseudo-input": (*SPIKES, "num_pseudo_inputs", "assignment", "sparsity_weight"),
    "normal": (),
    "laplace": (),
    "cauchy": (),
    "normal-mixture": (),
}
# Settings that may differ between a run and its resumption. All others decide what the run computes.
FREE_TO_CHANGE = ("epochs", "device", "compile", "output", "data_root", "resume", "overwrite", "quiet", "iwae_draws")


def free_to_change(lr_decay):
    """Return the settings that a resumption may change: not the epochs under --lr-decay, whose rates depend on them."""
    return [name for name in FREE_TO_CHANGE if not (lr_decay and name == "epochs")]


def add_prior(parser, learn_inclusion):
    """Add the options of the prior; `learn_inclusion` describes the default of that option."""
    add = parser.add_argument
    add("--prior", default="spike-slab", choices=OPTIONS_OF)
    add(
        "--learn-inclusion",
        nargs="?",
        const="per-latent",
        default="auto",
        choices=["auto", "fixed", "per-latent", "global"],
        help="learn the inclusion, starting at --inclusion: one for each latent (also without a value), or one for all "
        f"latents; auto: {learn_inclusion}",
    )
    add("--hyperprior", type=positive, nargs=2, metavar=("A", "B"), help="Beta(A, B) prior of a learned inclusion")
    add("--slab", default="normal", choices=POSTERIOR_SLABS, help="family of the slab, in posterior and prior")
    add("--learn-slab", action="store_true", help="learn location and scale of each latent's slab in the prior")
    add("--num-pseudo-inputs", type=whole, default=20)
    add(
        "--assignment",
        default="bound",
        choices=["bound", "optimal", "paper"],
        help="of data to pseudo-inputs: by a classifier, or the best one; with paper, the objective is no bound",
    )
    add("--sparsity-weight", type=float, default=0.0, help="weight of the pseudo-inputs' aggregate sparsity term")


def add_training(parser):
    """Add the options of gate, networks, objective and learning rate."""
    add = parser.add_argument
    add(
        "--warmup",
        type=natural,
        nargs="*",
        metavar="STEPS",
        help="slab warm-up: steps at the standard slab, and steps of the ramp; without numbers, 15 and 5 of 70 parts "
        "of the run, as in the paper",
    )
    add("--encoder-activation", default="silu", choices=ACTIVATIONS)
    add("--decoder-activation", choices=ACTIVATIONS, help="default: relu; tanh for Cauchy codes, which have no mean")
    add("--gate", default="concrete", choices=GATES, help="gradient estimator of the spikes")
    # The exact objective needs a linear decoder of real data.
    add("--objective", default="analytic", choices=[name for name in OBJECTIVES if name != "exact"])
    add("--num-draws", type=whole, help="draws of each code in a step; default: the fewest for gate and objective")
    add("--compile", default="auto", choices=COMPILE, help="the training step; auto: in runs of 5,000 steps or more")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--lr-drop", type=whole, metavar="EPOCH", help="divide the learning rate by ten at this epoch")
    rates.add_argument(
        "--lr-decay", action="store_true", help="let the learning rate fall to zero over the second half of the run"
    )
    rates.add_argument(
        "--cooldown",
        type=float,
        metavar="SHARE",
        help="share of the epochs, the last ones, in which the learning rate falls; default: .25, or that of the "
        "resumed run",
    )
    add("--validation", type=float, metavar="SHARE", help="share of the training data to validate on after each epoch")
    add("--patience", type=whole, metavar="EPOCHS", help="stop after so many epochs without a better validation bound")
    add("--beta", type=positive, default=1.0, help="weight of the KL divergence")


def checked(parser, args):
    """Return `args` with the default decoder activation, after an error if options contradict each other."""
    for option in sorted({option for options in OPTIONS_OF.values() for option in options}):
        takers = [prior for prior, options in OPTIONS_OF.items() if option in options]
        if args.prior not in takers and getattr(args, option) != parser.get_default(option):
            flag = "--" + option.replace("_", "-")
            parser.error(f"{flag} goes with --prior {' or '.join(takers)}, got --prior {args.prior}")
    if args.prior == "pseudo-input" and not args.sparsity_weight and args.inclusion != parser.get_default("inclusion"):
        parser.error("--inclusion goes with --prior pseudo-input only as the target of --sparsity-weight, which is 0")
    if args.patience is not None and args.validation is None:
        parser.error("--patience counts epochs without a better validation bound; pass --validation as well")
    if args.warmup is not None and len(args.warmup) not in (0, 2):
        parser.error(f"--warmup takes no number or two, steps at the standard slab and of the ramp, got {args.warmup}")
    if args.decoder_activation is None:
        args.decoder_activation = "tanh" if "cauchy" in (args.prior, args.slab) else "relu"
    return args


def schedules(args, num_data):
    """Return the schedules of `vsc_pyro.fit` that --warmup asks for."""
    if args.warmup is None:
        return {}
    if args.warmup:
        return {"encoder.slab_weight": Ramp(0, 1, *args.warmup)}
    return slab_warmup(args.epochs * -(-num_data // args.batch_size))


def lr_schedule(args):
    """Return the schedule that --lr-decay or --lr-drop asks for, or None."""
    if args.lr_decay:
        return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: min(1, 2 - 2 * epoch / args.epochs)
        )
    if args.lr_drop is None:
        return None
    return lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [args.lr_drop])
