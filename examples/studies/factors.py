"""Known factors: how well single latents find the parts that made the data, for sparse and dense systems.

    python examples/studies/factors.py --jobs 2

trains on smiley (drawn faces of 18 parts, each present or absent, with an attribute) and linear-5x5 (sparse sums of
five patterns), and reports for each system and number of latents J

* support AUROC: the area under the ROC curve with which the inclusion probability of the best single latent, or its
  negative, tells that a part is present, averaged over parts; and the same for posterior means (mean, -mean or |mean|).
  Latents and signs are chosen on training data;
* MIG (Chen et al., 2018) and DCI (Eastwood & Williams, 2018) of posterior means, see `vsc_pyro.disentanglement`.

Where slabs are centred at 0, a latent that is off and one that is on near 0 decode alike, so a part's presence cannot
stand in the spike while its attribute stands in the slab. "slab at 2" are systems whose slabs begin there and are
learned.
"""

import torch
from matplotlib.figure import Figure
from study import Study, fitted, main, markdown, run_main

import vsc_pyro as vsc
from vsc_pyro.evaluation.probes import auroc

SYSTEMS = (
    *("vae", "beta-vae", "laplace"),
    *("spike-slab", "learned", "pseudo-input", "truncated-normal", "slab-at-2", "slab-at-2-learned"),
)
WORDS = {
    "vae": "VAE",
    "beta-vae": "beta-VAE (4)",
    "laplace": "Laplace",
    "spike-slab": "spike-and-slab, inclusion fixed",
    "learned": "spike-and-slab, inclusion learned",
    "pseudo-input": "pseudo-input",
    "truncated-normal": "positive slab, inclusion fixed",
    "slab-at-2": "slab at 2, inclusion fixed",
    "slab-at-2-learned": "slab at 2, inclusion learned",
}
# Numbers of latents by data set, and the settings of all its runs. Inclusion is the share of data that have a part.
DATASETS = {
    "smiley": ((18, 30, 60), {"hidden": [400], "inclusion": 0.5, "epochs": 25, "lr": 3e-3}),
    "linear-5x5": ((5, 10, 20), {"hidden": [100], "inclusion": 0.3, "epochs": 40, "lr": 1e-3}),
}
QUICK = {
    "smiley": ((18,), {"hidden": [20], "inclusion": 0.5, "epochs": 8, "lr": 1e-2}),
    "linear-5x5": ((5,), {"hidden": [20], "inclusion": 0.3, "epochs": 6, "lr": 1e-2}),
}
MEASURES = {
    "support": "support AUROC",
    "means": "AUROC of means",
    "worst": "worst part",
    "mig": "MIG",
    "disentanglement": "D",
    "completeness": "C",
    "informativeness": "I",
    "nelbo": "-ELBO",
    "expected_l0": "E[L0]",
    "used_latents": "ever on",
}


def runs(quick):
    num_train, num_test = (300, 200) if quick else (None, None)
    return {
        f"{dataset}-{system}-{latent_dim}-seed-{seed}": {
            "dataset": dataset,
            "system": system,
            "latent_dim": latent_dim,
            "num_train": num_train,
            "num_test": num_test,
            "batch_size": 25 if quick else 100,
            "seed": seed,
        }
        | shared
        for dataset, (latents, shared) in (QUICK if quick else DATASETS).items()
        for latent_dim in latents
        for seed in ((0, 1) if latent_dim == latents[len(latents) // 2] else (0,))
        for system in SYSTEMS
        if not quick or (seed == 0 and (dataset == "linear-5x5" or system == "slab-at-2"))
    }


def data(settings):
    generator = {"smiley": vsc.datasets.smiley, "linear-5x5": vsc.datasets.linear_5x5}[settings["dataset"]]
    sizes = {name: settings[name] for name in ("num_train", "num_test") if settings[name] is not None}
    return generator(**sizes)


def build(settings, shape):
    """Return an untrained model, with a decoder of the kind that made the data."""
    torch.manual_seed(settings["seed"])
    system, latent_dim, hidden = settings["system"], settings["latent_dim"], settings["hidden"]
    if settings["dataset"] == "smiley":
        decoder = vsc.BernoulliDecoder(latent_dim, shape, hidden)
    else:
        decoder = vsc.NormalDecoder(latent_dim, shape, hidden=(), scale=0.3, variance="shared")
    if system == "laplace":
        return vsc.VAE(vsc.LaplaceEncoder(shape, latent_dim, hidden), decoder, vsc.LaplacePrior(latent_dim))
    if system.endswith("vae"):
        beta = 4.0 if system == "beta-vae" else 1.0
        return vsc.VAE(vsc.NormalEncoder(shape, latent_dim, hidden), decoder, vsc.NormalPrior(latent_dim), beta)
    slab = "truncated-normal" if system == "truncated-normal" else "normal"
    encoder = vsc.SpikeSlabEncoder(shape, latent_dim, hidden, slab=slab)
    if system == "pseudo-input":
        return vsc.VAE(encoder, decoder, vsc.PseudoInputPrior(encoder))
    options = {"slab_loc": 2.0, "learn_slab": True} if system.startswith("slab-at-2") else {"slab": slab}
    learn = "per-latent" if system.endswith("learned") else False
    prior = vsc.SpikeSlabPrior(latent_dim, settings["inclusion"], learn_inclusion=learn, **options)
    return vsc.VAE(encoder, decoder, prior)


def measure(settings, folder, data_root):
    train, test = data(settings)
    model = build(settings, tuple(train.images.shape[1:]))
    seed = settings["seed"]
    options = {name: settings[name] for name in ("epochs", "batch_size", "lr", "seed")}
    fitted(model, train, folder, progress=False, **options)
    found = vsc.evaluate(model, test, num_draws=1, seed=seed).as_dict()
    means = vsc.factor_auroc(model, train, test, score="mean", seed=seed)
    figures = {"nelbo": -found["elbo"], "expected_l0": found["expected_l0"], "used_latents": found["used_latents"]}
    figures |= {"means": means.mean, **vars(vsc.disentanglement(model, train, test, seed=seed))}
    own = vsc.factor_auroc(model, train, test, seed=seed)
    figures |= {"worst": min(own.auroc), "parts": list(own.names), "latents": list(own.latents)}
    if own.score == "inclusion":
        figures |= {"support": own.mean, "forms": list(own.forms)}
        figures["support_in_training"] = vsc.factor_auroc(model, train, train, seed=seed).mean
        areas = auroc(vsc.codes(model, test).inclusion, test.factors.presence.double().numpy())
        figures["matrix"] = areas.round(3).tolist()
    return figures


def minutes(settings):
    seconds = 0.0095 if settings["dataset"] == "smiley" else 0.002  # of a step
    num_train = settings["num_train"] or (20_000 if settings["dataset"] == "smiley" else 10_000)
    rest = 0.3 if settings["num_train"] else 6
    return (rest + seconds * settings["epochs"] * num_train / settings["batch_size"]) / 60


def select(results, **wanted):
    """Return the results whose settings have the `wanted` values."""
    return [r for r in results.values() if wanted.items() <= r["settings"].items()]


def distinct(results, name):
    return list(dict.fromkeys(r["settings"][name] for r in results.values()))


def table(results):
    parts = []
    for dataset in distinct(results, "dataset"):
        rows = []
        for system in SYSTEMS:
            for latent_dim in distinct(results, "latent_dim"):
                found = [r["figures"] for r in select(results, dataset=dataset, system=system, latent_dim=latent_dim)]
                if found:
                    rows.append({"": WORDS[system], "J": latent_dim} | {MEASURES[m]: cell(found, m) for m in MEASURES})
        settings = select(results, dataset=dataset)[0]["settings"]
        parts.append(f"**{dataset}**\n\n{markdown(rows)}\n\n{protocol(settings)}")
    parts.append(
        "Support AUROC: by the inclusion probability, or its negative, of the best single latent; of means: the better "
        "of mean, -mean and |mean|; latents and signs chosen on training data, areas on test data. Worst part: of the "
        "support, or of means where there is no spike. MIG and DCI (D, C, I) of posterior means, presence as factor. "
        "-ELBO in nats per image, one draw with hard spikes; ever on: latents with an inclusion above 1/2 for some "
        "test image. Two values are those of seeds 0 and 1. The inclusion of smiley "
        "(.5 rather than .3) and the slab's location (2 rather than 0 or 3) were chosen by the last 4,000 of smiley's "
        "training data, after training on the others; test data chose nothing, and every run is shown."
    )
    return "\n\n".join(parts)


def protocol(settings):
    network, noise = (
        ("D-{0}-J-{0}-D", "Bernoulli pixels")
        if settings["dataset"] == "smiley"
        else (
            "D-{0}-J, linear decoder",
            "Gaussian noise, one variance learned",
        )
    )
    size = settings["num_train"] or "all"
    return (
        f"{size} training data, not binarised further; {network.format(settings['hidden'][0])}, {noise}; Adam "
        f"{settings['lr']:g}, batches of {settings['batch_size']}, {settings['epochs']} epochs, relaxed gate; "
        f"inclusion {settings['inclusion']:g}, the share of data that have a part, or learned from there."
    )


def cell(found, measure):
    digits = {"nelbo": ".2f", "expected_l0": ".1f", "used_latents": "d"}.get(measure, ".3f")
    return ", ".join(format(figures[measure], digits) for figures in found if measure in figures)


def draw(results):
    datasets = distinct(results, "dataset")
    figure = Figure(figsize=(15, 5 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False, width_ratios=(1, 1.4))
    for (left, right), dataset in zip(grid, datasets, strict=True):
        draw_areas(left, results, dataset)
        draw_matrix(right, results, dataset)
    lines = {line.get_label(): line for row in grid for line in row[0].lines}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def draw_areas(axes, results, dataset):
    """Draw the area by inclusion, or for dense systems by means, against J."""
    for color, system in enumerate(SYSTEMS):
        found = select(results, dataset=dataset, system=system)
        points = {}
        for r in found:
            area = r["figures"].get("support", r["figures"]["means"])
            points.setdefault(r["settings"]["latent_dim"], []).append(area)
        if found:
            sparse = "support" in found[0]["figures"]
            means = [(width, sum(areas) / len(areas)) for width, areas in sorted(points.items())]
            axes.plot(*zip(*means, strict=True), "o-" if sparse else "s:", ms=4, color=f"C{color}", label=WORDS[system])
    axes.set(title=f"{dataset}: dense systems (dotted) by means", xlabel="J, number of latents", ylabel="support AUROC")
    axes.set(xticks=sorted({r["settings"]["latent_dim"] for r in select(results, dataset=dataset)}), ylim=(0.48, 1.02))
    axes.grid(alpha=0.3)


def draw_matrix(axes, results, dataset):
    """Draw the areas of all parts by the latents chosen, for the sparse run with the best area on training data."""
    sparse = {
        name: r for name, r in results.items() if r in select(results, dataset=dataset) and "matrix" in r["figures"]
    }
    if not sparse:
        axes.set_axis_off()
        return
    name = max(sparse, key=lambda name: sparse[name]["figures"]["support_in_training"])
    found = sparse[name]["figures"]
    latents = list(dict.fromkeys(found["latents"]))
    areas = [[row[latent] for latent in latents] for row in found["matrix"]]
    image = axes.imshow(areas, cmap="RdBu_r", vmin=0, vmax=1)
    axes.set_xticks(range(len(latents)), latents, fontsize=8)
    axes.set_yticks(range(len(areas)), found["parts"], fontsize=8)
    axes.set(xlabel="latent chosen", title=f"{name}: blue, switches off where present", aspect="auto")
    axes.figure.colorbar(image, ax=axes, label="AUROC of inclusion")


STUDY = Study(__file__, __doc__, runs, measure, minutes, table, draw)


if __name__ == "__main__":
    run_main(lambda: main(STUDY))
