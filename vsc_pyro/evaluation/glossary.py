"""The words of printed tables; ``print(vsc_pyro.glossary.text())`` shows them.

`WORDS` are those of `vsc_pyro.evaluate`, and `DICTIONARY_WORDS` those that `vsc_pyro.evaluate_dictionary` adds.

`docs/glossary.md` holds the same text. ``python -m vsc_pyro.evaluation.glossary > docs/glossary.md`` writes it.
"""

from __future__ import annotations

_SIGN = "`g_j` is the probability that latent j is on for a datum (gamma in the formulas of the docstrings)."

WORDS: dict[str, str] = {
    "datum": "One image, vector or row of a table. Figures are means over data.",
    "latent": "One of the J numbers of a code. A sparse code has most of them at exactly 0 (off); the others are on.",
    "latents a datum uses": "Number of latents that are on for a datum and carry information: the sum of `g_j` over "
    "these latents. Use this number for sparsity. A dense latent is always on; a latent of a point is on if it is not "
    "0.",
    "latents used": "Number of the J latents that carry information about the data. The information of a latent is the "
    "mean divergence of its posterior from the average of its posteriors, KL(q(z_j | datum) || mean of q(z_j | any "
    "datum)), in nats. A latent is used if this exceeds .01 of its mean rate plus .15 of the entropy of that rate. So "
    "a dense latent needs a hundredth of a nat, and the datum must decide 15% of a spike's entropy. A latent that is "
    "on at the same rate for every datum carries no information and is unused.",
    "R2": "Share of the data's squared deviation from their per-pixel mean that the decoded mean code explains: 1 for "
    "a perfect copy, 0 for the mean alone, below 0 for anything worse. The mean code is the posterior mean (for Cauchy "
    "codes the median). Counts are rescaled to the typical size of a datum first.",
    "R2, hard code": "R2 of the hard code: a latent with `g_j` > 1/2 is at the centre of its slab, every other exactly "
    "0. A dense code or a point is its own hard code.",
    "entropy explained": "For Bernoulli data, 1 minus the cross-entropy of the decoded mean code over that of the "
    "per-pixel mean; 0 for the mean alone.",
    "entropy, hard code": "The entropy explained of the hard code.",
    "mean alone": "Error of the data's per-pixel mean, without a code, for a datum: squared error, or cross-entropy in "
    "nats for Bernoulli data. Its R2 and its entropy explained are 0 by definition.",
    "bounds": "Lower bounds on the log-probability of a datum under the model, and their parts.",
    "nats": "Unit of log-probabilities with the natural logarithm; .69 nats are a bit.",
    "hard spikes": "Codes are drawn with exact zeros, also if training draws soft ones.",
    "ELBO": "Evidence lower bound: reconstruction minus KL, at a weight (beta) of 1.",
    "reconstruction": "Mean log-probability of a datum given a code drawn from its posterior.",
    "KL": "Kullback-Leibler divergence of the posterior from the prior, over all latents including unused ones: the "
    "cost of a code. In closed form or sampled.",
    "bound of K draws": "Importance-weighted bound: the logarithm of a mean over K draws. It rises to the evidence as "
    "K grows.",
    "objective": "The quantity that training maximises, if it is not a bound.",
    "relaxation gap": "Objective with the soft spikes of training minus objective with hard spikes. If it is large, "
    "training measures a code that the model does not have. It is 0 for gates that draw hard spikes.",
    "evidence": "The log-probability of a datum, by enumeration of all patterns of spikes.",
    "inclusion error": "Mean distance of `g_j` from the true probability that the latent is on.",
    "other counts": "Older measures of sparsity. They also count unused latents, and answer other questions.",
    "expected L0": "Sum of `g_j` over all latents. Unused latents count at their idle rate.",
    "hard L0": "Number of latents with `g_j` > 1/2. It is below the number that is on if codes are uncertain.",
    "prior odds": "Number of latents that the datum makes more likely: `g_j` above the prior's inclusion. Some unused "
    "latents count by chance.",
    "Hoyer": "Sparsity of drawn codes divided by their standard deviations (standardised): 0 if all latents are "
    "equally large, 1 if one is on.",
    "active units": "Number of latents whose posterior mean has a variance above .01 over the data, whatever their "
    "unit.",
    "latents ever on": "Number of latents with `g_j` > 1/2 for at least one datum.",
    "binarisation": "How a model sees grey levels: drawn anew as black or white (dynamic), drawn once (static), or "
    "unchanged (none).",
    "advice": "Problems of the model, and remedies. See `vsc_pyro.evaluation.advice`.",
}

_DICTIONARY_SIGN = (
    "Datum, latent, expected L0 and hard L0 mean the same as above. A latent is on for a datum if `g_j` > 1/2. A "
    "model with deterministic codes, such as a ReLU autoencoder, has `g_j` = 1 where its code is not 0, else `g_j` = 0."
)

DICTIONARY_WORDS: dict[str, str] = {
    "spike": "Point mass at exactly 0: the possibility that a latent is off. Its posterior probability is 1 - `g_j`.",
    "slab": "Distribution of the value of a latent that is on.",
    "posterior-mean code": "The mean of each latent: `g_j` times the centre of its slab.",
    "hard code": "A latent that is on is at the centre of its slab, every other exactly 0.",
    "atom": "Direction in the space of the data that belongs to a latent: a row of `model.decoder.dictionary` or of "
    "`W_dec`. A reconstruction is a bias plus the sum of atoms, each times its latent's code. (In `is_atom_free` of "
    "`vsc_pyro.distributions` an atom is something else, a point mass, such as a spike.)",
    "feature": "A true direction, present in some data and absent in others. Both are known for made data: "
    "`dictionary=` has the directions, `data.factors` the presence. (`num_features` of a `SparseDictionary` counts "
    "its latents, which are to find features.)",
    "own feature": "The feature whose direction has the largest absolute cosine with the latent's atom. Several "
    "latents may have the same one. All words from precision to reliability are about a latent and the presence of "
    "its own feature.",
    "density": "Share of data in which a latent is on.",
    "dead latents": "Latents that are on in none of the data: `g_j` never exceeds 1/2. That is not the opposite of "
    "the latents used that `fit` and `evaluate` count, which carry information: a dead latent is used if its `g_j` "
    "varies enough below 1/2, and a latent that is on for all data alike is neither dead nor used.",
    "c_dec": "Mean absolute cosine of pairs of atoms; 0 if all are orthogonal. The table adds the mean over atoms of "
    "the largest one.",
    "explained variance": "1 minus the squared error of the reconstructions over the data's squared deviation from "
    "their mean: 1 for perfect reconstructions, 0 for the mean alone. It is the R2 of `evaluate`.",
    "FVU": "Fraction of variance unexplained: 1 minus the explained variance.",
    "squared error": "Mean squared error of a dimension.",
    "shrinkage": "Length of a reconstruction over that of its datum, mean over data. Below 1, reconstructions are "
    "shorter.",
    "relative bias": "Factor by which reconstructions are too large: divided by it, they have the smallest squared "
    "error. Below 1, they are too small.",
    "decoder MCC": "Mean correlation coefficient: mean absolute cosine of atoms and features in pairs, one to one. Of "
    "all such matchings it takes the one with the largest sum. The smaller of the two numbers is the number of pairs. "
    "1 if each pair has one direction, up to its sign.",
    "uniqueness": "Number of different own features over the number of latents: 1 if no two latents share one.",
    "precision": "Share of the data in which a latent is on that have its own feature; 0 for a dead latent.",
    "recall": "Share of the data with its own feature in which a latent is on.",
    "F1": "Harmonic mean of a latent's precision and recall. The table has means over all latents; a dead one counts "
    "0.",
    "average precision": "The data are ranked by `g_j`, or by the absolute value of a deterministic code. For each "
    "datum with the own feature, take the precision among all data with at least its rank; the mean of these. It "
    "needs no threshold: 1 for a perfect order, about the share of data with the feature for a random one.",
    "AUROC": "Area under the ROC curve: the probability that a datum with the own feature ranks above one without it. "
    "1 for a perfect order, .5 for a random one. Like the average precision, it leaves out latents whose own feature "
    "is present in all or in none of the data.",
    "calibration error": "Expected calibration error (ECE): distance between mean `g_j` and the share of pairs of "
    "datum and latent in which the own feature is present, in bins of `g_j`, averaged over pairs. It is 0 if the "
    "feature is present in 70% of pairs with `g_j` = .7, and so on. Most pairs are near 0 and dominate it, so the "
    "table adds the error of the pairs above .01.",
    "Brier score": "Mean squared difference of `g_j` and the presence of the own feature, 1 or 0, over all pairs of "
    "datum and latent.",
    "Brier skill": "1 minus the Brier score over that of the base rates, with which features are present: 0 for a "
    "model that knows base rates only, 1 for one that knows the features, below 0 for anything worse.",
    "reliability": "Share of pairs in which the own feature is present, against `g_j`; on the diagonal if "
    "probabilities are calibrated. `vsc_pyro.plots.reliability` draws it.",
}


def text() -> str:
    """Return the glossary in Markdown.

    Example:
        >>> import vsc_pyro as vsc
        >>> vsc.glossary.text().splitlines()[0]
        '# The words of printed tables'
    """
    groups = ("evaluate", _SIGN, WORDS), ("evaluate_dictionary", _DICTIONARY_SIGN, DICTIONARY_WORDS)
    return "# The words of printed tables\n" + "".join(_group(*group) for group in groups)


def _group(function: str, sign: str, words: dict[str, str]) -> str:
    entries = "\n".join(f"- **{word}**: {meaning}" for word, meaning in words.items())
    return f"\n## `print(vsc.{function}(model, data))`\n\n{sign}\n\n{entries}\n"


if __name__ == "__main__":
    print(text(), end="")
