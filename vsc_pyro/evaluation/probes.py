r"""What the codes of a trained `VAE` are good for: telling classes apart, and recovering the factors of the data.

Codes are posterior means :math:`E_q[z|x]` (`vsc_pyro.distributions.centre` for families that need not have one), in
evaluation mode.

* `linear_probe`: test accuracy of a linear classifier trained on the codes of a few labelled data, as Tonolini et al.
  (2020) compare codes;
* `factor_auroc`: how well a single latent tells whether a known factor is present, by the area under the ROC curve
  (Hanley & McNeil, 1982).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader

from vsc_pyro._arguments import choice, natural_int, positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, inclusion_logits
from vsc_pyro.evaluation.codes import checked_codes, in_batches
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE


def encode(model: VAE, data: Dataset | Tensor | np.ndarray | DataLoader, *, seed: int = 0) -> Tensor:
    """Posterior means of the codes of `data`, shape ``(N, J)``, on the CPU; for sparse codes see `vsc_pyro.codes`.

    The caller's random state and the model's mode are left as they were.

    Args:
        model: a `VAE`.
        data, seed: as of `vsc_pyro.codes`.

    Raises:
        ValueError: data that do not fit the model, or codes that are not finite.
    """
    return _encode(model, data, centre, seed)


def linear_probe(
    model: VAE,
    train: Dataset,
    test: Dataset,
    *,
    num_labels: int = 5000,
    standardize: bool = True,
    seed: int = 0,
) -> float:
    """Accuracy on `test`, 0 to 1, of a logistic regression on the codes of `num_labels` labelled data of `train`.

    Args:
        model: a `VAE`.
        train, test: data sets with labels.
        num_labels: how many training data the classifier sees, drawn without replacement.
        standardize: shift and scale each latent to mean 0 and variance 1 over those training data (latents that never
            vary are only shifted). The classifier's L2 penalty is the same for every latent, so without it latents of
            a small scale count less; to compare with figures for means as they are, ``standardize=False``.
        seed: of the choice of training data and of dynamic binarisation.

    Raises:
        ValueError: data without labels, more labels asked for than there are data, or labels of only one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    num_labels, seed = positive_int("num_labels", num_labels), natural_int("seed", seed)
    train_labels, test_labels = _labels("train", train), _labels("test", test)
    if num_labels > len(train):
        raise ValueError(f"num_labels must be at most the {len(train)} training data, got {num_labels}")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:num_labels]
    labels = train_labels[rows.numpy()]
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"the num_labels={num_labels} training data drawn by seed={seed} are all of class {labels[0]}; "
            "a classifier needs two classes, so draw more"
        )
    labelled = Dataset(train.images[rows], binarize=train.binarize)
    # A ceiling, not a setting: the solver stops when it has converged.
    regression = LogisticRegression(max_iter=10_000)
    classifier = make_pipeline(StandardScaler(), regression) if standardize else regression
    classifier.fit(encode(model, labelled, seed=seed).double().numpy(), labels)
    return float(classifier.score(encode(model, test, seed=seed).double().numpy(), test_labels))


@dataclasses.dataclass(frozen=True)
class FactorAUROC:
    """How well single latents tell whether factors are present, factor by factor; what `factor_auroc` returns.

    Attributes:
        names: of the factors.
        latents: the latent chosen for each factor, on training data; one latent may serve several factors.
        forms: what of it was taken as the score: ``"inclusion"``, ``"mean"``, ``"-mean"`` or ``"|mean|"``.
        auroc: area under the ROC curve of that score on test data; 0.5 is chance, 1 perfect.
        score: ``"inclusion"`` or ``"mean"``.
    """

    names: tuple[str, ...]
    latents: tuple[int, ...]
    forms: tuple[str, ...]
    auroc: tuple[float, ...]
    score: str

    @property
    def mean(self) -> float:
        """Mean over factors."""
        return statistics.fmean(self.auroc)

    def __str__(self) -> str:
        width = max(map(len, (*self.names, "factor")))
        rows = zip(self.names, self.latents, self.auroc, self.forms, strict=True)
        return "\n".join(
            [
                f"{'factor':<{width}}  latent  AUROC",
                *(f"{name:<{width}}  {latent:>6}  {auroc:.3f}  {form}" for name, latent, auroc, form in rows),
                f"{'mean':<{width}}  {'':>6}  {self.mean:.3f}  {len(set(self.latents))} latents",
            ]
        )


def factor_auroc(model: VAE, train: Dataset, test: Dataset, *, score: str = "auto", seed: int = 0) -> FactorAUROC:
    r"""How well the best single latent tells whether each known factor of the data is present.

    For every factor the latent of the highest area under the ROC curve,
    :math:`P(s_{present} > s_{absent}) + \frac12 P(s_{present} = s_{absent})`, is chosen on `train`, and its area on
    `test` reported. Latents are chosen with replacement: one may serve several factors, so that a code that merges
    factors is not punished for it here (`FactorAUROC.latents` shows it).

    Args:
        model: a `VAE`.
        train, test: data sets with the same `factors`.
        score: what of a latent is the score s. ``"inclusion"``: the inclusion probability. ``"mean"``: the best, on
            `train`, of the posterior mean, its negative and its absolute value, which is generous: three candidates
            a latent. ``"auto"``: inclusion where the posterior has an atom at zero, else the mean. Compare sparse
            and dense codes by ``"mean"`` for both.
        seed: of dynamic binarisation.

    Raises:
        ValueError: data without factors, with factors of different names, or with one that is always or never
            present; an unknown score, or inclusion asked of a posterior that has none.
    """
    choice("score", score, dict.fromkeys(("auto", "inclusion", "mean")))
    present, present_in_test = _presence("train", train), _presence("test", test)
    names = tuple(train.factors.names)
    if tuple(test.factors.names) != names:
        raise ValueError(f"train and test must have the same factors, got {names} and {tuple(test.factors.names)}")
    has_atom = _has_atom(model, train)
    if score == "inclusion" and not has_atom:
        raise ValueError("score='inclusion' needs a posterior with an atom at zero; take score='mean' for this model")
    by_inclusion = has_atom and score != "mean"
    # Log-odds rank data as the probabilities do, and do not saturate at one.
    summary, forms = (inclusion_logits, ["inclusion"]) if by_inclusion else (_signed, ["mean", "-mean", "|mean|"])
    scores = _encode(model, train, summary, seed)
    best = auroc(scores, present).argmax(1)
    chosen = _encode(model, test, summary, seed)[:, best]
    form, latent = np.divmod(best, scores.shape[1] // len(forms))
    return FactorAUROC(
        names=names,
        latents=tuple(latent.tolist()),
        forms=tuple(forms[i] for i in form),
        auroc=tuple(auroc(chosen, present_in_test).diagonal().tolist()),
        score=forms[0],
    )


def _encode(
    model: VAE, data: Dataset | Tensor | np.ndarray | DataLoader, summary: Callable[[Distribution], Tensor], seed: int
) -> Tensor:
    return torch.cat(in_batches(model, data, lambda posterior: checked_codes(summary(posterior)), seed))


def _signed(posterior: Distribution) -> Tensor:
    mean = centre(posterior).flatten(1)
    return torch.cat([mean, -mean, mean.abs()], 1)


def _has_atom(model: VAE, data: Dataset) -> bool:
    with model.evaluating():
        return inclusion_logits(model.encoder(data.images[:1].to(model.reference))) is not None


def auroc(scores: Tensor, present: np.ndarray) -> np.ndarray:
    """Areas of factors (rows) by scores (columns), as the rank-sum statistic (Hanley & McNeil, 1982)."""
    from scipy.stats import rankdata

    ranks = rankdata(scores.double().numpy(), axis=0)
    positives = present.sum(0)[:, None]
    return (present.T @ ranks - positives * (positives + 1) / 2) / (positives * (len(present) - positives))


def _labels(part: str, data: Dataset) -> np.ndarray:
    if in_memory(data).labels is None:
        raise ValueError(f"{part} must have labels, and {part}.labels is None; pass Dataset(images, labels)")
    return data.labels.cpu().numpy()


def _presence(part: str, data: Dataset) -> np.ndarray:
    """Shape ``(N, K)``, ones and zeros in float64."""
    factors = in_memory(data).factors
    if factors is None:
        raise ValueError(f"{part} must have known factors, and {part}.factors is None; pass Dataset(factors=...)")
    present = factors.presence.double().cpu().numpy()
    for name, share in zip(factors.names, present.mean(0), strict=True):
        if share in (0, 1):
            raise ValueError(
                f"factor {name!r} is {'always' if share else 'never'} present in {part}, so there is nothing to tell "
                "apart; leave it out"
            )
    return present
