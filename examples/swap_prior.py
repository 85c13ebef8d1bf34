"""Compare systems, from the VAE to VSC and sparse autoencoders, trained on the same data for the same number of steps.

    python examples/swap_prior.py

prints one table and writes to --output: table.md, table.csv, reconstructions.png (a row for each system), config.json,
and for each system, as soon as it is trained, metrics.json and checkpoint.pt in a folder of its name. With --resume an
interrupted run continues, and a finished one takes further systems.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable

import torch
from common.data import DATASETS, load_data
from common.files import (
    check_entries,
    markdown,
    number,
    number_or_none,
    read_json,
    truth,
    write_csv,
    write_figure,
    write_json,
    write_text,
)
from common.options import run_options, whole
from common.outputs import check_output, resumable, settings
from common.running import run
from tqdm.auto import tqdm

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro._arguments import choice
from vsc_pyro._devices import resolve_device
from vsc_pyro.training.schedules import slab_warmup

EPOCHS = {"digits": 100}  # of 8 steps each; MNIST, with 300 steps an epoch, gets 10
# Settings that may differ between a run and its resumption. Epochs may not: all systems train for the same number.
FREE_TO_CHANGE = ("systems", "list", "device", "output", "data_root", "resume", "overwrite", "quiet")


@dataclasses.dataclass(frozen=True)
class Task:
    """The settings that all systems share."""

    shape: tuple[int, ...]
    latent_dim: int
    hidden: tuple[int, ...]
    inclusion: float
    num_data: int

    def encoder(self, family, **options):
        return family(self.shape, self.latent_dim, self.hidden, **options)

    def decoder(self, activation="relu"):
        return vsc.BernoulliDecoder(self.latent_dim, self.shape, self.hidden[::-1], activation)


def dense(family, prior, beta=1.0, decoder_activation="relu", **options):
    def build(task):
        encoder = task.encoder(family, **options)
        return vsc.VAE(encoder, task.decoder(decoder_activation), prior(task.latent_dim), beta)

    return build


def spike_slab(slab="normal", thresholded=False, **learned):
    def build(task):
        prior = vsc.SpikeSlabPrior(task.latent_dim, task.inclusion, slab=slab, **learned)
        if thresholded:
            encoder = task.encoder(vsc.ThresholdEncoder, base=slab)
        else:
            encoder = task.encoder(vsc.SpikeSlabEncoder, slab=slab)
        return vsc.VAE(encoder, task.decoder(), prior)

    return build


def pseudo_input(task):
    encoder = task.encoder(vsc.SpikeSlabEncoder)
    return vsc.VAE(encoder, task.decoder(), vsc.PseudoInputPrior(encoder))


def variational_sparse_coding(task, **published):
    return vsc.VSC(task.shape, task.latent_dim, task.inclusion, hidden=task.hidden, decoder=task.decoder(), **published)


def vsc_as_published(task):
    return variational_sparse_coding(
        task, gate="shifted-sigmoid", assignment="paper", sparsity_weight=1 / task.num_data
    )


@dataclasses.dataclass(frozen=True)
class System:
    """A function that builds a model for a `Task`, and whether its slab is warmed up."""

    about: str
    build: Callable
    warmup: bool = False


SYSTEMS = {
    "vae": System("Normal posterior and prior", dense(vsc.NormalEncoder, vsc.NormalPrior)),
    "beta-vae": System(
        "Normal posterior and prior, KL weighted by 4", dense(vsc.NormalEncoder, vsc.NormalPrior, beta=4.0)
    ),
    "normal-laplace": System("Normal posterior, Laplace prior", dense(vsc.NormalEncoder, vsc.LaplacePrior)),
    "laplace": System("Laplace posterior and prior", dense(vsc.LaplaceEncoder, vsc.LaplacePrior)),
    # A Cauchy code has no mean: its expected loss is finite only if the decoder saturates.
    "cauchy": System(
        "Cauchy posterior and prior, tanh decoder",
        dense(vsc.CauchyEncoder, vsc.CauchyPrior, decoder_activation="tanh"),
    ),
    "normal-mixture": System(
        "Normal posterior, a narrow and a wide Normal as prior", dense(vsc.NormalEncoder, vsc.NormalMixturePrior)
    ),
    "spike-slab": System("spike-and-slab posterior and prior, inclusion fixed", spike_slab()),
    "spike-slab-learned": System("spike-and-slab, inclusion learned for each latent", spike_slab(learn_inclusion=True)),
    "spike-slab-hyperprior": System(
        "spike-and-slab, inclusion of each latent with a Beta(1, 1) prior and a Beta posterior",
        spike_slab(learn_inclusion=True, hyperprior=(1.0, 1.0)),
    ),
    "spike-slab-laplace": System("spike-and-slab with Laplace slabs, inclusion fixed", spike_slab("laplace")),
    "learned-threshold": System(
        "spike-and-slab by a learned soft threshold of a Laplace draw, Laplace slabs, inclusion fixed",
        spike_slab("laplace", thresholded=True),
    ),
    "pseudo-input": System("spike-and-slab posterior, pseudo-input prior", pseudo_input),
    "vsc": System(
        "variational sparse coding: pseudo-input prior, slab warm-up, sparsity term of weight 1",
        variational_sparse_coding,
        warmup=True,
    ),
    "vsc-published": System(
        "VSC as published: soft shifted-sigmoid spikes, free assignment (not a bound), sparsity term of weight 1/N",
        vsc_as_published,
        warmup=True,
    ),
    "autoencoder": System("point codes, no prior", dense(vsc.DeltaEncoder, vsc.FlatPrior)),
    "denoising": System(
        "point codes, no prior, a quarter of the pixels set to zero in training",
        dense(vsc.DeltaEncoder, vsc.FlatPrior, corruption=0.25),
    ),
    # With an L1 penalty of weight 1 all codes of the digits collapse to zero.
    "sparse-autoencoder": System(
        "rectified point codes, L1 penalty of weight 0.2",
        dense(vsc.DeltaEncoder, functools.partial(vsc.LaplacePrior, scale=5.0), rectify=True),
    ),
}
LAST = "reconstructions.png"
# The entries of a metrics.json that the table needs.
KINDS = {
    **dict.fromkeys(("elbo", "iwae", "objective", "relaxation_gap", "reconstruction", "kl"), number_or_none),
    **dict.fromkeys(("expected_l0", "hoyer", "active_units", "used_latents", "probe_accuracy"), number_or_none),
    **dict.fromkeys(("collapsed", "probe_labels", "epochs", "seconds"), number),
    "kl_is_exact": truth,
}
FILES = (
    *("config.json", "table.csv", "table.md", LAST),
    *(f"{name}/{file}" for name in SYSTEMS for file in ("checkpoint.pt", "metrics.json")),
)


def known_systems(text):
    try:
        return [name for name in text.split(",") if choice("system", name, SYSTEMS)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse(argv):
    parser = run_options(__doc__, "runs/swap_prior", "10, and 100 on the small digits", DATASETS)
    add = parser.add_argument
    add("--systems", type=known_systems, default=list(SYSTEMS), metavar="A,B,...", help="only these; default: all")
    add("--list", action="store_true", help="print the names of all systems, and train none")
    add("--probe-labels", type=whole, default=5000, help="labelled data of the probe, at most all training data")
    return parser.parse_args(argv)


def measure(model, history, train, test, args):
    """Return the content of metrics.json for a trained system; figures that it does not define are None."""
    result = vsc.evaluate(model, test, num_draws=args.iwae_draws, seed=args.seed, progress=not args.quiet)
    num_labels = min(args.probe_labels, len(train))
    probe = None
    if train.labels is not None:
        probe = vsc.linear_probe(model, train, test, num_labels=num_labels, seed=args.seed)
    return {
        **result.as_dict(),
        "collapsed": len(result.usage) - result.used_latents,
        "probe_accuracy": probe,
        "probe_labels": num_labels,
        "epochs": len(history),
        "seconds": round(sum(history.seconds), 2),
    }


def table_row(name, metrics):
    """Return the cells of one system by heading; a cell without a figure is empty."""

    def number(key, digits=2, sign=1):
        return "" if metrics[key] is None else f"{sign * metrics[key]:.{digits}f}"

    exact = "analytic" if metrics["kl_is_exact"] else "sampled"
    return {
        "system": name,
        "-ELBO": number("elbo", sign=-1),
        "-IW bound": number("iwae", sign=-1),
        "-objective": number("objective", sign=-1),
        "relaxation gap": number("relaxation_gap"),
        "-reconstruction": number("reconstruction", sign=-1),
        "KL": number("kl"),
        "KL is": "" if metrics["kl"] is None else exact,
        "E[L0]": number("expected_l0"),
        "Hoyer": number("hoyer", 3),
        "active units": number("active_units", 0),
        "used": number("used_latents", 0),
        "collapsed": number("collapsed", 0),
        "probe accuracy": number("probe_accuracy", 4),
        "seconds": number("seconds", 1),
    }


def notes(results, train, test, args):
    """Yield the notes below the table; `results` has the metrics of each system."""
    metrics = next(iter(results.values()))
    budget = f"{metrics['epochs']} x {len(train)} training data in batches of {args.batch_size}, Adam {args.lr:g}"
    network = f"hidden {'-'.join(map(str, args.hidden))}, {args.latent_dim} latents, inclusion {args.inclusion:g}"
    yield (
        f"{train.name}, binarisation {train.binarize or 'none'}; {budget}; seed {args.seed}; {network}. Figures are "
        f"means over {len(test)} test data at beta = 1 with hard spikes; log-probabilities are in nats per datum. "
        f"IW bound: importance-weighted, {args.iwae_draws} draws."
    )
    yield (
        "used: latents that are on for at least one datum; collapsed: all others. Dense codes use all latents; for "
        "them, see the active units. seconds: of training."
    )
    if any(m["elbo"] is None for m in results.values()):
        yield (
            "Codes that are points have no density, hence no ELBO, IW bound or KL (-). Their objective is "
            "log p(x|z) + log p(z), which cannot be compared with a bound."
        )
    if any(m["elbo"] not in (None, m["objective"]) for m in results.values()):
        yield (
            "If -objective differs from -ELBO, the objective does not bound the evidence; the ELBO is then that of "
            "the mixture prior itself."
        )
    if train.labels is None:
        yield "No probe accuracy (-): these data have no labels."
    else:
        clipped = f", all there are ({args.probe_labels} asked for)" if args.probe_labels > len(train) else ""
        yield (
            "probe: logistic regression on standardised posterior means (for Cauchy, locations) with "
            f"{metrics['probe_labels']} labels{clipped}; accuracy on the test data."
        )


def write_results(args, models, results, train, test):
    """Write tables and figure, and return the table as Markdown."""
    rows = [table_row(name, metrics) for name, metrics in results.items()]
    legend = "\n".join(f"- {name}: {SYSTEMS[name].about}" for name in results)
    text = "\n\n".join([markdown(rows), *notes(results, train, test, args), legend]) + "\n"
    write_text(args.output / "table.md", text)
    write_csv(args.output / "table.csv", rows)
    labels = {f"{row['system']}\n{row['-ELBO'] or 'no ELBO'}": models[row["system"]] for row in rows}
    figure = plots.comparison(labels, test, seed=args.seed)
    figure.suptitle(f"Reconstructions of {test.name}, hard spikes; beside each row the system's -ELBO", fontsize=10)
    write_figure(args.output / LAST, figure, dpi=130)
    return text


def build_all(args, names, train):
    """Return a model for each system in `names`, after a check that it fits the data."""
    task = Task(tuple(train.images.shape[1:]), args.latent_dim, tuple(args.hidden), args.inclusion, len(train))
    models = {}
    for name in names:
        torch.manual_seed(args.seed)
        models[name] = SYSTEMS[name].build(task)
        models[name].check_data(train.images)
    return models


def train_system(name, model, train, epochs, device, args):
    """Return the history; for a system that is already trained, `fit` only reads the checkpoint."""
    warmup = slab_warmup(epochs * -(-len(train) // args.batch_size))
    try:
        return vsc.fit(
            model,
            train,
            epochs=epochs,
            batch_size=args.batch_size,
            lr=args.lr,
            schedules=warmup if SYSTEMS[name].warmup else None,
            device=device,
            seed=args.seed,
            checkpoint=args.output / name / "checkpoint.pt",
            resume=args.resume,
            progress=not args.quiet,
        )
    except vsc.NonFiniteLossError as error:
        raise SystemExit(f"{name}: {error}; or go on with --resume and --systems without {name}") from error


def main(argv=None):
    args = parse(argv)
    if args.list:
        print("\n".join(f"{name:<22} {system.about}" for name, system in SYSTEMS.items()))
        return
    check_output(args, FILES, LAST, FREE_TO_CHANGE)
    train, test = load_data(args)
    device = resolve_device(args.device)
    epochs = args.epochs or EPOCHS.get(train.name, 10)
    # The table of a resumed run includes the systems that were trained before.
    there = {name for name in SYSTEMS if args.resume and (args.output / name / "metrics.json").exists()}
    models = build_all(args, [name for name in SYSTEMS if name in there.union(args.systems)], train)
    config = settings(args, FREE_TO_CHANGE) | {"systems": list(models)}
    with resumable(args, FILES, config, [f"{name}/checkpoint.pt" for name in SYSTEMS]):
        results = {}
        bar = tqdm(models, unit="system", disable=args.quiet)
        for name in bar:
            bar.set_description(name)
            file = args.output / name / "metrics.json"
            history = train_system(name, models[name], train, epochs, device, args)
            if name not in there:
                write_json(file, measure(models[name], history, train, test, args))
            results[name] = read_json(file)
            check_entries(file, results[name], KINDS)
        text = write_results(args, models, results, train, test)
    print(text, f"results in {args.output}", sep="\n")


if __name__ == "__main__":
    run(main)
