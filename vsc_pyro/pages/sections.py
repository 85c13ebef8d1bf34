"""The sections of a report on a trained model; each answers one question."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor

from vsc_pyro import plots
from vsc_pyro.arviz_bridge import predictive_checks
from vsc_pyro.arviz_bridge.to_arviz import to_arviz
from vsc_pyro.arviz_bridge.versions import compare_models, plot_statistics
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.bounds import bounds
from vsc_pyro.evaluation.calibration import check_calibration
from vsc_pyro.evaluation.codes import codes
from vsc_pyro.evaluation.probes import auroc
from vsc_pyro.evaluation.survey import comparable, decoded
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.pages.document import Document
from vsc_pyro.pages.inspection import BOUND_DRAWS, NUM_BOUNDED, NUM_EXPLAINED, NUM_IMPUTED, Subject

_NUM_CHECKED = 200  # data compared with replicated data, fewer if they are large
_CHECK_DRAWS = 50
_NUMBERS_CHECKED = 20_000_000  # greatest number of values in the replicated data
_NUM_EXPLAINED_BY_FEATURE = 1000  # data
_MOST_ROWS = 40


def single_codes(document: Document, subject: Subject) -> None:
    """Codes of single data, and the contribution of each latent."""
    document.heading("What does it believe about this datum?")
    document.text(
        "For each datum the encoder returns the probability that each latent is on, and a distribution of its value if "
        "it is. The contribution of a latent is what the decoded datum loses without it."
    )
    for i, x in enumerate(subject.x[:NUM_EXPLAINED]):
        document.figure(f"code_{i}", plots.code(subject.model, x, names=subject.names), f"Datum {i} and its code.")
        if not (subject.codes.inclusion[i] > 0.5).any():
            document.text(f"No latent of datum {i} is more likely on than off.")
            continue
        caption = f"Datum {i} explained: what each active latent adds (and removes), largest first."
        document.figure(f"explanation_{i}", plots.explanation(subject.model, x, names=subject.names), caption)


def inclusion(document: Document, subject: Subject) -> None:
    """Inclusion probabilities of latents, and how often they are on."""
    document.heading("Which latents are on, and how sure is it?")
    if not subject.has_spikes:
        document.text("This posterior has no spikes: every latent is always on.")
        return
    model, data, seed = subject.model, subject.data, subject.seed
    if subject.inference is not None:
        _posterior_draws(document, subject)
    if data.labels is not None:
        document.figure("inclusion_by_class", plots.inclusion_map(model, data, seed=seed), "Latents by class.")
    by_datum = plots.inclusion_map(model, data, by="datum", seed=seed)
    sorted_by = ", sorted by class" if data.labels is not None else ""
    document.figure("inclusion_by_datum", by_datum, f"Latents by datum{sorted_by}.")
    with document.unless_refused("The use of latents is"):
        usage = plots.inclusion_usage(model, data, seed=seed)
        document.figure("inclusion_usage", usage, "How much each latent is used, against the prior.")


def _posterior_draws(document: Document, subject: Subject) -> None:
    import arviz

    inference = subject.inference
    active = inference["posterior"]["active"]
    on = active.sum("latent").astype(float).to_dataset(name="on")
    caption = f"How many latents are on in each of the first {on.sizes['datum']} data, on[datum]."
    with pyplot.ioff():
        document.arviz_figure("latents_on", arviz.plot_forest(on, combined=True), "latents on", caption)
    summary: Any = arviz.summary(inference, var_names=["active"], kind="stats", round_to=4)[["mean", "sd"]]
    summary.insert(0, "inclusion_prob", inference["constant_data"]["inclusion_prob"].values.flatten())
    least_sure = summary.iloc[(summary["inclusion_prob"] - 0.5).abs().argsort()[:12]]
    document.table(least_sure, "The least certain latents, [datum, latent], drawn and exact (inclusion_prob):")


def latents(document: Document, subject: Subject) -> None:
    """The effect of latents on decoded data, and the distribution of codes."""
    model, data, x, latent, seed = subject.model, subject.data, subject.x, subject.latent, subject.seed
    document.heading("What does each latent mean?")
    document.figure(
        "traversals", plots.traversals(model, data, seed=seed, names=subject.names), "The most used latents, moved."
    )
    with document.unless_refused("The traversal and the samples of one latent are"):
        document.figure(
            "traversal",
            plots.traversal(model, x[0], latent, names=subject.names),
            f"Latent {latent} of datum 0, off and on.",
        )
        redrawn = plots.conditional_samples(model, x[0], latent, names=subject.names)
        caption = "The same latent off, and on with its value redrawn from the prior."
        document.figure("conditional_samples", redrawn, caption)
    loadings = plots.loadings(model, subject.names, data, seed=seed)
    document.figure("loadings", loadings, "The features that each of the most used latents changes most.")
    if pair := _pair(subject):
        between = plots.interpolation(model, x[pair], names=subject.names)
        document.figure("interpolation", between, "From one datum to another, by the latents that are on in either.")
    if getattr(model.decoder, "is_linear", False):
        document.figure(
            "receptive_fields", plots.receptive_fields(model, names=subject.names), "Atoms of the linear decoder."
        )
    num_latents = subject.codes.centre.shape[1]
    if num_latents > 1 and len(data) > 1:
        document.figure("embedding", plots.embedding(model, data, seed=seed), "Codes of the data.")
    if num_latents == 2:
        with document.unless_refused("The plane of the two latents is"):
            plane = plots.manifold(model, data, seed=seed, names=subject.names)
            document.figure("manifold", plane, "Decoded codes of the two latents, over the prior's range.")
    if hasattr(model.prior, "pseudo_inputs"):
        document.figure(
            "pseudo_inputs", plots.pseudo_inputs(model, data, seed=seed, names=subject.names), "Pseudo-inputs."
        )


def _pair(subject: Subject) -> list[int]:
    """Return the indices of two data with latents on, from different classes if there are labels."""
    first, *others = (subject.codes.inclusion > 0.5).any(1).nonzero().flatten().tolist() or [None]
    labels = subject.data.labels
    if labels is not None:
        others = [i for i in others if labels[i] != labels[first]]
    return [first, others[0]] if others else []


def features(document: Document, subject: Subject) -> None:
    """Share of each feature's variance that the codes explain, for data other than images."""
    if subject.is_image:
        return
    document.heading("Which features does it explain?")
    model = subject.model
    generator = torch.Generator().manual_seed(subject.seed)
    x = subject.data[:_NUM_EXPLAINED_BY_FEATURE].draw(slice(None), generator)
    with model.evaluating():
        truth, rows = comparable(model, x.to(model.reference))
        means = decoded(model, codes(model, x).hard.to(model.reference), rows).mean
    truth, means = truth.cpu().flatten(1), means.cpu().flatten(1)
    errors, spread = (truth - means).square().mean(0), truth.var(0, correction=0)
    share = 1 - errors / spread.clamp(min=1e-30)
    order = share.argsort(descending=True)
    named = range(truth.shape[1]) if subject.names is None else subject.names
    rows = [
        {"feature": named[i], "mean": float(truth[:, i].mean()), "sd": float(spread[i].sqrt()), "R2": float(share[i])}
        for i in order[:_MOST_ROWS].tolist()
        if spread[i] > 0
    ]
    which = f"the {len(rows)} best" if len(order) > _MOST_ROWS else "all"
    caption = f"Share of the variance of each feature over {len(truth)} data that the decoded hard code explains, "
    document.table(subject.frame(rows), f"{caption}{which} of {len(order)} features:", index=False)


def generation(document: Document, subject: Subject) -> None:
    """Predictive checks, and samples of the prior."""
    document.heading("Does it make such data?")
    with document.unless_refused("Predictions are"):
        _predictive_checks(document, subject)
    with document.unless_refused("Samples of the prior are"):
        samples = plots.prior_samples(subject.model, subject.data, seed=subject.seed, names=subject.names)
        document.figure("prior_samples", samples, "Data made from codes of the prior.")


def _predictive_checks(document: Document, subject: Subject) -> None:
    numbers = _CHECK_DRAWS * subject.x[0].numel()
    some = subject.data[: max(8, min(_NUM_CHECKED, _NUMBERS_CHECKED // numbers))]
    prior, seed = subject.has_prior, subject.seed
    inference = to_arviz(subject.model, some, _CHECK_DRAWS, prior=prior, log_likelihood=False, seed=seed)
    of_pictures = subject.is_image and subject.is_binary
    statistics = dict(predictive_checks.STATISTICS if of_pictures else predictive_checks.VECTOR_STATISTICS)
    if subject.has_spikes:
        statistics["active_latents"] = predictive_checks.active_latents(subject.model)
    groups = ("posterior", "prior") if prior else ("posterior",)
    checks: dict[str, Any] = {
        group: predictive_checks.predictive_check(inference, statistics, group) for group in groups
    }
    rows = []
    for name in statistics:
        for group, check in checks.items():
            observed = float(check["observed_data"][name].mean())
            mean = check["posterior_predictive"][name].mean("datum")
            low, high = mean.quantile([0.03, 0.97]).values
            values = {"observed": observed, "predicted": float(mean.mean()), "3 %": low, "97 %": high}
            rows.append({"statistic": name, "by": group} | values | {"share above": float((mean > observed).mean())})
    caption = (
        f"Mean over {len(some)} data, and over as many that the model makes: given the code of each (posterior) or "
        f"from codes of the prior; {_CHECK_DRAWS} times, their interval, and how often they exceed the data's."
    )
    document.table(subject.frame(rows).set_index(["statistic", "by"]), caption)
    caption = "Means over data, of the data and of predictions given their codes (bpv: how often these are lower)."
    with pyplot.ioff(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your data appears to have a single value")  # the minimum of binary data
        document.arviz_figure("predictive_check", plot_statistics(checks["posterior"]), "mean over data", caption)


def calibration(document: Document, subject: Subject) -> None:
    """Calibration of the codes inferred from the model's own data."""
    document.heading("Can its probabilities be trusted?")
    with document.unless_refused("Calibration is"):
        result = check_calibration(subject.model, seed=subject.seed)
        document.text(
            "Codes are drawn from the prior and data from the decoder, and the encoder infers the codes, whose true "
            "values are known: this tests the encoder, on the model's own data."
        )
        found = {name: value for name, value in result.as_dict().items() if isinstance(value, (int, float))}
        caption = "Calibration, by the measures of vsc_pyro.check_calibration:"
        document.table(subject.frame([found]), caption, index=False)
        if subject.has_spikes:
            curve = plots.reliability({"encoder": result})
            document.figure("reliability", curve, "Stated inclusion probability, and share of latents that are on.")
        ranks = plots.rank_histograms({"encoder": result})
        document.figure("ranks", ranks, "Ranks of true codes among draws; flat is right.")


def imputation(document: Document, subject: Subject) -> None:
    """Imputation of half of each datum."""
    x = subject.x[:NUM_IMPUTED]
    if x[0].numel() < 2:
        return
    document.heading("What if half of the datum is missing?")
    mask, hidden = _half(subject, x)
    with document.unless_refused("Missing values are"):
        found = subject.model.impute(x, mask, num_samples=10, seed=subject.seed + 1)  # not the seed of x
        missing = ~mask.expand(x.shape)
        guesses = {"impute": found.mean.cpu(), "mean of the data": subject.train.images.mean(0).cpu().expand(x.shape)}
        rows = []
        for name, guess in guesses.items():
            guess, truth = guess[missing], x.cpu()[missing]
            row = {"by": name, "squared error": float((guess - truth).square().mean())}
            if subject.is_binary:
                p = guess.clamp(1e-4, 1 - 1e-4)
                row["cross-entropy"] = float(-(truth * p.log() + (1 - truth) * (1 - p).log()).mean())
            rows.append(row)
        units = " (as the model saw them, nats)" if subject.is_binary else ""
        caption = f"{hidden} of {len(x)} data hidden; means per hidden value{units}:"
        document.table(subject.frame(rows).set_index("by"), caption)
        figure = plots.imputations(subject.model, subject.data, mask, seed=subject.seed, names=subject.names)
        caption = "The observed values, the mean of the missing ones, draws of them, and the truth."
        document.figure("imputations", figure, caption)


def _half(subject: Subject, x: Tensor) -> tuple[Tensor, str]:
    mask = torch.ones(x.shape[1:], dtype=torch.bool)
    if subject.is_image:
        mask[..., x.shape[-2] // 2 :, :] = False
        return mask, "Lower half"
    hidden = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(subject.seed))[: mask.numel() // 2]
    mask.view(-1)[hidden] = False
    return mask, "The same random half of the features"


def novelty(document: Document, subject: Subject) -> None:
    """Bounds of the data, and of other data."""
    document.heading("Does it notice what it has not seen?")
    data = subject.data[:NUM_BOUNDED]
    generator = torch.Generator().manual_seed(subject.seed)
    order = torch.randperm(data.images[0].numel(), generator=generator)
    shuffled = data.images.flatten(1)[:, order].reshape(data.images.shape)
    others = {name: in_memory(other) for name, other in subject.unseen.items()}
    everything = {data.name: data, "the same, values shuffled": Dataset(shuffled, binarize=data.binarize), **others}
    with document.unless_refused("Bounds are"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "all bounds are NaN")  # the report says so below
        found = {
            name: bounds(subject.model, some[:NUM_BOUNDED], num_draws=BOUND_DRAWS, seed=subject.seed)
            for name, some in everything.items()
        }
        inside, *_ = found.values()
        if inside.no_bound:
            raise ValueError(f"the model has none: {inside.no_bound}")
        rows = []
        for name, result in found.items():
            scores = -torch.cat([inside.iwae, result.iwae])
            outside = np.arange(len(scores)) >= len(inside.iwae)
            area = None if result is inside else float(auroc(scores[:, None], outside[:, None].astype(float))[0, 0])
            rows.append({"data": name, "mean bound": float(result.iwae.mean()), "AUROC of minus the bound": area})
        caption = (
            f"Bound of {BOUND_DRAWS} draws for each of {len(data)} data. AUROC: how often unseen data are lower; 0.5 "
            "is chance, 1 is always. A high bound does not prove that data are familiar: simpler data often have a "
            "higher one."
        )
        document.table(subject.frame(rows).set_index("data"), caption)
        document.figure("bounds", plots.bound_histograms(found), "The bound of each datum.")


def comparison(document: Document, subject: Subject) -> None:
    """Importance-weighted likelihoods of several models."""
    if not subject.compare:
        return
    document.heading("Is another model better?")
    with document.unless_refused("The comparison is"):
        data, found = subject.data[:NUM_BOUNDED], {}
        for name, model in {subject.name: subject.model, **subject.compare}.items():
            draws = to_arviz(model, data, 100, predictive=False, prior=False, seed=subject.seed)
            found[name] = predictive_checks.elpd(draws)
        caption = f"Log-likelihood of {len(data)} data, importance-weighted, 100 draws (elpd):"
        document.table(compare_models(found), caption)


SECTIONS = (single_codes, inclusion, latents, features, generation, calibration, imputation, novelty, comparison)
