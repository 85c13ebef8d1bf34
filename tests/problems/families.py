"""An encoder and a prior for each family of posteriors."""

import torch

import vsc_pyro as vsc

SHAPE = (1, 8, 8)


def spike_slab(slab="normal"):
    return vsc.SpikeSlabEncoder(SHAPE, 5, hidden=(20,), slab=slab), vsc.SpikeSlabPrior(5, 0.3, slab=slab)


def pseudo_input(assignment="bound"):
    encoder = vsc.SpikeSlabEncoder(SHAPE, 5, hidden=(20,))
    return encoder, vsc.PseudoInputPrior(encoder, 4, assignment=assignment, pseudo_inputs=torch.rand(4, *SHAPE))


def dense(encoder, prior):
    return encoder(SHAPE, 5, hidden=(20,)), prior(5)


def with_hyperprior():
    prior = vsc.SpikeSlabPrior(5, 0.3, learn_inclusion="per-latent", hyperprior=(1, 2))
    return vsc.SpikeSlabEncoder(SHAPE, 5, hidden=(20,)), prior


FAMILIES = {
    "spike-slab": spike_slab,
    "laplace slabs": lambda: spike_slab("laplace"),
    "cauchy slabs": lambda: spike_slab("cauchy"),
    "truncated normal slabs": lambda: spike_slab("truncated-normal"),
    "gamma slabs": lambda: spike_slab("gamma"),
    "hyperprior": with_hyperprior,
    "pseudo-input": pseudo_input,
    "pseudo-input, optimal": lambda: pseudo_input("optimal"),
    "pseudo-input, paper": lambda: pseudo_input("paper"),
    "threshold": lambda: (vsc.ThresholdEncoder(SHAPE, 5, hidden=(20,), base="normal"), vsc.SpikeSlabPrior(5, 0.3)),
    "normal": lambda: dense(vsc.NormalEncoder, vsc.NormalPrior),
    "normal, sampled KL": lambda: dense(vsc.NormalEncoder, vsc.NormalMixturePrior),
    "laplace": lambda: dense(vsc.LaplaceEncoder, vsc.LaplacePrior),
    "cauchy": lambda: dense(vsc.CauchyEncoder, vsc.CauchyPrior),
    "point": lambda: dense(vsc.DeltaEncoder, vsc.LaplacePrior),
}
