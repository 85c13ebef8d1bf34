"""Denoise images by scikit-learn's decompositions and by the spike-and-slab coder, all as steps of a Pipeline.

    python examples/sklearn_denoising.py --data-root FOLDER

adds normal noise to scikit-learn's digits and, if FOLDER holds olivetti.npz (the Olivetti faces, arrays `images` and
`target`), to faces at half their resolution. Contestants see noisy images only. GridSearchCV chooses their settings:
the least squared error against the clean images of a quarter of the training data. Pixels keep their scales, because
the noise of all is equal. The table has figures of test images, a fifth of all:

* PSNR in dB, for a range of grey levels of 1, and squared error, the sum over the pixels of an image;
* active: the mean number of nonzero codes of an image. Of posterior means none is 0, and the expected number of latents
  that are on is counted. "Hard codes" are those of the same coder with threshold=.5, whose zeros are exact;
* probe: the accuracy of a logistic regression on the codes of noisy images, for the digit or the person;
* seconds: of the search, for all settings.

It prints the table, and writes it to results.json with the validation scores, and a figure, to --output.
"""

import time
import warnings

import numpy as np
from common.files import markdown, write_figure, write_json
from common.options import add_output, described, path, positive, whole
from common.outputs import refuse_to_replace
from common.running import run
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF, PCA, FactorAnalysis, FastICA, MiniBatchDictionaryLearning, MiniBatchSparsePCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, ShuffleSplit, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from tqdm.auto import tqdm

from vsc_pyro import SpikeSlabCoder

FILES = "results.json", "denoising.png"


def contestants(args):
    """Return decompositions with the grids of their settings."""
    seed, few, many = {"random_state": args.seed}, {"n_components": args.few}, {"n_components": args.many}
    dictionary = MiniBatchDictionaryLearning(
        max_iter=50, batch_size=100, fit_algorithm="cd", transform_algorithm="lasso_cd", **seed
    )
    coder = SpikeSlabCoder(noise="learned", learning_rate=3e-3, device=args.device, **seed)
    return [
        (PCA(**seed), few),
        (FactorAnalysis(**seed), few),
        (FastICA(whiten="unit-variance", max_iter=500, **seed), few),
        (NMF(max_iter=1000, **seed), few),
        (MiniBatchSparsePCA(**seed), few | {"alpha": [0.1, 0.3, 1.0]}),
        (dictionary, many | {"alpha": [0.1, 0.2, 0.3, 0.5, 1.0]}),
        (coder, many | {"inclusion": [0.1, 0.3, 0.5, 0.7], "max_iter": args.epochs}),
    ]


def denoised(pipe, noisy):
    codes, model = pipe.transform(noisy), pipe["code"]
    # FactorAnalysis has no inverse_transform.
    decoded = model.inverse_transform(codes) if hasattr(model, "inverse_transform") else codes @ model.components_
    return pipe["scale"].inverse_transform(decoded)


def figures(pipe, noisy, clean):
    """Return the figures of a Pipeline by name; a scorer of GridSearchCV, whose targets are the clean images."""
    error, on = np.square(denoised(pipe, noisy) - clean), pipe.transform(noisy) != 0
    if getattr(pipe["code"], "threshold", 0) is None:
        on = pipe["code"].predict_inclusion(pipe["scale"].transform(noisy))
    means = {"squared error": error.sum(1).mean(), "active": on.sum(1).mean()}
    return {"PSNR": float(-10 * np.log10(error.mean()))} | {key: float(mean) for key, mean in means.items()}


def compare(args, data, clean, labels):
    """Return a row for each contestant, the validation scores of all settings, and denoised test images."""
    noisy = clean + args.noise * np.random.default_rng(args.seed).normal(size=clean.shape)
    split = train_test_split(noisy, clean, labels, test_size=0.2, stratify=labels, random_state=args.seed)
    noisy, test, clean, clean_test, labels, labels_test = split
    rows, scores, shown = [], {}, {"clean": clean_test[:8], "noisy": test[:8]}

    def measure(name, pipe, search, seconds):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        accuracy = probe.fit(pipe.transform(noisy), labels).score(pipe.transform(test), labels_test)
        chosen = ", ".join(f"{key.removeprefix('code__')}={value}" for key, value in search.best_params_.items())
        rows.append({"data": data, "contestant": name, "settings": chosen, **figures(pipe, test, clean_test)})
        rows[-1] |= {"probe": float(accuracy), "seconds": seconds}

    for decomposition, grid in tqdm(contestants(args), desc=data, disable=args.quiet):
        start, name = time.perf_counter(), type(decomposition).__name__
        scale = MinMaxScaler(clip=True) if isinstance(decomposition, NMF) else StandardScaler(with_std=False)
        pipe = Pipeline([("scale", scale), ("code", decomposition)])
        grid = {f"code__{key}": values for key, values in grid.items()}
        cv = ShuffleSplit(1, test_size=0.25, random_state=args.seed)
        search = GridSearchCV(pipe, grid, scoring=figures, refit="PSNR", cv=cv, error_score="raise").fit(noisy, clean)
        best, found = search.best_estimator_, search.cv_results_
        measure(name, best, search, time.perf_counter() - start)
        scores[name] = {key: found[f"mean_test_{key}"].tolist() for key in ("active", "squared error")}
        scores[name]["settings"], shown[name] = found["params"], denoised(best, test[:8])
    best["code"].set_params(threshold=0.5)
    measure(f"{name}, hard codes", best, search, rows[-1]["seconds"])
    return rows, scores, shown


def drawing(results):
    """Return a figure: for each data set, validation errors of all settings, and test images."""
    figure = Figure(figsize=(11, 4.6 * len(results)), layout="constrained")
    parts = figure.subfigures(len(results), 2, squeeze=False)
    for (data, (rows, scores, shown)), (left, right) in zip(results.items(), parts, strict=True):
        axes = left.subplots()
        for name, found in scores.items():
            axes.scatter(found["active"], found["squared error"], s=14, label=name)
        axes.set(xlabel="active codes of an image", ylabel="squared error", title=f"{data}: all settings, validation")
        axes.set(xscale="log", xlim=(1, None), ylim=(None, 2 * min(row["squared error"] for row in rows)))
        axes.legend(fontsize=7)
        for axes, (name, x) in zip(right.subplots(len(shown), 1), shown.items(), strict=True):
            side = int(x.shape[1] ** 0.5)
            axes.imshow(np.hstack(x.reshape(-1, side, side)), cmap="gray", vmin=0, vmax=1)
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
            axes.set(xticks=[], yticks=[])
    return figure


def images(args):
    """Return images in [0, 1], as rows, and labels, by name."""
    digits, labels = load_digits(return_X_y=True)
    found = {"digits": (digits / 16, labels)}
    if args.data_root is not None:
        with np.load(args.data_root / "olivetti.npz") as file:
            faces = file["images"].reshape(-1, 32, 2, 32, 2).mean((2, 4)) / 255
            found["faces"] = faces.reshape(len(faces), -1), file["target"]
    return {name: (x[: args.num_images], labels[: args.num_images]) for name, (x, labels) in found.items()}


def main(argv=None):
    parser = described(__doc__)
    add = parser.add_argument
    add("--data-root", type=path, metavar="FOLDER", help="folder that holds olivetti.npz; default: digits only")
    add("--noise", type=positive, default=0.25, help="standard deviation of the noise; grey levels are in [0, 1]")
    add("--few", type=whole, nargs="+", default=[8, 12, 16, 24, 32, 48, 64], help="numbers of dense components")
    add("--many", type=whole, nargs="+", default=[16, 32, 64, 128], help="numbers of sparse components")
    add("--epochs", type=whole, nargs="+", default=[50, 100, 300], help="numbers of epochs of the coder")
    add("--num-images", type=whole, help="take the first images only")
    add_output(parser, "runs/sklearn_denoising")
    args = parser.parse_args(argv)
    refuse_to_replace(args, *FILES)
    warnings.simplefilter("ignore", ConvergenceWarning)  # FastICA may not converge on noise
    results = {name: compare(args, name, *arrays) for name, arrays in images(args).items()}
    rows = [row for rows, _, _ in results.values() for row in rows]
    table = [{key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    print(markdown(table), f"Test images with normal noise of standard deviation {args.noise:g}.", sep="\n\n")
    scores = {name: scores for name, (_, scores, _) in results.items()}
    write_json(args.output / FILES[0], {"noise": args.noise, "seed": args.seed, "rows": rows, "validation": scores})
    write_figure(args.output / FILES[1], drawing(results), dpi=110)


if __name__ == "__main__":
    run(main)
