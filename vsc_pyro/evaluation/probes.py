r"""Uses of the codes of a trained `VAE`: to classify data, and to recover the known factors behind them.

Codes are posterior means :math:`E_q[z|x]` in evaluation mode (`vsc_pyro.distributions.centre`, which takes the median
of families without a mean).

* `linear_probe`: test accuracy of a linear classifier trained on the codes of a few labelled data, as in Tonolini et
  al. (2020);
* `factor_auroc`: how well a single latent detects a known factor, by the area under the ROC curve (Hanley & McNeil,
  1982).

References
    J. A. Hanley, B. J. McNeil (1982), The meaning and use of the area under a receiver operating characteristic curve.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from vsc_pyro._arguments import choice, natural_int, positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, inclusion_logits
from vsc_pyro.evaluation.codes import Encodable, checked_codes, has_atom, in_batches
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE


def encode(model: VAE, data: Encodable, *, seed: int = 0) -> Tensor:
    """Return the posterior means of `data`, shape ``(N, J)``, on the CPU; see `vsc_pyro.codes` for sparse codes.

    The caller's random state and the model's mode are restored.

    Args:
        model: a `VAE`.
        data, seed: as in `vsc_pyro.codes`.

    Raises:
        ValueError: data that do not fit the model, or codes that are not finite.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.NormalEncoder(6, 2), vsc.NormalDecoder(2, 6), vsc.NormalPrior(2))
        >>> vsc.encode(model, torch.zeros(5, 6)).shape
        torch.Size([5, 2])
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
    """Return the accuracy on `test`, 0 to 1, of a logistic regression on the codes of labelled training data.

    Args:
        model: a `VAE`.
        train, test: data sets with labels, numbered alike.
        num_labels: number of labelled training data, drawn without replacement.
        standardize: give each latent mean 0 and variance 1 over those training data (a latent that never varies is only
            shifted). The classifier has one L2 penalty for all latents, so without this a latent of small scale counts
            less. Published figures for raw posterior means need ``standardize=False``.
        seed: of the choice of training data and of dynamic binarisation.

    Raises:
        ValueError: data without labels, data sets whose classes have different names, fewer data than `num_labels`, or
            labels of only one class.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> x = torch.tensor([[-1.0], [1.0]]).repeat(20, 3)
        >>> data = vsc.Dataset(x, labels=torch.tensor([0, 1]).repeat(20))
        >>> model = vsc.VAE(vsc.NormalEncoder(3, 2), vsc.NormalDecoder(2, 3), vsc.NormalPrior(2))
        >>> vsc.linear_probe(model, data, data, num_labels=20)
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    num_labels, seed = positive_int("num_labels", num_labels), natural_int("seed", seed)
    train_labels, test_labels = _labels("train", train), _labels("test", test)
    if None not in (train.class_names, test.class_names) and train.class_names != test.class_names:
        raise ValueError(
            f"train and test must number classes alike, got class_names {train.class_names} and {test.class_names}; "
            "split one Dataset, or pass the same class_names to both"
        )
    if num_labels > len(train):
        raise ValueError(f"num_labels must be at most the {len(train)} training data, got {num_labels}")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:num_labels]
    labels = train_labels[rows.numpy()]
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"the num_labels={num_labels} training data drawn by seed={seed} are all of class "
            f"{train.class_name(labels[0])}; a classifier needs two classes, so draw more"
        )
    labelled = Dataset(train.images[rows], binarize=train.binarize)
    # Far above the iterations that convergence takes.
    regression = LogisticRegression(max_iter=10_000)
    classifier = make_pipeline(StandardScaler(), regression) if standardize else regression
    classifier.fit(encode(model, labelled, seed=seed).double().numpy(), labels)
    return float(classifier.score(encode(model, test, seed=seed).double().numpy(), test_labels))


@dataclasses.dataclass(frozen=True)
class FactorAUROC:
    """The best single latent for each factor, and its area under the ROC curve; the result of `factor_auroc`.

    Attributes:
        names: of the factors.
        latents: the latent chosen for each factor on training data; one latent may serve several factors.
        forms: the score taken from it: ``"inclusion"``, ``"-inclusion"`` (it switches off where the factor is present),
            ``"mean"``, ``"-mean"`` or ``"|mean|"``.
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
    r"""Return how well the best single latent detects each known factor of the data.

    The latent with the largest area under the ROC curve on `train`,
    :math:`P(s_{present} > s_{absent}) + \frac12 P(s_{present} = s_{absent})`, is chosen for each factor. Its area on
    `test` is reported. One latent may be chosen for several factors, so a code that merges factors is not penalised
    here; `FactorAUROC.latents` shows the choice.

    Args:
        model: a `VAE`.
        train, test: data sets with the same `factors`.
        score: the score s of a latent. ``"inclusion"``: the better, on `train`, of the inclusion probability and its
            negative: a latent may switch off where a factor is present. ``"mean"``: the best, on `train`, of the
            posterior mean, its negative and its absolute value; three candidates for each latent make this generous.
            ``"auto"``: inclusion if the posterior has spikes, else the mean. To compare sparse with dense codes, use
            ``"mean"`` for both.
        seed: of dynamic binarisation.

    Raises:
        ValueError: data without factors, factors of different names, a factor that is always or never present, an
            unknown score, or ``"inclusion"`` for a posterior without spikes.

    Example:
        >>> import vsc_pyro as vsc
        >>> train, test = vsc.datasets.load("templates")
        >>> shape = train.images.shape[1:]
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(shape, 6), vsc.NormalDecoder(6, shape), vsc.SpikeSlabPrior(6))
        >>> len(vsc.factor_auroc(model, train[:100], test[:100]).latents) == len(train.factors.names)
        True
    """
    choice("score", score, dict.fromkeys(("auto", "inclusion", "mean")))
    present, present_in_test, names = presence_of_both(train, test)
    atom = has_atom(model, train)
    if score == "inclusion" and not atom:
        raise ValueError("score='inclusion' needs a posterior with an atom at zero; take score='mean' for this model")
    by_inclusion = atom and score != "mean"
    summary, forms = (
        (_either_sign, ["inclusion", "-inclusion"]) if by_inclusion else (_signed, ["mean", "-mean", "|mean|"])
    )
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


def _encode(model: VAE, data: Encodable, summary: Callable[[Distribution], Tensor], seed: int) -> Tensor:
    return torch.cat(in_batches(model, data, lambda posterior: checked_codes(summary(posterior)), seed))


def _either_sign(posterior: Distribution) -> Tensor:
    # Log-odds rank data as probabilities do, and do not saturate at one.
    logits = inclusion_logits(posterior).flatten(1)
    return torch.cat([logits, -logits], 1)


def _signed(posterior: Distribution) -> Tensor:
    mean = centre(posterior).flatten(1)
    return torch.cat([mean, -mean, mean.abs()], 1)


def auroc(scores: Tensor, present: np.ndarray) -> np.ndarray:
    """Return the areas of factors (rows) by scores (columns), from the rank-sum statistic (Hanley & McNeil, 1982)."""
    from scipy.stats import rankdata

    ranks = rankdata(scores.double().numpy(), axis=0)
    positives = present.sum(0)[:, None]
    return (present.T @ ranks - positives * (positives + 1) / 2) / (positives * (len(present) - positives))


def _labels(part: str, data: Dataset) -> np.ndarray:
    labels = in_memory(data).labels
    if labels is None:
        raise ValueError(f"{part} must have labels, and {part}.labels is None; pass Dataset(images, labels)")
    return labels.cpu().numpy()


def presence_of_both(train: Dataset, test: Dataset) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the presence of factors in both parts, as ones and zeros, shape ``(N, K)``, and the factors' names.

    Raises:
        ValueError: data without factors, factors of different names, or one that is always or never present.
    """
    (present, names), (present_in_test, test_names) = _presence("train", train), _presence("test", test)
    if test_names != names:
        raise ValueError(f"train and test must have the same factors, got {names} and {test_names}")
    return present, present_in_test, names


def _presence(part: str, data: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the presence of factors as ones and zeros in float64, shape ``(N, K)``, and their names."""
    factors = in_memory(data).factors
    if factors is None:
        raise ValueError(f"{part} must have known factors, and {part}.factors is None; pass Dataset(factors=...)")
    present = factors.presence.double().cpu().numpy()
    for name, share in zip(factors.names, present.mean(0), strict=True):
        if share in (0, 1):
            raise ValueError(
                f"factor {name!r} is {'always' if share else 'never'} present in {part}, so there is nothing to "
                "detect; leave it out"
            )
    return present, tuple(factors.names)
