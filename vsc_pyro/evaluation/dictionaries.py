r"""`evaluate_dictionary`: sparsity and reconstructions of a dictionary, and, where the truth is known, its detections.

A latent is on where its inclusion probability :math:`\gamma` exceeds 1/2. For a model with deterministic codes, such as
a sparse autoencoder, :math:`\gamma` is 1 where the code is not 0, else 0.

* Sparsity: expected L0 :math:`\sum_j \gamma_j`, and hard L0, the number of latents that are on. The *firing density* of
  a latent is the share of data in which it is on. A latent is *dead* if it is on in none of the data. The latents
  *used* of `vsc_pyro.fit` and `vsc_pyro.evaluate` follow another rule: they carry information about the data, see
  `vsc_pyro.evaluation.information`, and the number that a datum uses is :math:`\sum_j \gamma_j` over these alone.
* Reconstructions by the posterior-mean code and by the hard code, see `vsc_pyro.evaluation.reconstruction`.
* Atoms: the mean absolute cosine of pairs of atoms, c_dec (Chanin & Garriga-Alonso, 2025), and the mean over atoms of
  the largest one.
* Against true features: see `vsc_pyro.evaluation.matching`. Precision, recall, :math:`F_1`, accuracy, average precision
  and AUROC are means over latents, those that are never on included.
* Calibration of the statement "the own feature of latent j is present" over all pairs of datum and latent: expected
  calibration error (ECE) in bins of equal width, Brier score, reliability. Nearly all pairs have a :math:`\gamma` near
  0, and they dominate these means. Therefore two more figures: the ECE of pairs with :math:`\gamma > 0.01`, and the
  Brier skill (Murphy, 1973), 1 minus the Brier score over that of each feature's base rate. The skill is 0 for a model
  that knows base rates only, and 1 for one that knows the features.

Hard L0, dead latents, explained variance and shrinkage of the hard code, decoder MCC, uniqueness, precision, recall,
:math:`F_1` and accuracy are defined as in the synthetic evaluation of SAELens 6, and have its values.

References
    D. Chanin, A. Garriga-Alonso (2025), Sparse but wrong: incorrect L0 leads to incorrect features in sparse
        autoencoders.
    A. H. Murphy (1973), A new vector partition of the probability score.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.datasets.numbers import as_numbers
from vsc_pyro.evaluation.dictionary_codes import Coder
from vsc_pyro.evaluation.figures import SEE_WORDS, line, plain
from vsc_pyro.evaluation.matching import Detection, Matching, match, pairwise_cosines, ranking, unit_rows
from vsc_pyro.evaluation.reconstruction import Reconstruction
from vsc_pyro.evaluation.reliability import Reliability
from vsc_pyro.models.data_checks import in_memory

LIKELY = 0.01
DENSITY_EDGES = tuple(-6 + 0.5 * step for step in range(13))  # log10
_NUMBERS_AT_ONCE = 2**26  # of probabilities that are ranked: 256 MB in float32
_ROWS_AT_ONCE = 4096
_PER_LATENT = ("density", "usage", "nearest", "cosine", "latent_f1")
_NO_BINS = torch.empty(0)
# Rules for latents on in a datum, expected and hard, and for dead ones.
_PROBABILITIES = "sum of probabilities, all latents", "probability above 1/2", "probability never above 1/2"
_CODES = "code not 0", "code not 0", "code always 0"
_MANY = 0.25  # share of dead latents
_USED = "latents used: fit and evaluate count them, by another rule: those that carry information"


@dataclasses.dataclass(frozen=True, eq=False)
class DictionaryEvaluation:
    r"""The result of `vsc_pyro.evaluate_dictionary`: means over data, see the module's docstring.

    Figures that need the truth are NaN or None without it. Tensors are on the CPU.

    Attributes:
        num_data: number of data.
        num_latents: number J of latents.
        is_probabilistic: False if the model's codes are deterministic, so that :math:`\gamma` is 0 or 1.
        expected_l0, hard_l0: latents on in a datum, by the sum of :math:`\gamma` over all latents, and by the rule
            :math:`\gamma > 1/2`.
        explained_variance, mse, shrinkage, relative_bias: of the posterior-mean code's reconstructions.
        hard_explained_variance, hard_mse, hard_shrinkage, hard_relative_bias: of the hard code's.
        dead: number of latents that are on (:math:`\gamma > 1/2`) in none of the data.
        density: share of data in which each latent is on, shape ``(J,)``.
        usage: mean inclusion probability of each latent, shape ``(J,)``.
        density_counts: number of latents in each half decade of `density` from :math:`10^{-6}` to 1, shape ``(12,)``,
            without dead ones; the edges are ``vsc_pyro.evaluation.dictionaries.DENSITY_EDGES``.
        c_dec: mean absolute cosine of pairs of atoms.
        largest_cosine: mean over atoms of the largest absolute cosine with another atom.
        true_l0: features that are present in a datum.
        mcc, uniqueness: of atoms and true directions; need only the true dictionary.
        precision, recall, f1, accuracy: of latents as detectors of their own features.
        average_precision, auroc: by the ranks of :math:`\gamma`, or of the absolute values of deterministic codes;
            means over `num_ranked` latents.
        num_ranked: number of latents whose own feature is present in some but not all data.
        ece, brier: of "the own feature is present", all pairs of datum and latent.
        likely_ece: `ece` of the pairs with :math:`\gamma > 0.01`.
        likely_share: their share of all pairs.
        brier_skill: 1 minus `brier` over the Brier score of the base rates.
        bin_inclusion, bin_frequency, bin_count: mean :math:`\gamma`, share of pairs with the feature present, and
            number of pairs, in bins of equal width, shape ``(bins,)``; empty without the truth.
        nearest: own feature of each latent, shape ``(J,)``.
        cosine: absolute cosine of each latent's atom with its own feature, shape ``(J,)``.
        latent_f1: of each latent, shape ``(J,)``.
    """

    num_data: int
    num_latents: int
    is_probabilistic: bool
    expected_l0: float
    hard_l0: float
    explained_variance: float
    mse: float
    shrinkage: float
    relative_bias: float
    hard_explained_variance: float
    hard_mse: float
    hard_shrinkage: float
    hard_relative_bias: float
    dead: int
    density: Tensor
    usage: Tensor
    density_counts: Tensor
    c_dec: float
    largest_cosine: float
    true_l0: float = math.nan
    mcc: float = math.nan
    uniqueness: float = math.nan
    precision: float = math.nan
    recall: float = math.nan
    f1: float = math.nan
    accuracy: float = math.nan
    average_precision: float = math.nan
    auroc: float = math.nan
    num_ranked: int = 0
    ece: float = math.nan
    brier: float = math.nan
    likely_ece: float = math.nan
    likely_share: float = math.nan
    brier_skill: float = math.nan
    bin_inclusion: Tensor = _NO_BINS
    bin_frequency: Tensor = _NO_BINS
    bin_count: Tensor = _NO_BINS
    nearest: Tensor | None = None
    cosine: Tensor | None = None
    latent_f1: Tensor | None = None

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained by the posterior-mean code."""
        return 1 - self.explained_variance

    @property
    def dead_share(self) -> float:
        """Share of latents that are on in none of the data."""
        return self.dead / self.num_latents

    def as_dict(self) -> dict[str, Any]:
        """Return all figures but those of single latents as plain numbers and lists, ready for JSON; NaN becomes None.

        Counts of densities and bins of reliability are lists.
        """
        fields = {name: value for name, value in vars(self).items() if name not in _PER_LATENT}
        return plain(fields | {"fvu": self.fvu, "dead_share": self.dead_share})

    @property
    def advice(self) -> tuple[str, ...]:
        """Remedies, a line each, if more than a quarter of the latents of a model with a posterior is dead."""
        if not self.is_probabilistic or self.dead_share <= _MANY:
            return ()
        return (
            f"{self.dead} of {self.num_latents} latents are dead in these {self.num_data} data: evaluate more data and "
            "train for longer; if they stay dead, choose a prior's expected_active near the L0 that you want, and for "
            "data that are no sum of a few features, a fixed noise (SparseDictionary(noise=...), or "
            "NormalDecoder(scale=..., variance='fixed')) with objective='exact' (docs/sae.md, How sparse)",
        )

    def __str__(self) -> str:
        head = f"{self.num_data} data, {self.num_latents} latents"
        rows, tail = self._sparsity() + self._reconstruction(), [f"advice: {advice}" for advice in self.advice]
        tail += [_USED] if self.is_probabilistic else []
        if not math.isnan(self.mcc):
            rows += self._matching()
        if not math.isnan(self.f1):
            rows += self._detection() + self._calibration()
        return "\n".join([head, *(line(*row) for row in rows), *tail, SEE_WORDS])

    def _sparsity(self) -> list[tuple[str, str, str]]:
        expected, hard, dead = _PROBABILITIES if self.is_probabilistic else _CODES
        truth = "" if math.isnan(self.true_l0) else f"; {self.true_l0:.2f} features are present"
        densities = self.density[self.density > 0]
        middle = f"; median density {float(densities.median()):.2g} of the others" if len(densities) else ""
        return [
            ("expected L0", f"{self.expected_l0:.2f}", f"latents on in a datum: {expected}{truth}"),
            ("hard L0", f"{self.hard_l0:.2f}", f"latents on in a datum: {hard}"),
            ("dead latents", f"{self.dead}", f"{dead} in {self.num_data} data{middle}"),
            (
                "c_dec",
                f"{self.c_dec:.4f}",
                f"cosine of two atoms; {self.largest_cosine:.3f} with the nearest, mean of atoms",
            ),
        ]

    def _reconstruction(self) -> list[tuple[str, str, str]]:
        mean, hard = ("posterior-mean code", "hard code") if self.is_probabilistic else ("", "")

        def note(of_hard: str) -> str:
            return f"{mean}; {hard} {of_hard}" if mean else ""

        return [
            ("explained variance", f"{self.explained_variance:.4f}", note(f"{self.hard_explained_variance:.4f}")),
            ("squared error", f"{self.mse:.4g}", f"a dimension, {note(f'{self.hard_mse:.4g}')}".rstrip(", ")),
            ("shrinkage", f"{self.shrinkage:.4f}", note(f"{self.hard_shrinkage:.4f}")),
            ("relative bias", f"{self.relative_bias:.4f}", note(f"{self.hard_relative_bias:.4f}")),
        ]

    def _matching(self) -> list[tuple[str, str, str]]:
        return [
            ("decoder MCC", f"{self.mcc:.4f}", "cosine with true features, one to one"),
            ("uniqueness", f"{self.uniqueness:.4f}", "own features that differ, a latent"),
        ]

    def _detection(self) -> list[tuple[str, str, str]]:
        by = "probability" if self.is_probabilistic else "absolute value"
        ranked = f"data ranked by {by}, mean of {self.num_ranked} latents"
        return [
            ("F1", f"{self.f1:.4f}", f"precision {self.precision:.4f}, recall {self.recall:.4f}, mean of latents"),
            ("average precision", f"{self.average_precision:.4f}", ranked),
            ("AUROC", f"{self.auroc:.4f}", ranked),
        ]

    def _calibration(self) -> list[tuple[str, str, str]]:
        likely = f"{self.likely_ece:.4f} of the {self.likely_share:.2%} of pairs above {LIKELY}"
        kind = "" if self.is_probabilistic else "of 0 or 1; "
        return [
            ("calibration error", f"{self.ece:.4f}", f"{kind}all pairs of datum and latent; {likely}"),
            ("Brier score", f"{self.brier:.5f}", f"skill {self.brier_skill:.4f} over the base rates"),
        ]


def evaluate_dictionary(
    model: Any,
    data: Dataset | Tensor | np.ndarray,
    *,
    dictionary: Tensor | None = None,
    posterior: Callable[[Tensor], Any] | None = None,
    bins: int = 10,
    seed: int = 0,
) -> DictionaryEvaluation:
    """Evaluate the dictionary of a linear model on data, and against true features where they are known.

    The module's docstring defines all figures; `vsc_pyro.glossary` explains the words of the printed table.

    Memory is bounded: data are encoded in batches, and what is kept of them are sums, and with a truth the inclusion
    probabilities of as many latents as fit into 256 MB; if there are more, the data are encoded again. The model's mode
    and the caller's random state are restored.

    Args:
        model: a `VAE` with a linear decoder, or any object with `encode`, `decode` and `W_dec`, shape ``(J, d)``, such
            as a sparse autoencoder of SAELens. If it has `inclusion`, as what `vsc_pyro.sae.load` returns for files of
            this library, it is evaluated with its posterior.
        data: a `Dataset`, or an array or tensor of shape ``(N, ...)``. Its `factors` are the true features of each
            datum; they are used only with `dictionary`.
        dictionary: directions of the true features, shape ``(F, d)``, of any length.
        posterior: function from data ``(B, ...)`` to their posterior in place of the encoder's: a distribution, or an
            object with attributes `inclusion` and `mean`, shape ``(B, J)``, such as the result of `gibbs_posterior`.
        bins: number of bins of inclusion probabilities, of equal width.
        seed: of dynamic binarisation and of random numbers that `posterior` draws.

    Raises:
        ValueError: a model without a dictionary, data or a true dictionary of another shape, or codes that are not
            finite.

    Example:
        >>> import vsc_pyro as vsc
        >>> world = vsc.datasets.features(20, 8, expected_active=2)
        >>> model = vsc.VAE(
        ...     vsc.SpikeSlabEncoder(8, 12), vsc.NormalDecoder(12, 8, hidden=()), vsc.SpikeSlabPrior(12, 0.1)
        ... )
        >>> found = vsc.evaluate_dictionary(model, world.sample(100), dictionary=world.dictionary)
        >>> found.density.shape, 0 < found.mcc < 1
        (torch.Size([12]), True)
    """
    bins, seed, data = positive_int("bins", bins), natural_int("seed", seed), in_memory(data)
    coder = Coder(model, data, posterior, seed)
    matching = None if dictionary is None else match(coder.atoms, _checked(dictionary, coder.atoms, data))
    truth = None if matching is None or data.factors is None else _Truth(matching, data.factors.presence, bins)
    with seeded(seed, coder.device):
        figures = _measure(coder, data, truth)
    c_dec, largest = pairwise_cosines(coder.atoms)
    if matching is not None:
        figures |= {name: getattr(matching, name) for name in ("mcc", "uniqueness", "nearest", "cosine")}
    return DictionaryEvaluation(
        num_data=len(data),
        num_latents=len(coder.atoms),
        is_probabilistic=coder.is_probabilistic,
        c_dec=c_dec,
        largest_cosine=largest,
        **figures,
    )


def _checked(dictionary: Tensor, atoms: Tensor, data: Dataset) -> Tensor:
    given = as_numbers(dictionary, "dictionary")
    features = given.detach().double().cpu().flatten(min(1, given.ndim - 1))
    num = max([1, *features.shape[:1]]) if data.factors is None else data.factors.presence.shape[1]
    if features.shape != (num, atoms.shape[1]):
        raise ValueError(
            f"dictionary must have one row of {atoms.shape[1]} values for each of {num} features, got shape "
            f"{tuple(given.shape)}; pass the directions of the features of data.factors"
        )
    if not (features.isfinite().all() and atoms.isfinite().all()):
        raise ValueError("dictionary or the model's dictionary has entries that are NaN or infinite; remove them")
    return unit_rows(features).float()


def _measure(coder: Coder, data: Dataset, truth: _Truth | None) -> dict[str, Any]:
    """Return all figures that need the data, by name."""
    on, usage = torch.zeros(2, len(coder.atoms), dtype=torch.float64)
    mean = torch.stack([x.flatten(1).double().sum(0).cpu() for x in data.images.split(_ROWS_AT_ONCE)]).sum(0) / len(
        data
    )
    by_mean, by_hard = Reconstruction(mean), Reconstruction(mean)
    for rows, codes in coder.batches():
        is_on = codes.inclusion > 0.5
        on += is_on.sum(0)
        usage += codes.inclusion.double().sum(0)
        by_mean.add(codes.x, codes.mean)
        by_hard.add(codes.x, codes.hard)
        if truth is not None:
            truth.add(rows, codes.inclusion, is_on, coder.score(codes))
    density = on / len(data)
    log_density = density[on > 0].log10()
    found = {
        "expected_l0": float(usage.sum()) / len(data),
        "hard_l0": float(on.sum()) / len(data),
        "dead": int((on == 0).sum()),
        "density": density,
        "usage": usage / len(data),
        "density_counts": torch.histogram(log_density, torch.tensor(DENSITY_EDGES, dtype=torch.float64)).hist.long(),
        **by_mean.figures()._asdict(),
        **{f"hard_{name}": value for name, value in by_hard.figures()._asdict().items()},
    }
    return found if truth is None else found | truth.figures(coder)


class _Truth:
    """Detections of own features and their probabilities, filled batch by batch."""

    def __init__(self, matching: Matching, presence: Tensor, bins: int) -> None:
        self._nearest, self._presence = matching.nearest, presence.cpu()
        self._detection = Detection(len(self._nearest))
        self._all, self._likely = Reliability(bins), Reliability(bins)
        latents = max(1, _NUMBERS_AT_ONCE // len(presence))
        # Ranks need all data of a latent at once; the first chunk of latents is kept in the first pass.
        self._chunks = torch.arange(len(self._nearest)).split(latents)
        self._kept: list[Tensor] = []

    def add(self, rows: slice, inclusion: Tensor, is_on: Tensor, score: Tensor) -> None:
        present = self._presence[rows][:, self._nearest]
        likely = inclusion > LIKELY
        self._detection.add(is_on, present)
        self._all.add(inclusion, present)
        self._likely.add(inclusion[likely], present[likely])
        self._kept.append(score[:, self._chunks[0]])

    def figures(self, coder: Coder) -> dict[str, Any]:
        precision, recall, f1 = self._detection.scores()
        areas, precisions = self._rank(coder)
        num_data, pairs = len(self._presence), float(self._all.count.sum())
        rates = self._detection.base_rates(num_data)
        base = float((rates * (1 - rates)).mean())
        likely = float(self._likely.count.sum())
        return {
            "true_l0": float(self._presence.sum()) / num_data,
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
            "accuracy": float(self._detection.accuracy(num_data).mean()),
            "auroc": float(areas.nanmean()),
            "average_precision": float(precisions.nanmean()),
            "num_ranked": int((~areas.isnan()).sum()),
            "ece": self._all.ece,
            "brier": self._all.brier,
            "likely_ece": self._likely.ece if likely else math.nan,
            "likely_share": likely / pairs,
            "brier_skill": 1 - self._all.brier / base if base else math.nan,
            "latent_f1": f1,
            **self._all.bins(),
        }

    def _rank(self, coder: Coder) -> tuple[Tensor, Tensor]:
        found, kept = [], self._kept
        for chunk in self._chunks:
            kept = kept or [coder.score(codes)[:, chunk] for _, codes in coder.batches()]
            found.append(ranking(torch.cat(kept), self._presence[:, self._nearest[chunk]]))
            kept = []
        areas, precisions = (torch.cat(parts) for parts in zip(*found, strict=True))
        return areas, precisions
