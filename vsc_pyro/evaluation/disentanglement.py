r"""Disentanglement of known factors: the mutual information gap, and scores of the importances of latents.

Codes are posterior means, as in `vsc_pyro.encode`, and a factor is the presence of a part, 0 or 1.

**MIG** (Chen et al., 2018), on test data: the gap of information between the best and the second-best latent of a
factor, as a share of the factor's entropy,

.. math:: \mathrm{MIG} = \frac1K \sum_k \frac{I(\bar z_{j_k}; v_k) - \max_{j \neq j_k} I(\bar z_j; v_k)}{H(v_k)},
    \qquad j_k = \arg\max_j I(\bar z_j; v_k),

with means in 20 bins of equal width (Locatello et al., 2019).

**DCI** (Eastwood & Williams, 2018): for each factor, extremely randomised trees (Geurts et al., 2006; 20 trees of depth
8) learn its presence from the code of training data, with importances :math:`R_{jk}`, columns of sum 1. Then

.. math:: D = \sum_j \rho_j \Big(1 - \frac{H(R_{j\cdot} / \sum_k R_{jk})}{\log K}\Big), \quad
    \rho_j = \frac1K \sum_k R_{jk}, \qquad C = \frac1K \sum_k \Big(1 - \frac{H(R_{\cdot k})}{\log J}\Big),

and informativeness is the mean accuracy of the trees on test data.

References
    R. T. Q. Chen, X. Li, R. Grosse, D. Duvenaud (2018), Isolating sources of disentanglement in VAEs.
    C. Eastwood, C. K. I. Williams (2018), A framework for the quantitative evaluation of disentangled representations.
    P. Geurts, D. Ernst, L. Wehenkel (2006), Extremely randomized trees.
    F. Locatello et al. (2019), Challenging common assumptions in the unsupervised learning of disentangled
    representations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.probes import encode, presence_of_both
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE

_BINS = 20


@dataclasses.dataclass(frozen=True)
class Disentanglement:
    """Scores from 0 to 1 of how a code is made of known factors; the result of `disentanglement`.

    Attributes:
        mig: mutual information gap: one latent, and only one, tells of each factor.
        disentanglement: D of DCI: each latent tells of one factor.
        completeness: C of DCI: each factor is told by one latent.
        informativeness: I of DCI: mean accuracy, on test data, with which the code tells presence.
    """

    mig: float
    disentanglement: float
    completeness: float
    informativeness: float

    def __str__(self) -> str:
        return "\n".join(f"{name:<15}  {value:.3f}" for name, value in dataclasses.asdict(self).items())


def disentanglement(
    model: VAE, train: Dataset, test: Dataset, *, num_data: int = 5000, seed: int = 0
) -> Disentanglement:
    """Return the mutual information gap and the DCI scores of a code, for the presence of known factors.

    The formulas are in `vsc_pyro.evaluation.disentanglement`.

    Args:
        model: a `VAE` of at least two latents.
        train, test: data sets with the same two or more `factors`.
        num_data: the trees learn from the first `num_data` of `train`, or from all if there are fewer.
        seed: of the trees and of dynamic binarisation.

    Raises:
        ValueError: data without factors, factors of different names, a factor that is always or never present, or less
            than two factors or latents.

    Example:
        >>> import vsc_pyro as vsc
        >>> train, test = vsc.datasets.load("templates")
        >>> shape = train.images.shape[1:]
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(shape, 6), vsc.NormalDecoder(6, shape), vsc.SpikeSlabPrior(6))
        >>> found = vsc.disentanglement(model, train[:500], test[:500])
        >>> 0 < found.mig < found.informativeness < 1
        True
    """
    num_data, seed = positive_int("num_data", num_data), natural_int("seed", seed)
    train = in_memory(train)[:num_data]
    present, present_in_test, _ = presence_of_both(train, test)
    means, means_in_test = (encode(model, data, seed=seed).double().numpy() for data in (train, test))
    if min(means.shape[1], present.shape[1]) < 2:
        raise ValueError(
            "disentanglement needs two latents and two factors or more, got "
            f"{means.shape[1]} latents and {present.shape[1]} factors"
        )
    importances, accuracies = _importances(means, present, means_in_test, present_in_test, seed)
    return Disentanglement(
        mig=_gap(means_in_test, present_in_test),
        # A code that tells nothing has no importances.
        disentanglement=float(importances.sum(1) @ _certainty(importances.T) / max(importances.sum(), 1.0)),
        completeness=float(_certainty(importances).mean()),
        informativeness=float(np.mean(accuracies)),
    )


def _gap(means: np.ndarray, present: np.ndarray) -> float:
    from sklearn.metrics import mutual_info_score

    means = means - means.min(0)  # far from 0 there may be fewer numbers than bins between two means
    bins = [np.digitize(mean, np.histogram_bin_edges(mean, _BINS)[1:-1]) for mean in means.T]
    information = np.array([[mutual_info_score(factor, latent) for latent in bins] for factor in present.T])
    second, best = np.sort(information, axis=1)[:, -2:].T
    entropy = [mutual_info_score(factor, factor) for factor in present.T]
    return float(np.mean((best - second) / entropy))


def _importances(
    means: np.ndarray, present: np.ndarray, means_in_test: np.ndarray, present_in_test: np.ndarray, seed: int
) -> tuple[np.ndarray, list[float]]:
    """Return the importances of latents (rows) for factors (columns), and the test accuracy of each factor."""
    from sklearn.ensemble import ExtraTreesClassifier

    importances, accuracies = [], []
    for factor, factor_in_test in zip(present.T, present_in_test.T, strict=True):
        options: dict[str, Any] = {"max_depth": 8, "max_features": None, "random_state": seed}
        trees = ExtraTreesClassifier(20, **options).fit(means, factor)
        importances.append(trees.feature_importances_)
        accuracies.append(trees.score(means_in_test, factor_in_test))
    return np.stack(importances, 1), accuracies


def _certainty(weights: np.ndarray) -> np.ndarray:
    """Return one minus the entropy of each column as a share of the largest possible; 0 for a column of zeros."""
    from scipy.stats import entropy

    total = weights.sum(0)
    return np.where(total > 0, 1 - entropy(np.where(total > 0, weights, 1), base=len(weights)), 0)
