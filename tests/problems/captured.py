"""Steps that are captured are held against eager ones."""

import functools
import warnings

import pyro
import torch

from vsc_pyro.acceleration import CompiledSVI
from vsc_pyro.training.svi import SVI


def steps(svi, batches, seed=1):
    """Losses of a few steps, and the last one's gradients."""
    torch.manual_seed(seed)
    losses = torch.stack([torch.as_tensor(svi.step(*batch)) for batch in batches])
    gradients = [p.grad.clone() for group in svi.optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [losses, *gradients]


def captured_like_eager(make, batches, backend="eager", **tolerance):
    """That steps of an eager and of a captured twin, made anew for each, are the same; returns the captured one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the KL divergence at site 'z' has no closed form and is sampled")
        warnings.filterwarnings("ignore", ".* is not linear in log-densities")
        with pyro.get_param_store().scope():
            expected = steps(make(SVI), batches)
        with pyro.get_param_store().scope():
            svi = make(functools.partial(CompiledSVI, backend=backend))
            got = steps(svi, batches)
    assert not svi.is_eager
    torch.testing.assert_close(got, expected, **tolerance)
    return svi


def of_vae(make_vae, loss, cls):
    vae = make_vae()
    return cls(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3), loss())
