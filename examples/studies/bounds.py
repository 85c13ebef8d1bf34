"""Bounds and sparsity against inclusion alpha and number of latents J: the first experiment of VSC (Tonolini et al.).

    python examples/studies/bounds.py --data-root FOLDER --jobs 2

trains, on MNIST and Fashion-MNIST, spike-and-slab models of each alpha and J, models that learn alpha, models with
pseudo-inputs, and dense VAEs, with a normal prior or with pseudo-inputs. The protocol is that of a reproduction study
(de la Fuente & Aduviri, 2019, ReScience C): grey pixels with a cross-entropy, 784-400-J-400-784, Adam 1e-3, batches of
32, 11 epochs. Its figures are of relaxed spikes, drawn between 0 and 1; ours are of hard ones. The rest is by default
of this library: where models start, and a rate that falls over the last quarter.
"""

import torch
from matplotlib.figure import Figure
from study import Study, fitted, main, markdown, run_main

import vsc_pyro as vsc

LATENTS = (8, 16, 32, 64, 128, 200)
INCLUSIONS = (0.5, 0.2, 0.05, 0.01)
SYSTEMS = (*(f"alpha-{alpha:g}" for alpha in INCLUSIONS), "learned", "pseudo-input", "vae", "vae-pseudo-input")
# -ELBO of the reproduction study, with relaxed spikes, at J = 200; dense: without a spike.
PUBLISHED = {
    "mnist": {"alpha-0.5": 115.01, "alpha-0.2": 120.23, "alpha-0.01": 133.86, "vae": 106.28},
    "fashion-mnist": {"alpha-0.5": 250.33, "alpha-0.2": 254.20, "alpha-0.01": 256.58, "vae": 244.89},
}
NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "digits": "digits"}


def runs(quick):
    datasets, latents, epochs = (("digits",), (8,), 8) if quick else (PUBLISHED, LATENTS, 11)
    return {
        f"{dataset}-{system}-{latent_dim}": {
            "dataset": dataset,
            "system": system,
            "latent_dim": latent_dim,
            "hidden": 20 if quick else 400,
            "epochs": epochs,
            "batch_size": 32,
            "lr": 1e-3,
            "draws": 100,
            "seed": 0,
        }
        for dataset in datasets
        for system in SYSTEMS
        for latent_dim in latents
    }


def build(settings, shape):
    """Return an untrained model; a beta in the settings is that of a beta-VAE."""
    torch.manual_seed(settings["seed"])
    system, latent_dim, hidden = settings["system"], settings["latent_dim"], settings["hidden"]
    is_dense = system in ("vae", "beta-vae", "vae-pseudo-input")
    decoder = vsc.BernoulliDecoder(latent_dim, shape, hidden)
    encoder = (vsc.NormalEncoder if is_dense else vsc.SpikeSlabEncoder)(shape, latent_dim, hidden)
    if system.endswith("pseudo-input"):
        prior = vsc.PseudoInputPrior(encoder)
    elif is_dense:
        prior = vsc.NormalPrior(latent_dim)
    elif system == "learned":
        prior = vsc.SpikeSlabPrior(latent_dim, learn_inclusion="per-latent")
    else:
        prior = vsc.SpikeSlabPrior(latent_dim, float(system.removeprefix("alpha-")))
    return vsc.VAE(encoder, decoder, prior, beta=settings.get("beta", 1.0))


def trained(settings, folder, data_root):
    """Return the model of a run, from `folder` if it is there, and its training and test data."""
    train, test = vsc.datasets.load(settings["dataset"], data_root, binarize=None)
    if (folder / "model").exists():
        return vsc.load(folder / "model"), train, test
    model = build(settings, tuple(train.images.shape[1:]))
    options = {name: settings[name] for name in ("epochs", "batch_size", "lr", "seed")}
    fitted(model, train, folder, progress=False, **options)
    return model, train, test


def measure(settings, folder, data_root):
    model, _, test = trained(settings, folder, data_root)
    found = vsc.evaluate(model, test, num_draws=settings["draws"], seed=settings["seed"]).as_dict()
    names = ("elbo", "iwae", "reconstruction", "kl", "relaxation_gap", "expected_l0", "hoyer", "used_latents")
    return {name: found[name] for name in names}


def minutes(settings):
    return 0.02 if settings["dataset"] == "digits" else 0.8 + settings["latent_dim"] / 400


def table(results):
    parts = []
    for dataset in {r["settings"]["dataset"]: None for r in results.values()}:
        found = {
            (r["settings"]["system"], r["settings"]["latent_dim"]): r["figures"]
            for r in results.values()
            if r["settings"]["dataset"] == dataset
        }
        widths = sorted({latent_dim for _, latent_dim in found})
        rows = []
        for system in SYSTEMS:
            cells = {f"J = {width}": cell(found.get((system, width))) for width in widths}
            published = PUBLISHED.get(dataset, {}).get(system)
            rows.append({"": system} | cells | {"published, J = 200": f"{published:.2f}" if published else ""})
        parts.append(
            f"**{NAMES[dataset]}**: -ELBO, nats per image, lower is better (E[L0], ever on)\n\n{markdown(rows)}"
        )
    settings = next(iter(results.values()))["settings"]
    parts.append(
        "Grey pixels, cross-entropy (no likelihood of a binarisation); one draw of each code with hard spikes, all "
        f"test images; networks D-{settings['hidden']}-J-{settings['hidden']}-D, Adam {settings['lr']:g} that falls "
        f"over the last quarter, batches of {settings['batch_size']}, {settings['epochs']} epochs, concrete gate. "
        "Learned: an inclusion for each latent, from .1; pseudo-input: 20 of them, and encoders that start at an "
        "inclusion of .1. E[L0]: expected number of latents on for an image, idle ones at their rate; ever on: latents "
        "with an inclusion above 1/2 for some test image. Dense VAEs have all J on. Published figures are of soft "
        "spikes, that of the VAE has none. Nothing was chosen."
    )
    return "\n\n".join(parts)


def cell(figures):
    if figures is None:
        return ""
    return f"{-figures['elbo']:.2f} ({figures['expected_l0']:.1f}, {figures['used_latents']})"


def draw(results):
    datasets = list({r["settings"]["dataset"]: None for r in results.values()})
    figure = Figure(figsize=(12, 6 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False)
    for row, dataset in zip(grid, datasets, strict=True):
        for axes, (key, sign, label) in zip(
            row, (("elbo", -1, "-ELBO, nats, hard spikes (lower is better)"), ("expected_l0", 1, "E[L0]")), strict=True
        ):
            for system in SYSTEMS:
                points = sorted(
                    (r["settings"]["latent_dim"], sign * r["figures"][key])
                    for r in results.values()
                    if (r["settings"]["dataset"], r["settings"]["system"]) == (dataset, system)
                )
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", ms=4, color=f"C{SYSTEMS.index(system)}", label=system)
            axes.set(xlabel="J, number of latents", ylabel=label, xscale="log", title=NAMES[dataset])
            axes.set_xticks(sorted({r["settings"]["latent_dim"] for r in results.values()}), minor=False)
            axes.get_xaxis().set_major_formatter("{x:.0f}")
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        row[1].set(yscale="log", yticks=(3, 5, 10, 20, 50, 100, 200))
        row[1].get_yaxis().set_major_formatter("{x:.0f}")
        row[1].minorticks_off()
        for system, value in PUBLISHED.get(dataset, {}).items():
            row[0].plot([200], [value], "x", color=f"C{SYSTEMS.index(system)}")
    grid[0][0].plot([], [], "x", color="black", label="published")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    return figure


STUDY = Study(__file__, __doc__, runs, measure, minutes, table, draw)


if __name__ == "__main__":
    run_main(lambda: main(STUDY))
