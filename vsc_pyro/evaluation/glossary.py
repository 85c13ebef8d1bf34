"""The words of the table that `vsc_pyro.evaluate` prints: `WORDS`; ``print(vsc_pyro.glossary.text())`` shows them.

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
    "codes the median).",
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


def text() -> str:
    """Return the glossary in Markdown.

    Example:
        >>> import vsc_pyro as vsc
        >>> vsc.glossary.text().splitlines()[0]
        '# The words of `print(vsc.evaluate(model, data))`'
    """
    entries = "\n".join(f"- **{word}**: {meaning}" for word, meaning in WORDS.items())
    return f"# The words of `print(vsc.evaluate(model, data))`\n\n{_SIGN}\n\n{entries}\n"


if __name__ == "__main__":
    print(text(), end="")
