"""Every pair of encoder and prior, and the divergence of each: closed, sampled, or the error that refuses the pair."""

import torch

import vsc_pyro as vsc
from vsc_pyro.models.encoders import ThresholdEncoder

J, SHAPE = 5, (1, 8, 8)


def encoder(cls, **settings):
    return lambda: cls(SHAPE, J, hidden=(16,), **settings)


def prior(cls, **settings):
    return lambda _: cls(J, **settings)


def pseudo_input(**settings):
    return lambda encoder: vsc.PseudoInputPrior(encoder, 4, **settings)


ENCODERS = {
    "normal": encoder(vsc.NormalEncoder),
    "laplace": encoder(vsc.LaplaceEncoder),
    "cauchy": encoder(vsc.CauchyEncoder),
    "delta": encoder(vsc.DeltaEncoder),
    "spike-slab": encoder(vsc.SpikeSlabEncoder, initial_inclusion=0.4),
    "spike-slab-laplace": encoder(vsc.SpikeSlabEncoder, slab="laplace", initial_inclusion=0.4),
    "spike-slab-cauchy": encoder(vsc.SpikeSlabEncoder, slab="cauchy", initial_inclusion=0.4),
    "spike-slab-truncated-normal": encoder(vsc.SpikeSlabEncoder, slab="truncated-normal", initial_inclusion=0.4),
    "spike-slab-log-normal": encoder(vsc.SpikeSlabEncoder, slab="log-normal", initial_inclusion=0.4),
    "spike-slab-gamma": encoder(vsc.SpikeSlabEncoder, slab="gamma", initial_inclusion=0.4),
    "spike-slab-threshold": encoder(ThresholdEncoder, gate="threshold", initial_inclusion=0.4),
    "spike-slab-threshold-normal": encoder(
        ThresholdEncoder, base="normal", threshold="per-latent", initial_inclusion=0.4
    ),
}
PRIORS = {
    "normal": prior(vsc.NormalPrior),
    "laplace": prior(vsc.LaplacePrior),
    "cauchy": prior(vsc.CauchyPrior),
    "normal-mixture": prior(vsc.NormalMixturePrior),
    "flat": prior(vsc.FlatPrior),
    "spike-slab": prior(vsc.SpikeSlabPrior, inclusion=0.2),
    "learned": prior(vsc.SpikeSlabPrior, learn_inclusion="per-latent"),
    "learned-slab": prior(vsc.SpikeSlabPrior, learn_slab=True),
    "global": prior(vsc.SpikeSlabPrior, learn_inclusion="global"),
    "beta": prior(vsc.SpikeSlabPrior, learn_inclusion="per-latent", hyperprior=(1, 4)),
    "global-beta": prior(vsc.SpikeSlabPrior, learn_inclusion="global", hyperprior=(1, 4)),
    "spike-slab-laplace": prior(vsc.SpikeSlabPrior, slab="laplace"),
    "spike-slab-cauchy": prior(vsc.SpikeSlabPrior, slab="cauchy"),
    "half-normal": prior(vsc.SpikeSlabPrior, slab="half-normal", learn_slab="global"),
    "truncated-normal": prior(vsc.SpikeSlabPrior, slab="truncated-normal", learn_slab=True),
    "log-normal": prior(vsc.SpikeSlabPrior, slab="log-normal", learn_slab=True),
    "exponential": prior(vsc.SpikeSlabPrior, slab="exponential", slab_scale=2),
    "gamma": prior(vsc.SpikeSlabPrior, slab="gamma", learn_slab="global", slab_scale=0.7),
    "pseudo-input": pseudo_input(hidden=(8,)),
    "pseudo-input-optimal": pseudo_input(assignment="optimal"),
    "pseudo-input-paper": pseudo_input(assignment="paper", hidden=(8,)),
}
SPIKES = ("spike-slab", "learned", "learned-slab", "global", "beta", "global-beta")
POSITIVE = ("half-normal", "truncated-normal", "log-normal", "exponential", "gamma")
PSEUDO = ("pseudo-input", "pseudo-input-optimal", "pseudo-input-paper")
LIGHT = ("normal", "laplace", "spike-slab-laplace", *SPIKES)

# What the divergence of a pair is: closed, sampled, or an error that says so and what to do.
TAILS = "infinite: a Cauchy distribution has no mean.*use a Cauchy prior"
ATOM = "infinite: the spike-and-slab has an atom at zero.*use a SpikeSlab prior, or an atom-free posterior"
NEGATIVE = r"infinite: draws of .* use a posterior with the prior's support, such as .*slab='truncated-normal'\)"
IMPROPER = "does not exist.*use DeltaEncoder"
MASS = r"a point \(Delta\) has no divergence from a SpikeSlab"
POINT = "must have a density to be a prior.*use SpikeSlabEncoder"
DENSE = dict.fromkeys((*LIGHT, *PSEUDO), "closed")
DENSE |= dict.fromkeys(("cauchy", "normal-mixture", "spike-slab-cauchy"), "sampled") | {"flat": IMPROPER}
DENSE |= dict.fromkeys(POSITIVE, NEGATIVE)
ATOMIC = dict.fromkeys(("normal", "laplace", "cauchy", "normal-mixture"), ATOM) | {"flat": IMPROPER}
SPARSE = ATOMIC | dict.fromkeys((*SPIKES, "spike-slab-laplace", *PSEUDO), "closed") | {"spike-slab-cauchy": "sampled"}
SPARSE |= dict.fromkeys(POSITIVE, NEGATIVE)
ADDED = ATOMIC | dict.fromkeys((*SPIKES, *POSITIVE, *PSEUDO), "closed")
ADDED |= dict.fromkeys(("spike-slab-laplace", "spike-slab-cauchy"), "sampled")
PAIRS = {
    "normal": DENSE,
    "laplace": DENSE,
    "cauchy": dict.fromkeys((*LIGHT, "normal-mixture"), TAILS)
    | dict.fromkeys(("cauchy", "spike-slab-cauchy", *PSEUDO), "closed")
    | dict.fromkeys(POSITIVE, NEGATIVE)
    | {"flat": IMPROPER},
    "delta": dict.fromkeys(("normal", "laplace", "cauchy", "normal-mixture", "flat"), "closed")
    | dict.fromkeys((*SPIKES, *POSITIVE, "spike-slab-laplace", "spike-slab-cauchy"), MASS)
    | dict.fromkeys(PSEUDO, POINT),
    "spike-slab": SPARSE,
    "spike-slab-laplace": SPARSE,
    "spike-slab-truncated-normal": ADDED | dict.fromkeys(("log-normal", "gamma"), "sampled"),
    "spike-slab-log-normal": ADDED,
    "spike-slab-gamma": ADDED,
    "spike-slab-threshold": SPARSE,
    "spike-slab-threshold-normal": SPARSE,
    "spike-slab-cauchy": ATOMIC
    | dict.fromkeys(POSITIVE, NEGATIVE)
    | dict.fromkeys((*SPIKES, "spike-slab-laplace"), TAILS)
    | dict.fromkeys(("spike-slab-cauchy", *PSEUDO), "closed"),
}
KINDS = [(e, p, kind) for e, priors in PAIRS.items() for p, kind in priors.items()]
ADMISSIBLE = [pair for pair in KINDS if pair[2] in ("closed", "sampled")]
INADMISSIBLE = [pair for pair in KINDS if pair[2] not in ("closed", "sampled")]


def build(encoder_name, prior_name, priors=PRIORS):
    torch.manual_seed(0)
    encoder = ENCODERS[encoder_name]()
    # A saturating decoder, since codes of a Cauchy have no mean.
    return vsc.VAE(encoder, vsc.BernoulliDecoder(J, SHAPE, (16,), "tanh"), priors[prior_name](encoder), num_data=200)


def covering(pairs):
    """As few of the pairs of encoder and prior as have each of both."""
    chosen, seen = [], set()
    for encoder_name, prior_name, _ in sorted(pairs, key=lambda pair: pair[0] != "spike-slab"):
        if not {("encoder", encoder_name), ("prior", prior_name)} <= seen:
            seen |= {("encoder", encoder_name), ("prior", prior_name)}
            chosen.append((encoder_name, prior_name))
    return chosen
