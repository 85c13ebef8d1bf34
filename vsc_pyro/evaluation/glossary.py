"""Every word of the table that `vsc_pyro.evaluate` prints, as `WORDS`; ``print(vsc_pyro.glossary.text())`` shows them.

`docs/glossary.md` is the same: ``python -m vsc_pyro.evaluation.glossary > docs/glossary.md`` writes it.
"""

from __future__ import annotations

_SIGN = "`g_j` is the probability that latent j is on for a datum (gamma in the formulas of the docstrings)."

WORDS: dict[str, str] = {
    "datum": "One of the things that were given: an image, a vector, a row of a table. A figure is the mean over data.",
    "latent": "One of the J numbers of a code. A sparse code has most of them at exactly 0 (off); the others are on.",
    "latents a datum uses": "How many latents that carry information are on for a datum: the sum of `g_j` over these "
    "latents. This is the one number for sparsity. A dense latent is always on; a point's is on where it is not 0.",
    "latents used": "How many of the J latents carry information about the data. The information of a latent is its "
    "mean divergence from its own average over the data, KL(q(z_j | datum) || mean of q(z_j | any datum)), in nats. A "
    "latent carries some if that is above .01 of its mean rate plus .15 of the entropy of that rate: a dense latent "
    "carries a hundredth of a nat, and of a spike the datum decides 15% at least. A latent that idles at a rate "
    "of its own, whatever the datum, carries none and is unused.",
    "R2": "Share of the data's squared deviation from their per-pixel mean that the decoded mean code explains: 1 for "
    "a perfect copy, 0 for what the mean alone explains, below 0 for worse. The mean code is the posterior mean (of "
    "Cauchy codes the median).",
    "R2, hard code": "R2 of the hard code: a latent with `g_j` > 1/2 is at the centre of its slab, every other exactly "
    "0. A dense code or a point is its own hard code.",
    "entropy explained": "For Bernoulli data, 1 minus the cross-entropy of the decoded mean code over that of the "
    "per-pixel mean. 0 for what the mean alone explains.",
    "entropy, hard code": "The entropy explained of the hard code.",
    "mean alone": "What the data's per-pixel mean, with no code, leaves unexplained, of a datum: squared error, or "
    "cross-entropy in nats of Bernoulli data. Its R2 and its entropy explained are 0 by definition.",
    "bounds": "Lower bounds on the log-probability that the model gives to a datum, and their parts.",
    "nats": "The unit of log-probabilities by the natural logarithm; .69 nats are a bit.",
    "hard spikes": "Codes are drawn with exact zeros, whatever training draws.",
    "ELBO": "Evidence lower bound: reconstruction minus KL, at a weight (beta) of 1.",
    "reconstruction": "Mean log-probability of a datum given a code drawn from its posterior.",
    "KL": "Kullback-Leibler divergence of the posterior from the prior, over all latents, unused ones too: what codes "
    "cost. In closed form or sampled.",
    "bound of K draws": "Importance-weighted bound: the logarithm of a mean over K draws. It rises to the evidence as "
    "K grows.",
    "objective": "What training maximised, where that is no bound.",
    "relaxation gap": "Objective as trained, with soft spikes, minus the same with hard ones. Large: training measured "
    "a code that the model does not have. 0 for gates that draw hard spikes.",
    "evidence": "The log-probability of a datum itself, by enumeration of all patterns of spikes.",
    "inclusion error": "Mean distance of `g_j` from the true probability that the latent is on.",
    "other counts": "Older measures of sparsity, which count unused latents as well, and answer other questions.",
    "expected L0": "Sum of `g_j` over all latents. Unused ones count at the rate that they idle at.",
    "hard L0": "Latents with `g_j` > 1/2, which is less than are on where codes are uncertain.",
    "prior odds": "Latents that are more likely on given the datum than before: `g_j` above the prior's inclusion. Of "
    "unused latents some are, by chance.",
    "Hoyer": "Sparsity of drawn codes divided by their standard deviations (standardised): 0 if all latents are "
    "equally large, 1 if one is on.",
    "active units": "Latents whose posterior mean has a variance above .01 over the data, whatever their unit.",
    "latents ever on": "Latents with `g_j` > 1/2 for at least one datum.",
    "binarisation": "How a model sees grey levels: drawn anew as black or white (dynamic), drawn once (static), or as "
    "they are (none).",
    "advice": "What looks wrong, and what to try. See `vsc_pyro.evaluation.advice`.",
}


def text() -> str:
    """The glossary in Markdown."""
    entries = "\n".join(f"- **{word}**: {meaning}" for word, meaning in WORDS.items())
    return f"# The words of `print(vsc.evaluate(model, data))`\n\n{_SIGN}\n\n{entries}\n"


if __name__ == "__main__":
    print(text(), end="")
