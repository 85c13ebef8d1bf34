"""Likelihoods of spike-and-slab models, by 5,000 draws with hard spikes, beside the dense VAE and published figures.

    python examples/studies/likelihoods.py --data-root FOLDER --jobs 2

trains, on MNIST (binarised dynamically, or the fixed binarisation of Salakhutdinov & Murray, 2008) and Fashion-MNIST,
a dense VAE, a model that learns how often each latent is on, and models with a prior of pseudo-inputs, without and with
the sparsity term of Tonolini et al. (2020), which holds the mean inclusion of pseudo-inputs near a target. A classifier
assigns data to pseudo-inputs, or ("optimal") the best assignment, in closed form. Networks are
those of Burda et al. (2016), two layers of 200 tanh units and 50 latents, and of Tomczak & Welling (2018), two gated
layers of 300 units and 40 latents. The fixed binarisation is read from FOLDER/more/binarized_mnist.npz, arrays train,
valid and test of 784 columns; without it those runs are skipped.

Training ends where the bound on held-out training images no longer improves, or when its rate has fallen to 0. Models
with spikes go on from the best epoch, with the unbiased gradient of DisARM in place of the relaxed gate. The model with
the best held-out bound is evaluated.
"""

import math
import zipfile

import numpy as np
import torch
from matplotlib.figure import Figure
from study import Study, fitted, main, markdown, run_main

import vsc_pyro as vsc
from vsc_pyro.datasets.torchvision_sets import default_root

SYSTEMS = ("vae", "learned", "pseudo-input", "pseudo-input-sparse", "optimal", "optimal-sparse")
NAMES = {
    "mnist": "MNIST, dynamic binarisation",
    "mnist-static": "MNIST, fixed binarisation",
    "fashion-mnist": "Fashion-MNIST, dynamic binarisation",
    "digits": "digits, dynamic binarisation",
}
NETWORKS = {
    "tanh": {"latent_dim": 50, "hidden": (200, 200), "lr": 2e-3},
    "gated": {"latent_dim": 40, "hidden": (300, 300), "lr": 1e-3},
}
QUICK = {"latent_dim": 6, "hidden": (12, 12), "lr": 5e-3}
# Negative log-likelihood by 5,000 draws; the first of a network is of a VAE with a normal prior, its dense control.
PUBLISHED = {
    ("mnist", "tanh"): {"VAE, Burda et al. (2016)": 86.76},
    ("mnist", "gated"): {"VAE, Norouzi et al. (2020)": 84.45, "VampPrior, Norouzi et al. (2020)": 82.43},
    ("fashion-mnist", "gated"): {"VAE, Norouzi et al. (2020)": 228.70, "VampPrior, Norouzi et al. (2020)": 227.35},
    ("mnist-static", None): {"VAE, pythae, its networks": 88.71, "VampPrior, pythae, its networks": 85.79},
}
COLUMNS = (
    *("network", "system", "NLL", "-ELBO", "KL", "E[L0]", "Hoyer", "ever on, active"),
    *("validation -ELBO", "epochs (best)", "warm-up", "kept", "target"),
)
MARKERS = {"tanh": "o", "gated": "s"}
LINES = {"tanh": "--", "gated": "-", None: ":"}
PLAN = [
    *(("mnist", network, system) for system in SYSTEMS[:4] for network in NETWORKS),
    *(("mnist", "gated", system) for system in ("optimal", "optimal-sparse")),
    *(("fashion-mnist", "gated", system) for system in ("vae", "learned", "pseudo-input", "optimal", "optimal-sparse")),
    *(("mnist-static", "tanh", system) for system in ("vae", "learned", "optimal")),
    *(("mnist-static", "gated", system) for system in ("vae", "learned", "optimal")),
    *(("fashion-mnist", "tanh", system) for system in ("vae", "learned", "optimal")),
]
# Without the sparsity term pseudo-inputs start at an inclusion of .5, which has the best bound of validation images in
# the study of unused latents.
_DENSE, _SPARSE = {"initial_inclusion": 0.5}, {"initial_inclusion": 0.25, "inclusion": 0.25}
OWN = {
    "pseudo-input": _DENSE,
    "pseudo-input-sparse": _SPARSE,
    "optimal": {**_DENSE, "assignment": "optimal"},
    "optimal-sparse": {**_SPARSE, "assignment": "optimal"},
}
# With the term the warm-up is short or absent: while the KL divergence costs little, latents come to be on for every
# image, and a saturated inclusion has hardly a gradient to bring them back. Gated layers get there within two and a
# half epochs.
SPARSE_WARMUP = {
    ("tanh", "pseudo-input-sparse"): 0.01,
    ("gated", "pseudo-input-sparse"): 0.0,
    ("gated", "optimal-sparse"): 0.005,
}
# Most epochs, with the relaxed gate (or none, of dense codes) and then with DisARM. Gated layers overfit the fixed
# binarisation: with 250 epochs patience would end the training while the rate is still high.
EPOCHS = {
    "tanh": {"relaxed": 500, "disarm": 30},
    "gated": {"relaxed": 250, "disarm": 15},
    ("mnist-static", "gated"): {"relaxed": 100, "disarm": 15},
    "quick": {"relaxed": 4, "disarm": 1},
}
# On Fashion-MNIST the bound of tanh units may get worse for long while the rate is high.
PATIENCE = {("fashion-mnist", "tanh"): 500}


def runs(quick):
    tried = [*(("digits", "tanh", system) for system in SYSTEMS), ("digits", "gated", "learned")]
    return {
        f"{dataset}-{network}-{system}": settings_of(dataset, network, system, quick)
        for dataset, network, system in (tried if quick else PLAN)
    }


def settings_of(dataset, network, system, quick):
    epochs = EPOCHS.get((dataset, network), EPOCHS["quick" if quick else network])
    return {
        "dataset": dataset,
        "network": network,
        "system": system,
        **(QUICK if quick else NETWORKS[network]),
        "pseudo_inputs": 10 if quick else 100,
        "epochs": {part: epochs[part] for part in epochs if system != "vae" or part != "disarm"},
        "warmup": SPARSE_WARMUP.get((network, system), 0.1),
        **OWN.get(system, {}),
        "patience": PATIENCE.get((dataset, network), 50),
        "held_out": 1 / 30,
        "batch_size": 40 if quick else 100,
        "disarm_lr": 3e-4,
        "precision": "float32",
        "draws": 50 if quick else 5000,
        "seed": 0,
    }


def static_file(data_root):
    return (data_root or default_root()) / "more" / "binarized_mnist.npz"


def absent(settings, data_root):
    if settings["dataset"] == "mnist-static" and not static_file(data_root).exists():
        return f"there is no {static_file(data_root)}"
    return None


def load(dataset, held_out, data_root):
    """Return training, validation and test data; validation data are the last share `held_out` of the training data.

    The file of the fixed binarisation has its own.
    """
    if dataset == "mnist-static":
        parts = read_static(static_file(data_root))
        return [vsc.Dataset(part.reshape(-1, 1, 28, 28), binarize="static", name="mnist") for part in parts]
    train, test = vsc.datasets.load(dataset, data_root, binarize="dynamic")
    first = len(train) - round(held_out * len(train))
    return train[:first], train[first:], test


def read_static(file):
    """Return training, validation and test images, shape (N, 784), of zeros and ones; raise `ValueError` if not."""
    try:
        with open(file, "rb") as opened, np.load(opened) as arrays:
            parts = {name: torch.from_numpy(arrays[name]).float() for name in ("train", "valid", "test")}
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} must be an npz file of the arrays train, valid and test ({error})") from error
    for name, part in parts.items():
        if part.dim() != 2 or not len(part) or part.shape[1] != 784:
            raise ValueError(f"{file} must have rows of 784 pixels in {name}, got shape {tuple(part.shape)}")
        if not ((part == 0) | (part == 1)).all():
            raise ValueError(f"{file} must have zeros and ones in {name}, got {part.min():g} to {part.max():g}")
    return list(parts.values())


def build(settings, shape):
    """Return an untrained model."""
    torch.manual_seed(settings["seed"])
    latent_dim, hidden = settings["latent_dim"], settings["hidden"]
    if settings["network"] == "gated":
        inner = {"trunk": vsc.GatedTrunk(shape.numel(), hidden)}
        outer = {"trunk": vsc.GatedTrunk(latent_dim, hidden, shape)}
    else:
        inner = outer = {"hidden": hidden, "activation": "tanh"}
    decoder = vsc.BernoulliDecoder(latent_dim, shape, **outer)
    if settings["system"] == "vae":
        return vsc.VAE(vsc.NormalEncoder(shape, latent_dim, **inner), decoder, vsc.NormalPrior(latent_dim))
    encoder = vsc.SpikeSlabEncoder(shape, latent_dim, initial_inclusion=settings.get("initial_inclusion"), **inner)
    if settings["system"] != "learned":
        inclusion = settings.get("inclusion")
        weight = 0.0 if inclusion is None else 1.0
        assignment = settings.get("assignment", "bound")
        prior = vsc.PseudoInputPrior(encoder, settings["pseudo_inputs"], inclusion, weight, assignment)
        return vsc.VAE(encoder, decoder, prior)
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(latent_dim, learn_inclusion="per-latent"))


def trained(settings, folder, train, validation):
    """Return the model with the best validation bound, the gate it had, and the history of the training by each gate.

    An interrupted training resumes from its checkpoint in `folder`.
    """
    epochs = settings["epochs"]
    shared = {name: settings[name] for name in ("batch_size", "patience", "seed", "precision")}
    shared |= {"cooldown": 1.0, "validation": validation, "progress": False}
    options = {
        "relaxed": {"lr": settings["lr"], "warmup": settings["warmup"]},
        "disarm": {"lr": settings["disarm_lr"], "gate": "disarm"},
    }
    model = build(settings, train.images.shape[1:])
    histories = {}
    for gate in epochs:
        histories[gate] = fitted(model, train, folder / gate, epochs=epochs[gate], **options[gate], **shared)
        best = max(histories, key=lambda name: max(histories[name].validation))
        model = vsc.load(folder / best / "model")
    return model, best, histories


def measure(settings, folder, data_root):
    train, validation, test = load(settings["dataset"], settings["held_out"], data_root)
    model, gate, histories = trained(settings, folder, train, validation)
    found = vsc.evaluate(model, test, num_draws=settings["draws"], seed=settings["seed"]).as_dict()
    names = ("elbo", "reconstruction", "kl", "expected_l0", "hard_l0", "hoyer", "used_latents", "active_units")
    return {name: found[name] for name in names} | {
        "nll": -found["iwae"],
        "kept": gate,
        "epochs": {name: len(history) for name, history in histories.items()},
        "best_epoch": {name: history.best_epoch for name, history in histories.items()},
        "validation": {name: max(history.validation) for name, history in histories.items()},
        "precision": {name: history.precision for name, history in histories.items()},
        "train_seconds": sum(sum(history.seconds) for history in histories.values()),
        "curve": [bound for history in histories.values() for bound in history.validation],
    }


def minutes(settings):
    if settings["dataset"] == "digits":
        return 0.02
    # A quarter of it for 5,000 draws; a step and a draw's density are dearer by pseudo-inputs.
    return {"tanh": 20, "gated": 22}[settings["network"]] * (1 if settings["system"] in ("vae", "learned") else 1.9)


def table(results):
    parts = [part_of(dataset, results) for dataset in {r["settings"]["dataset"]: None for r in results.values()}]
    some = next(iter(results.values()))["settings"]
    precision = ", ".join(sorted({p for r in results.values() for p in r["figures"]["precision"].values()}))
    parts.append(
        f"Nats per test image; NLL is the bound of {some['draws']:,} draws with hard spikes; -ELBO is that of one, "
        "which under pseudo-inputs pays for the assignment, too. Widths "
        f"of the layers: {by('network', 'hidden', results)}; latents: {by('network', 'latent_dim', results)}. E[L0]: "
        "expected number of latents on; the VAE has all on. Ever on: latents with an inclusion above 1/2 for some test "
        "image; active: latents whose posterior mean has a variance above .01 over test images. "
        f"{some['pseudo_inputs']} pseudo-inputs, to which a classifier assigns data, or (optimal) the best assignment. "
        "Inclusion at which encoders start, 0.1 unless "
        f"told: {by('system', 'initial_inclusion', results)}. Target of the sparsity term, of weight 1 for each datum: "
        f"{by('system', 'inclusion', results)}. Networks in {precision}. Adam, batches of {some['batch_size']}, a rate "
        f"of {by('network', 'lr', results)} that falls to 0 over the most epochs shown. "
        "Warm-up: share of them in which the weight of the KL divergence rises to 1. After it, epochs without a better "
        f"validation bound end the training: {by('dataset network', 'patience', results)}. Models with spikes go on "
        f"from the best epoch with the unbiased gradient of DisARM, at a rate of {some['disarm_lr']:g} that falls to "
        "0. Kept: the gate and its epoch with the best validation bound; test images chose nothing. Validation data, "
        "not trained on: the last "
        f"{some['held_out']:.1%} of the training images, or the file's own."
    )
    return "\n\n".join(parts)


def part_of(dataset, results):
    """Return the table of a data set, with the published rows beneath those of each network."""
    rows = []
    for network in NETWORKS:
        found = {
            r["settings"]["system"]: r
            for r in results.values()
            if (r["settings"]["dataset"], r["settings"]["network"]) == (dataset, network)
        }
        published = PUBLISHED.get((dataset, network), {})
        dense = found["vae"]["figures"]["nll"] if "vae" in found else None
        rows += [row_of(network, result, dense, next(iter(published.values()), None)) for result in found.values()]
        rows += [published_row(network, *entry) for entry in published.items() if found]
    rows += [published_row("other", *entry) for entry in PUBLISHED.get((dataset, None), {}).items()]
    return f"**{NAMES[dataset]}**\n\n{markdown(rows)}"


def row_of(network, result, dense, published):
    figures, settings = result["figures"], result["settings"]
    kept = figures["kept"]
    cells = (
        network,
        settings["system"],
        f"{figures['nll']:.2f}",
        f"{-figures['elbo']:.2f}",
        f"{figures['kl']:.2f}",
        f"{figures['expected_l0']:.1f} of {settings['latent_dim']}",
        f"{figures['hoyer']:.2f}",
        f"{figures['used_latents']}, {figures['active_units']}",
        f"{-figures['validation'][kept]:.2f}",
        f"{figures['epochs']['relaxed']} of {settings['epochs']['relaxed']} ({figures['best_epoch']['relaxed']})",
        f"{100 * settings['warmup']:g}%",
        kept_part(kept, figures, settings),
        target_of(settings, figures, dense, published),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def kept_part(kept, figures, settings):
    if settings["system"] == "vae":
        return ""
    return f"{kept}, {figures['best_epoch'][kept]} of {settings['epochs'][kept]}"


def by(keys, name, results):
    """Return the values of a setting in words, each with the networks or systems, say, that have it."""
    found = {}
    for settings in (r["settings"] for r in results.values()):
        if name in settings:
            value = settings[name]
            words = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value:g}"
            found.setdefault(words, {})[" ".join(settings[key] for key in keys.split())] = None
    return " and ".join(f"{words} ({', '.join(who)})" for words, who in found.items()) or "none"


def target_of(settings, figures, dense, published):
    """Return the target of a run, with its figure and whether it is met; empty where nothing is there to compare."""
    nll, system = figures["nll"], settings["system"]
    if system == "vae":
        return "" if published is None else told(nll - published, 0.5, "published", True)
    if dense is None:
        return ""
    if system in ("pseudo-input", "optimal"):
        return told(nll - dense, 0.0, "dense", True)
    share = figures["expected_l0"] / settings["latent_dim"]
    return told(nll - dense, 0.5, "dense", share <= 1 / 3) + f"; on: {share:.0%}, at most 33%"


def told(difference, allowed, reference, other):
    met = "met" if difference <= allowed and other else "missed"
    return f"{met}: {difference:+.2f} to {reference}, at most {allowed:+.1f}"


def published_row(network, source, nll):
    return {**dict.fromkeys(COLUMNS, ""), "network": network, "system": source, "NLL": f"{nll:.2f}"}


def draw(results):
    """Draw the bounds against E[L0], and the validation bound by epoch, that of DisARM last."""
    datasets = list({r["settings"]["dataset"]: None for r in results.values()})
    figure = Figure(figsize=(13, 4 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False)
    for (left, right), dataset in zip(grid, datasets, strict=True):
        for result in (r for r in results.values() if r["settings"]["dataset"] == dataset):
            settings, figures = result["settings"], result["figures"]
            label = f"{settings['network']}, {settings['system']}"
            style = {"color": f"C{SYSTEMS.index(settings['system'])}"}
            on = figures["expected_l0"] / settings["latent_dim"]
            left.plot([on], [figures["nll"]], MARKERS[settings["network"]], **style)
            shown = math.ceil(0.1 * settings["epochs"]["relaxed"])  # the bounds before are far off
            epochs = range(shown + 1, len(figures["curve"]) + 1)
            right.plot(
                epochs,
                [-bound for bound in figures["curve"][shown:]],
                ls=LINES[settings["network"]],
                label=label,
                **style,
            )
        for (data, network), published in PUBLISHED.items():
            for source, nll in published.items() if data == dataset else ():
                left.axhline(nll, color="0.5", lw=0.8, ls=LINES[network])
                left.text(0.01, nll, source, fontsize=7, va="bottom", transform=left.get_yaxis_transform())
        left.axvline(1 / 3, color="0.8", lw=0.8)
        left.set(xlabel="share of latents on, E[L0] / J", ylabel="NLL, nats", xlim=(0, 1.05), title=NAMES[dataset])
        right.set(xlabel="epoch", ylabel="validation -ELBO, nats", title="training, at its end with DisARM")
        for network, marker in MARKERS.items():
            left.plot([], [], marker, color="0.5", label=network)
        left.legend(fontsize=7)
        for axes in (left, right):
            axes.grid(alpha=0.3)
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


STUDY = Study(__file__, __doc__, runs, measure, minutes, table, draw, absent=absent)


if __name__ == "__main__":
    run_main(lambda: main(STUDY))
