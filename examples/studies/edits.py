"""Edits of single latents on clothes and faces: the pictures of VSC (Tonolini et al., 2020), and how local edits are.

    python examples/studies/edits.py --data-root FOLDER --jobs 2

trains sparse models of Fashion-MNIST (FashionMNIST/raw in the folder), of Olivetti faces (more/olivetti.npz) and of
CelebA (celeba, if it is there), with a dense VAE of the clothes for comparison. Each run leaves pictures of test data:
inclusion by class, traversals, edits of one datum, its explanation, samples that keep its active latents, and an
interpolation through the union of the active latents of two data.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from study import Study, fitted, main, markdown, run_main, write_figure

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.evaluation.information import is_informative
from vsc_pyro.training.schedules import slab_warmup

PICTURES = ("classes", "traversals", "edits", "explanation", "samples", "samples-other", "interpolation")
SHARE = 0.1  # of pixels, where an edit is called local
NUM_EDITED = 1000  # test data whose edits are measured
HELD_OUT = 8  # of the ten faces of a person, from 0
MOST_CLASSES, MOST_LATENTS = 10, 60  # rows and columns of a map
INK = ("digits", "fashion-mnist")  # drawn dark on white
KINDS_OF_FACES = ("woman", "woman, smiling", "man", "man, smiling")
MLP = {"hidden": 400, "epochs": 20, "batch_size": 100, "latent_dim": 200}
CONV = {"channels": (16, 32, 64), "epochs": 100, "batch_size": 40, "latent_dim": 100}
RUNS = {
    "fashion-mnist-fixed": MLP | {"prior": "fixed", "inclusion": 0.01},
    "fashion-mnist-learned-slab": MLP | {"prior": "learned-slab", "inclusion": 0.01},
    "fashion-mnist-vsc": MLP | {"prior": "vsc", "inclusion": 0.01},
    "fashion-mnist-vae": MLP | {"prior": "normal"},
    "olivetti-fixed": CONV | {"prior": "fixed", "inclusion": 0.05},
    "olivetti-learned-slab": CONV | {"prior": "learned-slab", "inclusion": 0.05},
    "olivetti-noise": CONV | {"prior": "fixed", "inclusion": 0.1, "scale": 0.15},
    "celeba-learned-slab": CONV | {"prior": "learned-slab", "inclusion": 0.05, "epochs": 20, "batch_size": 100},
}
QUICK = {
    "digits-vsc": {"channels": (4, 8), "epochs": 6, "batch_size": 50}
    | {"prior": "vsc", "inclusion": 0.3, "latent_dim": 10, "scale": 0.2},
    "digits-vae": {"hidden": 30, "epochs": 2, "batch_size": 50} | {"prior": "normal", "latent_dim": 10},
}
PROTOCOL = (
    "Grey pixels with a cross-entropy, or normal noise of the standard deviation given (neither is a likelihood of "
    "binary pixels); -ELBO in nats a test image, one draw of each code, hard spikes; Adam, the learning rate falling "
    "over the last quarter of the epochs. Latents used: those that tell test images apart, by the rule of `evaluate`, "
    "and are on in one of them. "
    "Change: mean absolute change of a decoded pixel, black 0 and white 1, when one latent that is on is set to 0. "
    "Locality: share of that change in the tenth of the pixels that change most; .1 if all change alike. Both for the "
    f"first {NUM_EDITED} test images and the latents used."
)
NAMES = {"fashion-mnist": "Fashion-MNIST", "olivetti": "Olivetti faces", "celeba": "CelebA", "digits": "digits"}


def runs(quick):
    common = {"lr": 1e-2 if quick else 1e-3, "draws": 10 if quick else 100, "rows": 2 if quick else 8, "seed": 0}
    return {
        name: {"dataset": next(dataset for dataset in NAMES if name.startswith(dataset))} | own | common
        for name, own in (QUICK if quick else RUNS).items()
    }


def load(dataset, data_root):
    """Return training and test data, unbinarised."""
    root = vsc.datasets.default_root() if data_root is None else data_root
    if dataset == "celeba":
        split = vsc.datasets.celeba(root, num_train=20_000, num_test=NUM_EDITED, download=False)
        return [vsc.Dataset(part.images, kinds_of_faces(part), class_names=KINDS_OF_FACES) for part in split]
    if dataset != "olivetti":
        return vsc.datasets.load(dataset, root, binarize=None)
    with np.load(root / "more" / "olivetti.npz") as file:
        images, people = torch.tensor(file["images"])[:, None] / 255, torch.tensor(file["target"]).long()
    held_out = torch.arange(len(images)) % 10 == HELD_OUT
    train = images[~held_out]
    return vsc.Dataset(torch.cat([train, train.flip(-1)])), vsc.Dataset(images[held_out], people[held_out])


def kinds_of_faces(part):
    is_male, smiles = (part.factors.presence[:, part.factors.names.index(name)] for name in ("Male", "Smiling"))
    return 2 * is_male.long() + smiles.long()


def absent(settings, data_root):
    root = vsc.datasets.default_root() if data_root is None else data_root
    if settings["dataset"] == "celeba" and not (root / "celeba" / "img_align_celeba").is_dir():
        return f"CelebA is not in {root}"
    if settings["dataset"] == "olivetti" and not (file := root / "more" / "olivetti.npz").is_file():
        return f"there is no {file}"
    return None


def build(settings, shape):
    """Return an untrained model."""
    torch.manual_seed(settings["seed"])
    latent_dim, kind = settings["latent_dim"], settings["prior"]
    inner, outer = {"hidden": settings.get("hidden")}, {"hidden": settings.get("hidden")}
    if channels := settings.get("channels"):
        inner, outer = {"trunk": vsc.ConvTrunk(shape, channels)}, {"trunk": vsc.DeconvTrunk(shape, channels[::-1])}
    decoder = vsc.BernoulliDecoder(latent_dim, shape, **outer)
    if "scale" in settings:
        decoder = vsc.NormalDecoder(latent_dim, shape, scale=settings["scale"], **outer)
    if kind == "normal":
        return vsc.VAE(vsc.NormalEncoder(shape, latent_dim, **inner), decoder, vsc.NormalPrior(latent_dim))
    encoder = vsc.SpikeSlabEncoder(shape, latent_dim, **inner)
    if kind == "vsc":
        prior = vsc.PseudoInputPrior(encoder, 20, settings["inclusion"], sparsity_weight=1.0)
    else:
        prior = vsc.SpikeSlabPrior(latent_dim, settings["inclusion"], learn_slab=kind == "learned-slab")
    return vsc.VAE(encoder, decoder, prior)


def trained(settings, folder, data_root):
    """Return the model of a run, from `folder` if it is there, and its test data."""
    train, test = load(settings["dataset"], data_root)
    if (folder / "model").exists():
        return vsc.load(folder / "model"), test
    model = build(settings, tuple(train.images.shape[1:]))
    options = {name: settings[name] for name in ("epochs", "batch_size", "lr", "seed")}
    if settings["prior"] == "vsc":
        options["schedules"] = slab_warmup(settings["epochs"] * -(-len(train) // settings["batch_size"]))
    fitted(model, train, folder, progress=False, **options)
    return model, test


def measure(settings, folder, data_root):
    model, test = trained(settings, folder, data_root)
    found = vsc.evaluate(model, test, num_draws=settings["draws"], seed=settings["seed"])
    images = test.images[:NUM_EDITED]
    is_on = (vsc.codes(model, images).inclusion > 0.5).any(0)
    tell = is_informative(found.information.double(), found.usage.double(), found.num_data)
    used = (is_on & tell).nonzero().flatten().tolist()
    is_sparse = settings["prior"] != "normal"
    for name, picture in draw_pictures(model, test, settings["rows"], is_sparse, len(used)).items():
        write_figure(folder / f"{name}.png", picture, dpi=80)
    names = ("elbo", "iwae", "hard_r2", "expected_l0", "hoyer")
    return {name: found.as_dict()[name] for name in names} | edits_of(model, images, used)


def draw_pictures(model, test, rows, is_sparse, num_used):
    """Return figures by the names in `PICTURES`; only two of a dense code, in which nothing is off."""
    some, (first, second) = test[:NUM_EDITED], chosen(model, test[:100])
    pair, style = test.images[[first, second]], {"ink": test.name in INK}
    pictures = {
        "traversals": plots.traversals(model, some, rows, **style),
        "interpolation": plots.interpolation(model, pair, **style),
    }
    if is_sparse:
        few = some if len(some.labels.unique()) <= MOST_CLASSES else some[some.labels < MOST_CLASSES]
        pictures |= {
            "classes": plots.inclusion_map(model, few, num_latents=min(MOST_LATENTS, max(1, num_used))),
            "edits": plots.traversals(model, some, rows, datum=first, **style),
            "explanation": plots.explanation(model, pair[0], **style),
            "samples": plots.conditional_samples(model, pair[0], num=20, **style),
            "samples-other": plots.conditional_samples(model, pair[1], num=20, **style),
        }
    return pictures


def chosen(model, test):
    """Return two data of different classes: of the quarter in which the most latents are on, those decoded best."""
    codes = vsc.codes(model, test.images)
    with model.evaluating():
        decoded = model.decoder(codes.hard.to(model.reference)).mean.cpu()
    error = ((decoded - test.images) ** 2).flatten(1).sum(1) / (test.images**2).flatten(1).sum(1)
    num_on = (codes.inclusion > 0.5).sum(1)
    error[num_on < num_on.double().quantile(0.75)] = torch.inf
    first = int(error.argmin())
    return first, int(error.masked_fill(test.labels == test.labels[first], torch.inf).argmin())


def edits_of(model, images, latents):
    """Return how much the decoded picture changes when one latent that is on is switched off, and how locally.

    ``change`` is the mean absolute change of a value; ``locality`` the share of it in the tenth of values that change
    most, .1 for a change that is the same everywhere. Both are means over all pairs of a picture and a latent on in
    it; ``latents`` has them for each latent.
    """
    codes = vsc.codes(model, images)
    found = []
    with model.evaluating():
        for latent in latents:
            whole = codes.hard[codes.inclusion[:, latent] > 0.5].to(model.reference)
            less = whole.clone()
            less[:, latent] = 0
            change = (model.decoder(whole).mean - model.decoder(less).mean).abs().flatten(1)
            most = change.topk(round(SHARE * change.shape[1])).values.sum(1)
            local = (most / change.sum(1).clamp(min=1e-12)).mean()
            found.append({"on": len(whole), "change": float(change.mean()), "locality": float(local)})
    total = sum(one["on"] for one in found)
    means = {name: sum(one["on"] * one[name] for one in found) / max(total, 1) for name in ("change", "locality")}
    return means | {"latents": found}


def minutes(settings):
    return {"digits": 0.05, "olivetti": 1.5, "celeba": 12}.get(settings["dataset"], 3)


def table(results):
    rows = [
        {
            "data": NAMES[r["settings"]["dataset"]],
            "prior": prior_of(r["settings"]),
            "network; training": network_of(r["settings"]),
            "-ELBO": f"{-f['elbo']:.2f}",
            "E[L0]": f"{f['expected_l0']:.1f} of {r['settings']['latent_dim']}",
            "latents used": len(f["latents"]),
            "R2, hard code": f"{f['hard_r2']:.3f}",
            "change": f"{f['change']:.4f}",
            "locality": f"{f['locality']:.2f}",
        }
        for r in results.values()
        for f in [r["figures"]]
    ]
    return f"{markdown(rows)}\n\n{PROTOCOL}"


def prior_of(settings):
    kind = {"normal": "normal (VAE)", "vsc": "pseudo-inputs (VSC)", "learned-slab": "learned slab"}
    inclusion = f", alpha {settings['inclusion']:g}" if settings["prior"] != "normal" else ""
    return f"{kind.get(settings['prior'], 'fixed')}{inclusion}"


def network_of(settings):
    channels = ", ".join(str(number) for number in settings.get("channels", ()))
    network = f"convolutions of {channels} channels" if channels else f"{settings['hidden']} units"
    noise = f", noise {settings['scale']:g}" if "scale" in settings else ""
    return f"{network}{noise}; {settings['epochs']} epochs, batches of {settings['batch_size']}"


def draw(results):
    """Draw the locality of a latent's edits against their size, a panel for each data set."""
    datasets = list({r["settings"]["dataset"]: None for r in results.values()})
    figure = Figure(figsize=(4.5 * len(datasets) + 1, 4), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        for r in results.values():
            latents = r["figures"]["latents"]
            if r["settings"]["dataset"] == dataset:
                points = [[one[name] for one in latents] for name in ("change", "locality")]
                axes.scatter(*points, s=14, alpha=0.7, label=prior_of(r["settings"]))
        axes.axhline(SHARE, color="0.6", linewidth=1, linestyle=":")
        axes.set(xscale="log", ylim=(0, 1), title=NAMES[dataset], xlabel="mean change of a pixel, latent switched off")
        axes.set_ylabel("share of it in the tenth that changes most")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


STUDY = Study(__file__, __doc__, runs, measure, minutes, table, draw, PICTURES, absent)


if __name__ == "__main__":
    run_main(lambda: main(STUDY))
