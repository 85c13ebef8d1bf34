"""A linear sparse coder among its kind: loss against sparsity on MNIST, and energy left against atoms on patches.

    python examples/studies/linear_coder.py --data-root FOLDER --jobs 2

measures three things, all with linear encoders and decoders that train by ``objective="exact"``, which draws no codes:

* *loss* on MNIST by the protocol of the Poisson VAE (Vafaii et al., 2024): grey pixels in [0, 1], 512 latents, decoder
  without bias, squared error expected under the posterior plus KL divergence. That is the negative ELBO of a normal
  likelihood of variance 1/2, less a constant. The optimum of all Gaussian models is known in closed form (Tipping &
  Bishop, 1999);
* *R2* on MNIST against the share of zeros, beside the iterative Poisson VAE (Vafaii et al., 2025);
* *energy* of natural patches that hard codes leave, against atoms per patch, beside dictionary learning (Mairal et al.,
  2009) coded by orthogonal matching pursuit (OMP) with as many atoms as each patch needs.
"""

import argparse
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from study import Study, fitted, main, markdown, run_main
from torch.distributions import kl_divergence
from tqdm.auto import tqdm

import vsc_pyro as vsc
from vsc_pyro.distributions import hard_code, inclusion_of

# isort: split
from linear_rate_distortion import lasso_points, omp_errors, point, refit  # on the path that study sets

# Loss on MNIST test images (Vafaii et al., 2024), and R2 and share of zeros (Vafaii et al., 2025).
PUBLISHED = {"Gaussian": 40.6, "Poisson": 41.5, "Laplace": 42.1, "Poisson, straight-through": 44.8}
NAMES = {"mnist": "MNIST", "digits": "digits"}
PUBLISHED_ZEROS, PUBLISHED_R2 = 0.844, 0.951
VARIANCE = 0.5
DENSE = {"gaussian": (vsc.NormalEncoder, vsc.NormalPrior), "laplace": (vsc.LaplaceEncoder, vsc.LaplacePrior)}
# Differences from a spike-and-slab encoder and prior with slabs N(0, 1), and a decoder without bias.
SYSTEMS = {
    "pca": {},
    "pca, bias": {"bias": True},
    "gaussian": {},
    "laplace": {},
    "spike-slab": {},
    "spike-slab, bias": {"bias": True},
    "refined": {"refine_steps": 1},
    "refined, learned slabs": {"refine_steps": 1, "learn_slab": True},
}
REPEATED = ("spike-slab", "refined, learned slabs")  # with a second seed
R2S = {"R2": "squared_error", "R2, refitted": "refitted"}
OURS = {"ours": "squared_error", "ours, refitted": "refitted"}
BESIDE = {"OMP": "OMP by gain", "LASSO": "LASSO", "LASSO, refitted": "LASSO, refitted"}
ROWS = 500  # data encoded at once


def runs(quick):
    training = {"epochs": 2 if quick else 10, "batch_size": 200, "lr": 2e-3, "warmup": 0.2}
    images = {"dataset": "digits" if quick else "mnist", "latent_dim": 16 if quick else 512} | training
    return loss_runs(quick, images) | r2_runs(quick, images) | patches_runs(quick, training)


def loss_runs(quick, images):
    usual = {"bias": False, "refine_steps": 0, "learn_slab": False, "inclusion": 0.02}
    return {
        f"loss-{system.replace(', ', '-').replace(' ', '-')}-{seed}": images
        | {"kind": "loss", "system": system, "seed": seed}
        | usual
        | how
        for system, how in SYSTEMS.items()
        for seed in ((0, 1) if system in REPEATED and not quick else (0,))
    }


def r2_runs(quick, images):
    how = {
        "expected_active": 2 if quick else 60,
        "refine_steps": 2,
        "further": 5 if quick else 100,
        "num_test": 1000,
        "seed": 0,
    }
    return {
        f"r2-{noise:g}": {"kind": "r2", "system": "dictionary", "noise": noise} | images | how
        for noise in ((0.3,) if quick else (0.3, 0.33, 0.36, 0.4, 0.45))
    }


def patches_runs(quick, training):
    size, latent_dim, num_patches, num_test = (6, 20, 500, 100) if quick else (12, 144, 50_000, 5_000)
    data = {"dataset": "patches", "size": size, "num_patches": num_patches, "num_test": num_test}
    theirs = {"gains": np.geomspace(0.5, 16, 11).tolist()}  # for OMP: the least gain in squared error by an atom
    common = {"kind": "patches", **data, "latent_dim": latent_dim, **training, "seed": 0} | theirs
    how = {"expected_active": 5, "refine_steps": 10, "further": 0}
    ours = {
        f"patches-{noise:g}": {"system": "dictionary", "noise": noise} | common | how
        for noise in ((0.6,) if quick else (0.6, 0.7, 0.8, 0.9))
    }
    theirs = {"system": "omp", "penalties": [1.0] if quick else [1.0, 2.0, 3.0], "passes": 1 if quick else 4}
    return ours | {"patches-omp": common | theirs}


def minutes(settings):
    """Return about how long a run takes, at 10 epochs."""
    if settings["epochs"] < 10 or settings["system"].startswith("pca"):
        return 0.02
    of_patches = 1.4 if settings["system"] == "dictionary" else 3
    return {"loss": 1.1 + 0.8 * settings.get("refine_steps", 0), "r2": 4, "patches": of_patches}[settings["kind"]]


def data_of(settings, data_root):
    if settings["dataset"] == "patches":
        numbers = (settings[name] for name in ("size", "num_patches", "num_test", "seed"))
        return vsc.datasets.patches(*numbers, regularisation=0.1)  # the finest gratings are mostly noise
    return vsc.datasets.load(settings["dataset"], data_root, binarize=None)


def build(settings, shape):
    """Return an untrained model."""
    torch.manual_seed(settings["seed"])
    system, latent_dim, steps = settings["system"], settings["latent_dim"], settings["refine_steps"]
    if system == "dictionary":
        options = {name: settings[name] for name in ("noise", "expected_active", "refine_steps")}
        return vsc.SparseDictionary(shape, latent_dim, **options)
    decoder = vsc.NormalDecoder(latent_dim, shape, hidden=(), scale=math.sqrt(VARIANCE))
    if not settings["bias"]:
        torch.nn.init.zeros_(decoder.own_layer.bias).requires_grad_(False)
    if system in DENSE:
        encoder, prior = DENSE[system]
        return vsc.VAE(encoder(shape, latent_dim, hidden=()), decoder, prior(latent_dim))
    options = {"hidden": (), "steps": steps} if steps else {"hidden": ()}
    encoder = (vsc.RefinedEncoder if steps else vsc.SpikeSlabEncoder)(shape, latent_dim, **options)
    learned = {"learn_inclusion": "per-latent", "learn_slab": settings["learn_slab"]}
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(latent_dim, settings["inclusion"], **learned))


def trained(settings, folder, train):
    if (folder / "model").exists():
        return vsc.load(folder / "model")
    model = build(settings, tuple(train.images.shape[1:]))
    options = {name: settings[name] for name in ("epochs", "batch_size", "lr", "warmup", "seed")}
    fitted(model, train, folder, objective="exact", progress=False, **options)
    return model


def measure(settings, folder, data_root):
    train, test = data_of(settings, data_root)
    if settings["system"].startswith("pca"):
        return least_loss(train.images, test.images, settings["bias"])
    if settings["system"] == "omp":
        return dictionary_learning(train.images, test.images, settings)
    model = trained(settings, folder, train)
    if settings["kind"] == "loss":
        return loss(model, test.images)
    images = test.images[: settings["num_test"]]
    found = hard_codes(model, images, settings["further"], settings["seed"])
    return found if settings["kind"] == "r2" else found | {"points": points_of(model, images, found, settings)}


def least_loss(train, test, bias):
    """Return the loss of the best linear Gaussian model, probabilistic PCA of the training data."""
    x, y = (images.flatten(1).double() - bias * train.flatten(1).double().mean(0) for images in (train, test))
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    variances = values.clamp(min=VARIANCE)
    found = 0.5 * ((variances / VARIANCE).log() + (y @ axes).square().mean(0) / variances).sum()
    return {"loss": found.item(), "expected_l0": float((values > VARIANCE).sum())}


def loss(model, images):
    """Return loss, its two parts, and latents on: means over the images, with nothing sampled."""
    constant = 0.5 * images[0].numel() * math.log(2 * math.pi * VARIANCE)
    rows = []
    with model.evaluating():
        for x in images.split(ROWS):
            q = model.encoder(x)
            error = -model.decoder(q.mean).expected_log_prob(x, q.variance) - constant
            inclusion = inclusion_of(q).expand_as(q.mean)
            kl = kl_divergence(q, model.prior(x).expand(q.batch_shape))
            rows.append(torch.stack([error, kl, inclusion.sum(1), (inclusion > 0.5).double().sum(1)], 1))
    error, kl, expected, hard = torch.cat(rows).double().mean(0).tolist()
    return {"loss": error + kl, "squared_error": error, "kl": kl, "expected_l0": expected, "hard_l0": hard}


def hard_codes(model, images, steps, seed):
    """Return what hard codes leave of the images: slab means of the latents with inclusion above 1/2, or least squares.

    With `steps`, so many of `refine` come after the encoder.
    """
    with model.evaluating():
        q = model.encoder(images)
    if steps:
        q = vsc.refine(model, images, steps=steps, objective="exact", seed=seed).posterior
    with torch.no_grad():
        code, inclusion, (atoms, bias) = hard_code(q), inclusion_of(q), dictionary_of(model)
    x, on = images.flatten(1) - bias, code != 0
    return {
        "l0": on.double().sum(1).mean().item(),
        "expected_l0": inclusion.sum(1).mean().item(),
        "squared_error": energy(x - code @ atoms),
        "refitted": refit(atoms, on, x),
        "energy": energy(images),
        "spread": energy(images - images.mean(0)),
    }


def energy(images):
    return images.flatten(1).double().square().sum(1).mean().item()


def dictionary_of(model):
    """Return the atoms, shape (J, D), and the bias, shape (D)."""
    no_code = torch.zeros(1, model.encoder.latent_dim)
    with torch.no_grad():
        return model.decoder.dictionary.flatten(1), model.decoder(no_code).mean.flatten()


def points_of(model, images, found, settings):
    words = f"noise {settings['noise']:g}"
    atoms, bias = (values.double().numpy() for values in dictionary_of(model))
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    points = by_gain(f"our dictionary, {words}, OMP", {"": unit}, images.flatten(1).double().numpy() - bias, settings)
    return [point(coder, words, found["l0"], found[name]) for coder, name in OURS.items()] + points


def by_gain(coder, dictionaries, x, settings):
    """Return points of OMP with as many atoms as each patch needs."""
    args = argparse.Namespace(sparsities=[], gains=settings["gains"])
    return list(omp_errors(coder, dictionaries, x, args))


def dictionary_learning(train, test, settings):
    x, y = (images.flatten(1).double().numpy() for images in (train, test))
    mean = x.mean(0)
    points, dictionaries = lasso_points(argparse.Namespace(**settings), x - mean, y - mean, tqdm(disable=True))
    return {"points": points + by_gain("OMP", dictionaries, y - mean, settings), "energy": energy(test)}


def of_kind(results, kind):
    return {name: r for name, r in results.items() if r["settings"]["kind"] == kind}


def title(results, kind):
    return ", ".join({NAMES[r["settings"]["dataset"]]: None for r in of_kind(results, kind).values()})


def published(results, kind):
    """Return the published losses if the runs are of the data that these are of."""
    return PUBLISHED if title(results, kind) == NAMES["mnist"] else {}


def curves_of(results):
    """Return the points of each coder of patches: atoms on and share of energy left, sorted."""
    curves = {}
    for result in of_kind(results, "patches").values():
        for p in result["figures"]["points"]:
            share = p["squared error"] / result["figures"]["energy"]
            curves.setdefault(p["coder"], []).append((p["L0"], share, p["setting"]))
    return {coder: sorted(curve) for coder, curve in curves.items()}


def table(results):
    parts = [part(results) for part in (loss_table, r2_table, patches_table)]
    return "\n\n".join(filter(None, parts))


def loss_table(results):
    found = of_kind(results, "loss")
    if not found:
        return None
    rows = [{"": f"{name}, published", "loss": value} for name, value in published(results, "loss").items()]
    for result in found.values():
        settings, figures = result["settings"], result["figures"]
        rows.append(
            {"": f"{settings['system']}, seed {settings['seed']}"}
            | {name: f"{value:.2f}" for name, value in figures.items()}
        )
    columns = dict.fromkeys(["", "loss", "squared_error", "kl", "expected_l0", "hard_l0"], "")
    s = next(iter(found.values()))["settings"]
    return (
        f"**Loss**, {s['dataset']}\n\n{markdown([columns | row for row in rows])}\n\n"
        "Mean over all test images of squared error, summed over pixels and expected under the posterior, plus KL "
        "divergence, in closed form; grey pixels in [0, 1], no binarisation. Linear encoder and decoder, "
        f"{s['latent_dim']} latents, decoder without bias unless named; Adam {s['lr']:g}, batches of "
        f"{s['batch_size']}, {s['epochs']} epochs, KL weight rising in the first {s['warmup']:.0%}. Latents on: sum of "
        f"inclusion probabilities, learned per latent from {s['inclusion']:g}, and number above 1/2. That "
        "inclusion was chosen among .1 and .02 on 10,000 training images, for about the same loss with fewer on; "
        "rate and batches are the published ones. pca: the best of all Gaussian models, in closed form, and its number "
        "of components. Slabs with learned means can take the place of a bias. Published: Vafaii et al. (2024), 1,200 "
        "epochs."
    )


def r2_table(results):
    found = of_kind(results, "r2")
    if not found:
        return None
    cells = {"": "iterative Poisson VAE, published", "zeros": f"{PUBLISHED_ZEROS:.1%}", "R2": f"{PUBLISHED_R2:.3f}"}
    rows = [cells] if published(results, "r2") else []
    for result in found.values():
        settings, figures = result["settings"], result["figures"]
        cells = {"": f"ours, noise {settings['noise']:g}", "zeros": f"{1 - figures['l0'] / settings['latent_dim']:.1%}"}
        rows.append(cells | {name: f"{1 - figures[key] / figures['spread']:.3f}" for name, key in R2S.items()})
    s, rows = settings, [{"": "", "zeros": "", **dict.fromkeys(R2S, "")} | row for row in rows]
    return (
        f"**R2 and zeros**, {s['dataset']}\n\n{markdown(rows)}\n\n"
        f"SparseDictionary of {s['latent_dim']} features, {s['refine_steps']} closed-form updates in training; Adam "
        f"{s['lr']:g}, batches of {s['batch_size']}, {s['epochs']} epochs. Hard codes of {s['num_test']} test "
        f"images: slab means of latents with inclusion above 1/2 after `refine` with {s['further']} steps, or least "
        "squares on their atoms (refitted). R2: 1 minus squared error over that of the mean image, summed over pixels "
        "and images. Published: Vafaii et al. (2025), whose codes are counts."
    )


def patches_table(results):
    found, curves = of_kind(results, "patches"), curves_of(results)
    if not found:
        return None
    rows = []
    for coder in OURS:
        for l0, share, setting in curves.get(coder, []):
            beside = {name: at(l0, curves.get(curve)) for name, curve in BESIDE.items()}
            own = at(l0, curves.get(f"our dictionary, {setting}, OMP by gain"))
            cells = {"": coder, "setting": setting, "atoms": f"{l0:.2f}", "energy left": f"{share:.1%}"}
            rows.append(cells | {"our dictionary, OMP": own} | beside)
    if not rows:  # OMP alone, which has rows only beside ours
        return None
    s = next(iter(found.values()))["settings"]
    return (
        f"**Patches**, {s['size']}x{s['size']}, whitened\n\n{markdown(rows)}\n\n"
        f"Squared error of {s['num_test']} test patches over their squared norm; {s['latent_dim']} atoms, learned from "
        f"{s['num_patches']} patches. Ours: SparseDictionary with closed-form updates in training, Adam {s['lr']:g}, "
        f"batches of {s['batch_size']}, {s['epochs']} epochs; hard codes, as above. OMP and the LASSO: dictionaries of "
        "scikit-learn at as many atoms, on straight lines between their points. OMP takes the number of atoms of each "
        "patch that minimises squared error plus a gain an atom, and each gain the best dictionary on the test patches."
    )


def at(l0, curve):
    """Return a curve's share of energy left at so many atoms in words, or nothing beyond its points."""
    share = between(l0, curve)
    return "" if math.isnan(share) else f"{share:.1%}"


def between(l0, curve):
    """Return a curve's share of energy left on a straight line between its points, NaN beyond them."""
    if curve is None:
        return math.nan
    l0s, shares, _ = zip(*curve, strict=True)
    return float(np.interp(l0, l0s, shares, left=math.nan, right=math.nan))


def draw(results):
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, draw_one in zip(panels, (draw_loss, draw_r2, draw_patches), strict=True):
        draw_one(axes, results)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def draw_loss(axes, results):
    for index, (name, value) in enumerate(published(results, "loss").items()):
        label = None if index else "published"
        axes.axhline(value, color="grey", lw=1, ls="--", label=label)
        axes.annotate(name, (0.6, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    for result in of_kind(results, "loss").values():
        figures, system = result["figures"], result["settings"]["system"]
        label, colour = None if result["settings"]["seed"] else system, f"C{list(SYSTEMS).index(system)}"
        axes.plot(figures["expected_l0"], figures["loss"], "o", color=colour, label=label)
    axes.set(xscale="log", xlabel="E[L0]", ylabel="squared error + KL, test images", title=title(results, "loss"))
    axes.get_xaxis().set_major_formatter("{x:g}")


def draw_r2(axes, results):
    if published(results, "r2"):
        axes.plot(PUBLISHED_ZEROS, PUBLISHED_R2, "kx", label="iterative Poisson VAE, published")
    found = [
        (1 - r["figures"]["l0"] / r["settings"]["latent_dim"], r["figures"]) for r in of_kind(results, "r2").values()
    ]
    for name, key in R2S.items():
        points = sorted((zeros, 1 - figures[key] / figures["spread"]) for zeros, figures in found)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=f"ours, {name}")
    axes.set(xlabel="share of zeros", ylabel="R2 of hard codes", title=title(results, "r2"))


def draw_patches(axes, results):
    """Draw the energy that hard codes leave over that of OMP with as many atoms; the LASSO, far above, is left out."""
    curves = curves_of(results)
    for coder, curve in sorted(curves.items(), key=lambda item: item[0] in OURS):  # ours on top
        style = {"color": "black", "lw": 2} if coder in OURS else {"lw": 1}
        ratios = [(l0, share / between(l0, curves.get(BESIDE["OMP"]))) for l0, share, _ in curve]
        if not coder.startswith("LASSO"):
            line = "--" if coder.endswith("refitted") else "-"
            axes.plot(*zip(*ratios, strict=True), line, marker="o", ms=3, label=coder, **style)
    most = max((l0 for coder in OURS for l0, _, _ in curves.get(coder, [])), default=20)
    axes.set(xlabel="atoms per patch", ylabel="energy left, over that of OMP", title="natural patches")
    axes.set_xlim(0, 1.5 * most)


STUDY = Study(__file__, __doc__, runs, measure, minutes, table, draw)


if __name__ == "__main__":
    run_main(lambda: main(STUDY))
