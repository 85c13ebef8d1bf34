"""Train a sparse variational autoencoder on handwritten digits, and look at what it learns.

    python examples/mnist_vsc.py

takes MNIST from --data-root, $VSC_PYRO_DATA or the user's cache, or downloads it. Without MNIST it trains on the small
digits that scikit-learn bundles. On those, --latent-dim, --binarize, --learn-inclusion and --epochs have other
defaults.

It prints a table and writes to --output: metrics.json, history.csv, checkpoint.pt, config.json, the figures, and the
folder model, from which vsc.load("runs/mnist_vsc/model") returns the trained model.
`torchrun --nproc-per-node=2 examples/mnist_vsc.py` trains with two processes.
"""

import time

import torch
from common.data import DATASETS, described_default, load_data, with_defaults
from common.files import write_figure, write_json
from common.finished import metrics_of, read_run
from common.model_options import COMPILE, add_prior, add_training, checked, free_to_change, lr_schedule, schedules
from common.options import run_options
from common.outputs import check_output, resumable, settings
from common.running import run

import vsc_pyro as vsc
from vsc_pyro import parallel, plots
from vsc_pyro._devices import resolve_device
from vsc_pyro.gates import Gate
from vsc_pyro.objectives import get_objective

FIGURES = ("reconstructions", "prior_samples", "traversals", "inclusion_map", "training_curve")
FILES = (
    *("config.json", "checkpoint.pt", "history.csv", "metrics.json", "pseudo_inputs.png"),
    *("model/config.json", "model/weights.pt", "model/README.md"),
    *(f"{name}.png" for name in FIGURES),
)
DERIVED = ("inspection/report.html", "explore.html")  # written by inspect_posterior.py and explore.py


def parse(argv):
    binarize = "the choice of the data set, and static on the small digits"
    latent_dim, epochs = described_default("latent_dim"), described_default("epochs")
    parser = run_options(__doc__, "runs/mnist_vsc", epochs, DATASETS, latent_dim, binarize)
    parser.set_defaults(latent_dim=None)
    add_prior(parser, described_default("learn_inclusion"))
    add_training(parser)
    return checked(parser, parser.parse_args(argv))


# The model: an encoder and a prior for each --prior, and a decoder


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


PRIORS = {  # by the names in common/model_options.py
    "spike-slab": spike_slab,
    "pseudo-input": pseudo_input,
    "normal": dense(vsc.NormalEncoder, vsc.NormalPrior),
    "laplace": dense(vsc.LaplaceEncoder, vsc.LaplacePrior),
    "cauchy": dense(vsc.CauchyEncoder, vsc.CauchyPrior),
    "normal-mixture": dense(vsc.NormalEncoder, vsc.NormalMixturePrior),
}


def build_model(args, shape):
    encoder, prior = PRIORS[args.prior](args, shape)
    decoder = vsc.BernoulliDecoder(args.latent_dim, shape, args.hidden[::-1], args.decoder_activation)
    return vsc.VAE(encoder, decoder, prior, beta=args.beta)


def load_run(directory, data_root=None):
    """Return the trained model of a finished run, its settings and metrics, and its training and test data."""
    args, metrics = read_run(directory, parse, with_defaults)
    args.data_root = data_root
    return vsc.load(directory / "model"), args, metrics, *load_data(args)


# Training and evaluation


def main(argv=None):
    args = parse(argv)
    with parallel.joined(args.device) as device:
        return train_and_measure(args, resolve_device(device))


def train_and_measure(args, device):
    start = time.perf_counter()
    free = free_to_change(args.lr_decay)
    check_output(args, FILES, "metrics.json", free)
    with parallel.first_process_first():  # one process downloads
        train_data, test_data = load_data(args, with_defaults)
    config, args = settings(args, free), with_defaults(args, train_data.name)
    torch.manual_seed(args.seed)
    model = build_model(args, tuple(train_data.images.shape[1:]))
    check(args, model, train_data)
    parallel.wait_for_all()  # any process may have refused
    with resumable(args, FILES, config, derived=DERIVED):
        history = train(args, model, train_data, device)
        if parallel.rank() > 0:
            return None
        metrics = measure(args, model, test_data, history, device)
        metrics["seconds_this_run"] = round(time.perf_counter() - start, 2)
        write_json(args.output / "metrics.json", metrics)
    return metrics


def check(args, model, data):
    """Raise `ValueError` before anything is written, if the model cannot be trained as the options say."""
    model.check_data(data.images)
    get_objective(args.objective, args.num_draws, getattr(model.encoder, "gate", Gate()).draws_at_once)
    if not args.resume:
        model.prepare(data.images)


def train(args, model, data, device):
    return vsc.fit(
        model,
        data,
        objective=args.objective,
        num_draws=args.num_draws,
        compile=COMPILE[args.compile],
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        cooldown=args.cooldown,
        lr_schedule=lr_schedule(args),
        schedules=schedules(args, len(data)),
        validation=args.validation,
        patience=args.patience,
        device=device,
        seed=args.seed,
        checkpoint=args.output / "checkpoint.pt",
        resume=args.resume,
        progress=not args.quiet,
    )


def measure(args, model, data, history, device):
    """Evaluate on test data, write history.csv, the figures and the model, print the table, and return the metrics."""
    result = vsc.evaluate(model, data, num_draws=args.iwae_draws, seed=args.seed, progress=not args.quiet)
    history.to_csv(args.output / "history.csv")
    figures = [name for name in FIGURES if name != "inclusion_map" or data.labels is not None]
    for name in figures + ["pseudo_inputs"] * hasattr(model.prior, "pseudo_inputs"):
        plot = getattr(plots, name)
        figure = plot(history) if name == "training_curve" else plot(model, data, seed=args.seed)
        write_figure(args.output / f"{name}.png", figure, dpi=130)
    model.save(args.output / "model", data=data, evaluation=result, overwrite=True)
    compiling = f", {history.compile_seconds:.0f} of them compiling" if history.compiled else ""
    print(f"{data.name}, test: {result}")
    print(f"trained {sum(history.seconds):.0f} s{compiling} on {device}; results in {args.output}")
    return metrics_of(args, history, result, data.name, device)


if __name__ == "__main__":
    run(main)
