"""What does a trained model believe, what do its latents mean, can it be trusted? One report on a run of mnist_vsc.py.

    python examples/inspect_posterior.py runs/mnist_vsc

writes to --output, the folder inspection of the run: posterior.nc, an ArviZ object for `arviz.from_netcdf`; the
figures; and report.html, one file with all figures and tables in it, which needs no network and can be sent to someone
else.
"""

import argparse
import base64
import html
import io
import sys
import time
import warnings
from pathlib import Path

import matplotlib
import torch
from common.options import natural, path, whole
from common.outputs import in_place_of
from common.running import run
from mnist_vsc import load_run
from sklearn.metrics import roc_auc_score

import vsc_pyro as vsc
from vsc_pyro import criticism, plots
from vsc_pyro.arviz_versions import compare_models, matplotlib_figure, plot_statistics
from vsc_pyro.distributions import centre, inclusion_logits, inclusion_of
from vsc_pyro.files import replacing

TEMPLATE = Path(__file__).with_suffix(".html")
OTHERS = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}  # data of the same shape that the model has not seen
NUM_EXPLAINED = 3
NUM_CHECKED = 200  # test data that replicated data are held against
NUM_IMPUTED = 100
NUM_BOUNDED = 1000
BOUND_DRAWS = 20
FIGURES = (
    *(f"{name}_{i}" for i in range(NUM_EXPLAINED) for name in ("code", "explanation")),
    *("latents_on", "inclusion_by_class", "inclusion_by_datum", "inclusion_usage"),
    *("traversals", "traversal", "conditional_samples", "interpolation", "embedding", "manifold", "pseudo_inputs"),
    *("predictive_check", "prior_samples", "reliability", "ranks", "imputations", "bounds"),
)
FILES = ("report.html", "posterior.nc", *(f"{name}.png" for name in FIGURES))


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=path, metavar="RUN_DIR", help="where mnist_vsc.py left a finished run")
    add("--compare", type=path, nargs="+", default=[], metavar="RUN_DIR", help="other finished runs of the same data")
    add("--data-root", type=path, help="folder that holds MNIST/raw or FashionMNIST/raw")
    add("--num-data", type=whole, default=16, help="test images whose posterior is kept")
    add("--num-samples", type=whole, default=500, help="draws of each of their codes")
    add("--seed", type=natural, default=0)
    add("--output", type=path, metavar="DIR", help="default: inspection in RUN_DIR")
    add("--overwrite", action="store_true", help="replace the report that is there")
    return parser.parse_args(argv)


class Report:
    """Headings, sentences, tables and figures in their order; figures are files of their own, too."""

    def __init__(self, folder, title):
        self.folder, self.title = folder, title
        self.parts, self.headings = [], []

    def heading(self, text):
        self.headings.append(text)
        self.parts.append(f'<h2 id="part{len(self.headings)}">{html.escape(text)}</h2>')

    def text(self, sentence):
        self.parts.append(f"<p>{html.escape(sentence)}</p>")

    def table(self, frame, caption, index=True):
        self.text(caption)
        style = {"border": 0, "float_format": "{:.6g}".format, "justify": "left", "na_rep": "", "index": index}
        self.parts.append(frame.to_html(**style))

    def figure(self, name, figure, caption):
        picture = io.BytesIO()
        figure.savefig(picture, dpi=130, bbox_inches="tight", format="png")
        with replacing(self.folder / f"{name}.png") as temporary:
            temporary.write_bytes(picture.getvalue())
        source = base64.b64encode(picture.getvalue()).decode()
        caption = html.escape(caption)
        image = f'<img src="data:image/png;base64,{source}" alt="{caption}">'
        self.parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")

    def arviz_figure(self, name, shown, label, caption):
        """One that ArviZ drew, whose axes say nothing of what they show."""
        figure = matplotlib_figure(shown)
        for axes in figure.axes:
            axes.tick_params(labelsize=8)
            axes.set_xlabel(label, fontsize=9)
        self.figure(name, figure, caption)

    def write(self):
        links = "".join(f'<a href="#part{i}">{html.escape(text)}</a>' for i, text in enumerate(self.headings, 1))
        body = "\n".join([f"<nav>{links}</nav>", *self.parts])
        page = TEMPLATE.read_text(encoding="utf-8")
        page = page.replace("{{title}}", html.escape(self.title)).replace("{{body}}", body)
        with replacing(self.folder / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8")


class Subject:
    """The model in question, its data, and what of them more than one part of the report asks for."""

    def __init__(self, args):
        import pandas

        self.args, self.frame = args, pandas.DataFrame
        self.model, self.settings, self.metrics, self.train, self.test = load_run(args.run, args.data_root)
        self.others = {str(folder): self.comparable(folder) for folder in args.compare}
        generator = torch.Generator().manual_seed(args.seed)
        self.x = self.test.draw(slice(max(NUM_IMPUTED, NUM_EXPLAINED)), generator)
        with self.model.evaluating():
            posterior = self.model.encoder(self.x.to(self.model.reference))
        self.has_spikes = inclusion_logits(posterior) is not None
        self.active = (inclusion_of(posterior) > 0.5).any(1).cpu()  # data that have something to explain
        # The latent that says most about the first datum: surely on, and large.
        self.latent = int(centre(posterior)[0].abs().argmax())

    def comparable(self, folder):
        """The model of another run of the same data."""
        if folder.resolve() == self.args.run.resolve():
            raise ValueError(f"--compare {folder} is the run itself; name another")
        model, _, _, _, test = load_run(folder, self.args.data_root)
        if (test.name, test.binarize) != (self.test.name, self.test.binarize):
            raise ValueError(
                f"--compare {folder} is of {test.name}, binarisation {test.binarize}, and {self.args.run} of "
                f"{self.test.name}, {self.test.binarize}; compare runs of the same data"
            )
        return model

    def row(self, **values):
        return self.frame([values])


def believes(report, subject):
    report.heading("What does it believe about this image?")
    report.text(
        "For each image the encoder says with what probability each latent is on, and about which value it then has. "
        "What a latent contributes is what the decoded picture loses without it."
    )
    for i in range(NUM_EXPLAINED):
        report.figure(f"code_{i}", plots.code(subject.model, subject.x[i]), f"Test image {i} and its code.")
        if not subject.active[i]:
            report.text(f"No latent of test image {i} is more likely on than off.")
            continue
        caption = f"Test image {i} explained: what each active latent adds (and takes away), largest first."
        report.figure(f"explanation_{i}", plots.explanation(subject.model, subject.x[i]), caption)


def is_sure(report, subject, inference):
    import arviz

    report.heading("Which latents are on, and how sure is it?")
    if not subject.has_spikes:
        report.text("This posterior has no spikes: every latent is always on.")
        return
    active = inference["posterior"]["active"]
    on = active.sum("latent").astype(float).to_dataset(name="on")
    caption = f"How many latents are on in each of the first {on.sizes['datum']} test images, on[image]."
    report.arviz_figure("latents_on", arviz.plot_forest(on, combined=True), "latents on", caption)
    summary = arviz.summary(inference, var_names=["active"], kind="stats", round_to=4)[["mean", "sd"]]
    summary.insert(0, "inclusion_prob", inference["constant_data"]["inclusion_prob"].values.flatten())
    least_sure = summary.iloc[(summary["inclusion_prob"] - 0.5).abs().argsort()[:12]]
    report.table(least_sure, "The latents that it is least sure of, [image, latent], drawn and exact (inclusion_prob):")
    if subject.test.labels is not None:
        by_class = plots.inclusion_map(subject.model, subject.test, seed=subject.args.seed)
        report.figure("inclusion_by_class", by_class, "Latents by class.")
    by_datum = plots.inclusion_map(subject.model, subject.test, by="datum", seed=subject.args.seed)
    report.figure("inclusion_by_datum", by_datum, "Latents by image, sorted by class.")
    usage = plots.inclusion_usage(subject.model, subject.test, seed=subject.args.seed)
    report.figure("inclusion_usage", usage, "How much each latent is used, against what the prior said.")


def means(report, subject):
    model, x, latent = subject.model, subject.x, subject.latent
    report.heading("What does each latent mean?")
    report.figure(
        "traversals", plots.traversals(model, subject.test, seed=subject.args.seed), "The most used latents, moved."
    )
    report.figure("traversal", plots.traversal(model, x[0], latent), f"Latent {latent} of the first image, off and on.")
    redrawn = plots.conditional_samples(model, x[0], latent)
    report.figure(
        "conditional_samples", redrawn, "The same latent off, and on with its value drawn anew from the prior."
    )
    first, *others = subject.active.nonzero().flatten().tolist() or [None]
    if subject.test.labels is not None:
        others = [i for i in others if subject.test.labels[i] != subject.test.labels[first]]
    if others:
        between = plots.interpolation(model, x[[first, others[0]]])
        report.figure("interpolation", between, "From one image to another, by the latents that are on in either.")
    if model.decoder.latent_dim > 1:
        report.figure(
            "embedding", plots.embedding(model, subject.test, seed=subject.args.seed), "Codes of test images."
        )
    if model.decoder.latent_dim == 2:
        report.figure(
            "manifold",
            plots.manifold(model, subject.test, seed=subject.args.seed),
            "What the two latents draw, over the prior's range.",
        )
    if hasattr(model.prior, "pseudo_inputs"):
        report.figure(
            "pseudo_inputs", plots.pseudo_inputs(model, subject.test, seed=subject.args.seed), "Pseudo-inputs."
        )


def generates(report, subject):
    report.heading("Does it make such data?")
    some = subject.test[:NUM_CHECKED]
    inference = vsc.to_arviz(subject.model, some, 50, log_likelihood=False, seed=subject.args.seed)
    statistics = dict(criticism.STATISTICS)
    if subject.has_spikes:
        statistics["active_latents"] = criticism.active_latents(subject.model)
    checks = {group: vsc.predictive_check(inference, statistics, group) for group in ("posterior", "prior")}
    rows = []
    for name in statistics:
        for group, check in checks.items():
            observed = float(check["observed_data"][name].mean())
            mean = check["posterior_predictive"][name].mean("datum")
            low, high = mean.quantile([0.03, 0.97]).values
            values = {"observed": observed, "predicted": float(mean.mean()), "3 %": low, "97 %": high}
            rows.append({"statistic": name, "by": group} | values | {"share above": float((mean > observed).mean())})
    caption = (
        f"Mean over {len(some)} test images, and of as many that the model makes: given the code of each (posterior) "
        "or from codes of the prior; 50 times, their interval, and how often they exceed the data's."
    )
    report.table(subject.frame(rows).set_index(["statistic", "by"]), caption)
    caption = "Means over images, of the data and of predictions given their codes (bpv: how often these are lower)."
    report.arviz_figure("predictive_check", plot_statistics(checks["posterior"]), "mean over images", caption)
    report.figure(
        "prior_samples",
        plots.prior_samples(subject.model, subject.test, seed=subject.args.seed),
        "Images made from codes of the prior.",
    )


def is_calibrated(report, subject):
    report.heading("Can its probabilities be trusted?")
    result = vsc.check_calibration(subject.model, seed=subject.args.seed)
    report.text(
        "Codes are drawn from the prior, images from the decoder, and the encoder is asked for the codes, whose truth "
        "is then known: this tests the encoder, on the model's own data."
    )
    found = {name: value for name, value in result.as_dict().items() if isinstance(value, (int, float))}
    report.table(subject.row(**found), "Calibration, by the measures of vsc_pyro.check_calibration:", index=False)
    if subject.has_spikes:
        report.figure(
            "reliability", plots.reliability({"encoder": result}), "Probability that is said, share that is on."
        )
    report.figure(
        "ranks", plots.rank_histograms({"encoder": result}), "Ranks of true codes among draws; flat is right."
    )


def imputes(report, subject):
    report.heading("What if half of the image is missing?")
    x = subject.x[:NUM_IMPUTED]
    mask = torch.ones(x.shape[1:], dtype=torch.bool)
    mask[..., x.shape[-2] // 2 :, :] = False
    found = subject.model.impute(x, mask, num_samples=10, seed=subject.args.seed + 1)  # not the stream of x
    missing = ~mask.expand(x.shape)
    guesses = {"impute": found.mean.cpu(), "mean training image": subject.train.images.mean(0).expand(x.shape)}
    rows = []
    for name, guess in guesses.items():
        p, truth = guess[missing].clamp(1e-4, 1 - 1e-4), x[missing]
        entropy = -(truth * p.log() + (1 - truth) * (1 - p).log())
        rows.append(
            {"by": name, "squared error": float((p - truth).square().mean()), "cross-entropy": float(entropy.mean())}
        )
    caption = f"Lower half of {len(x)} test images hidden; means per hidden pixel (as the model saw them, nats):"
    report.table(subject.frame(rows).set_index("by"), caption)
    figure = plots.imputations(subject.model, subject.test, mask, seed=subject.args.seed)
    report.figure(
        "imputations", figure, "What is observed, the mean of what may be missing, draws of it, and the whole image."
    )


def is_surprised(report, subject):
    report.heading("Does it notice what it has not seen?")
    generator = torch.Generator().manual_seed(subject.args.seed)
    test = subject.test[:NUM_BOUNDED]
    order = torch.randperm(test.images[0].numel(), generator=generator)
    shuffled = test.images.flatten(1)[:, order].reshape(test.images.shape)
    data = {test.name: test, "the same, pixels shuffled": vsc.Dataset(shuffled, binarize=test.binarize)}
    if test.name in OTHERS:
        try:
            # Binarised, or not, as the model's own test data: else the bounds would tell that.
            other = vsc.datasets.load(OTHERS[test.name], subject.args.data_root, None, download=False).test
            data[other.name] = other.binarized(test.binarize, generator)[:NUM_BOUNDED]
        except FileNotFoundError as error:
            print(f"{OTHERS[test.name]} is not at hand and is left out of the report ({error})", file=sys.stderr)
    found = {
        name: vsc.bounds(subject.model, some, num_draws=BOUND_DRAWS, seed=subject.args.seed)
        for name, some in data.items()
    }
    inside, *_ = found.values()
    rows = []
    for name, result in found.items():
        truth = torch.cat([torch.zeros(len(inside.iwae)), torch.ones(len(result.iwae))])
        scores = -torch.cat([inside.iwae, result.iwae])
        auroc = roc_auc_score(truth, scores) if result is not inside else None
        rows.append({"data": name, "mean bound": float(result.iwae.mean()), "AUROC of minus the bound": auroc})
    caption = (
        f"Bound of {BOUND_DRAWS} draws for each of {len(test)} images. AUROC: how often unseen data are lower; "
        "0.5 is chance, 1 always. A high bound is no proof of having been seen: simpler data often have a higher one."
    )
    report.table(subject.frame(rows).set_index("data"), caption)
    report.figure("bounds", plots.bound_histograms(found), "The bound of each image.")


def compares(report, subject):
    report.heading("Is another model better?")
    test, found = subject.test[:NUM_BOUNDED], {}
    for name, model in {str(subject.args.run): subject.model, **subject.others}.items():
        draws = vsc.to_arviz(model, test, 100, predictive=False, prior=False, seed=subject.args.seed)
        found[name] = vsc.elpd(draws)
    caption = f"Log-likelihood of {len(test)} test images, importance-weighted, 100 draws (elpd):"
    report.table(compare_models(found), caption)


def main(argv=None):
    args = parse(argv)
    start = time.perf_counter()
    output = args.output or args.run / "inspection"
    there = [output / name for name in FILES if (output / name).exists()]
    if there and not args.overwrite:
        raise SystemExit(
            f"{output} holds a report ({there[0].name}); pass --overwrite to replace it, or another --output"
        )
    matplotlib.use("Agg")  # for ArviZ, which would open windows
    subject = Subject(args)
    with in_place_of(output, FILES):  # of another model some might have no successor
        report = Report(
            output, f"{subject.test.name}, {subject.settings.prior} prior, {subject.settings.latent_dim} latents"
        )
        names = ("epochs", "test_elbo", "test_iwae", "test_kl", "expected_l0", "hard_l0", "hoyer", "active_units")
        report.table(
            subject.row(**{name: subject.metrics[name] for name in names}), f"{args.run}, as trained:", index=False
        )
        inference = vsc.to_arviz(subject.model, subject.test[: args.num_data], args.num_samples, seed=args.seed)
        with replacing(output / "posterior.nc") as temporary:
            inference.to_netcdf(temporary)

        believes(report, subject)
        is_sure(report, subject, inference)
        means(report, subject)
        generates(report, subject)
        is_calibrated(report, subject)
        imputes(report, subject)
        is_surprised(report, subject)
        if args.compare:
            compares(report, subject)
        report.write()
    seconds = time.perf_counter() - start
    size = (output / "report.html").stat().st_size / 1e6
    print(f"{output / 'report.html'}, {size:.1f} MB, and {output / 'posterior.nc'} in {seconds:.0f} s")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    run(main)
