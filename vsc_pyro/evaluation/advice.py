r"""`advise`: one line for each thing that looks wrong with a model, and what to try; `NothingExplainedWarning`.

The rules read a `vsc_pyro.evaluation.survey.Survey` and, where that shows a failure, the model and a few data. Whether
there was anything to explain is told by principal components: as many of them as there are latents (at most 50, and a
quarter of the pixels and of the data), of at most 1,000 data. Of noise, too, the first components explain a share of
the very data that they were found in, so theirs is compared with the share that is left when each pixel is shuffled
among the data (J. L. Horn, 1965). What is above that is structure of several pixels, and pure noise has none.

References
    J. L. Horn (1965), A rationale and test for the number of factors in factor analysis.
"""

from __future__ import annotations

import math
import warnings

import pyro
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.survey import Survey, as_share
from vsc_pyro.models.vae import VAE

NOTHING = 0.05  # what explains less explains nothing
_STRUCTURE = 0.1  # by how much principal components must explain more than those of shuffled data
_COMPONENTS, _DATA = 50, 1000
_SHUFFLES, _DEVIATIONS = 8, 3.0
_WRONG = 1.4  # times: a noise scale that is off by it has half, or twice, the right variance
_UNLIKE = 4.0  # times that a prior's and a posterior's number of latents may differ
_OFF_CENTRE, _DOMINANT = 10.0, 0.5
_JUMP, _LATENTS = 5.0, 32
_WARM_UP = "let the divergence's weight rise (fit(..., warmup=0.2))"


class NothingExplainedWarning(UserWarning):
    """A model decodes data no better than their mean does, though a linear code would."""


def advise(model: VAE, data: Dataset, seen: Survey, *, seed: int = 0) -> tuple[str, ...]:
    """Say what looks wrong with a model and what to try: a line for each, the most serious first; none if nothing does.

    The caller's random state and the model's mode are left as they were.

    Args:
        model: that was surveyed.
        data: that it was surveyed on; some are looked at where little is explained or used.
        seen: what `vsc_pyro.evaluation.survey.survey` returned.
        seed: of what is drawn.
    """
    first = nothing_explained(model, data, seen, seed=seed) or _unused(model, data, seen)
    all_on = _all_on(seen)
    lines = [
        first,
        all_on,
        None if first and seen.noise > seen.residual else _noise(model, seen),  # it has been said
        _units(seen),
        None if all_on else _prior(seen),  # which would ask for the opposite
    ]
    return tuple(line for line in lines if line)


def warn_of_nothing(model: VAE, data: Dataset, seen: Survey, *, seed: int = 0, stacklevel: int = 3) -> None:
    """Warn by a `NothingExplainedWarning` where `nothing_explained` has something to say."""
    if line := nothing_explained(model, data, seen, seed=seed):
        warnings.warn(line, NothingExplainedWarning, stacklevel=stacklevel)


def nothing_explained(model: VAE, data: Dataset, seen: Survey, *, seed: int = 0) -> str | None:
    """Say that the code explains nothing, and the likely cause; None where it does, or where there is no structure."""
    if math.isnan(seen.r2) or seen.r2 >= NOTHING:
        return None
    # More would leave out little even of noise, and tell nothing.
    num = max(1, min(_COMPONENTS, len(seen.usage), len(seen.mean) // 4, min(seen.num_data, _DATA) // 4))
    components, chance = principal_components(model, data, num, seed)
    if components - chance < _STRUCTURE:
        return None
    unused = "" if seen.is_informative.all() else f"{_count(seen)}; "
    return (
        f"the code explains nothing: R2 {as_share(seen.r2)}, where {num} principal components reach "
        f"{as_share(components)}; {unused}{_remedy(model, data, seen)}"
    )


def principal_components(model: VAE, data: Dataset, num: int, seed: int) -> tuple[float, float]:
    """The share of squared deviation explained by `num` principal components, and by those of shuffled data at most.

    In shuffled data each pixel has been permuted among the data by itself, so that no two have anything in common. The
    most is three standard deviations above the mean of several shuffles.
    """
    like = model.reference
    rows = torch.linspace(0, len(data) - 1, min(len(data), _DATA)).long()
    with torch.no_grad(), seeded(seed, like.device):
        x = data.draw(rows, torch.Generator(data.images.device).manual_seed(seed)).to(like).flatten(1)
        x = x - x.mean(0)
        x = x / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
        shuffled = torch.tensor([_explained(x.gather(0, torch.rand_like(x).argsort(0)), num) for _ in range(_SHUFFLES)])
        return _explained(x, num), float(shuffled.mean() + _DEVIATIONS * shuffled.std())


def _explained(x: Tensor, num: int) -> float:
    _, singular, _ = torch.pca_lowrank(x, q=min(num, *x.shape), center=False)
    return float(singular.square().sum() / x.square().sum().clamp(min=torch.finfo(x.dtype).tiny))


def _remedy(model: VAE, data: Dataset, seen: Survey) -> str:
    """The likely cause of latents that are not used, and what to try."""
    # Where nothing is explained the residuals are the data, and no scale is too large for them.
    follows = getattr(model.decoder, "follows_data", False)
    if seen.r2 < NOTHING and _WRONG * seen.noise > seen.deviation and not follows:
        return f"{_scales(seen)}; try NormalDecoder(scale='data') or a smaller number"
    if seen.noise > _WRONG * seen.residual and not follows:
        return f"{_scales(seen, of_residuals=True)}; try NormalDecoder(scale='data') or a smaller number"
    # Where nothing is explained, what some latents tell of the data is of no use to the decoder.
    idle = ~seen.is_informative if seen.r2 >= NOTHING else torch.ones_like(seen.is_informative)
    jump = _jump(model, data, idle.nonzero()[:_LATENTS, 0])
    if jump > _JUMP:
        factor = math.sqrt(0.5 / jump)
        return (
            f"a latent that goes from 0 to 1 moves the output by {jump:.0f} nats, so that it is shut before it has "
            f"learnt what to add; build the model anew, its decoder.network[0].weight times {factor:.1g}"
        )
    if model.beta > 1:
        return f"lower beta, {model.beta:g}, which weighs what codes cost"
    return f"{_WARM_UP}, raise the encoder's initial_inclusion, or train for longer"


def _jump(model: VAE, data: Dataset, latents: Tensor) -> float:
    """By how many nats the output moves when one of the latents goes from 0 to 1, their median; 0 where not known."""
    with model.evaluating(), pyro.validation_enabled(False):
        shape = model.encoder(data.images[:1].to(model.reference)).event_shape
        off = model.reference.new_zeros(len(latents), shape.numel())
        on = off.clone()
        on[torch.arange(len(latents)), latents] = 1.0
        try:
            moved = kl_divergence(*(model.decoder(code.reshape(-1, *shape)) for code in (off, on)))
        except NotImplementedError:
            return 0.0
    return float(moved.median())


def _count(seen: Survey) -> str:
    return f"{int((~seen.is_informative).sum())} of {len(seen.usage)} latents unused"


def _unused(model: VAE, data: Dataset, seen: Survey) -> str | None:
    if 2 * int(seen.is_informative.sum()) >= len(seen.usage):
        return None
    # Less is explained than would show in principal components.
    remedy = "the data have little structure" if seen.r2 < NOTHING else _remedy(model, data, seen)
    return f"{_count(seen)}; {remedy}"


def _all_on(seen: Survey) -> str | None:
    on = float(seen.usage.mean())
    if not seen.has_atom or on < 0.9 or not seen.prior_inclusion < 0.5:
        return None
    remedy = "take a smaller inclusion for the prior, or a larger beta"
    if not math.isnan(seen.noise) and _WRONG * seen.noise < seen.deviation:
        remedy = f"{_scales(seen)}; try a larger one"
    return f"all latents are on, {as_share(on)} of them for a datum: codes are not sparse; {remedy}"


def _noise(model: VAE, seen: Survey) -> str | None:
    """A scale that is not that of what is left unexplained, where something is explained."""
    if seen.r2 < NOTHING or math.isnan(seen.noise) or not seen.residual > 0:
        return None
    if getattr(model.decoder, "follows_data", False) or 1 / _WRONG <= seen.noise / seen.residual <= _WRONG:
        return None
    harm = "smaller structure counts as noise" if seen.noise > seen.residual else "noise is coded as well"
    return f"{_scales(seen, of_residuals=True)}, so that {harm}; try NormalDecoder(scale='data', variance='shared')"


def _units(seen: Survey) -> str | None:
    """Data in units that a scale common to all pixels does not fit."""
    if math.isnan(seen.noise) or not seen.deviation > 0:
        return None
    offset = float(seen.mean.square().mean().sqrt()) / seen.deviation
    if offset > _OFF_CENTRE:
        return f"the data's mean is {offset:.3g} times their deviation from it; subtract it before fit"
    largest = float(seen.variance.max() / seen.variance.sum())
    if len(seen.variance) >= 10 and largest > _DOMINANT:
        return (
            f"one of {len(seen.variance)} values of a datum has {largest:.0%} of all variance; standardise each value"
        )
    return None


def _prior(seen: Survey) -> str | None:
    on, before = float(seen.usage.sum()), seen.prior_inclusion * len(seen.usage)
    if seen.r2 < NOTHING or not seen.has_atom or math.isnan(before) or 1 / _UNLIKE <= on / before <= _UNLIKE:
        return None
    return (
        f"the prior expects {before:.3g} latents on for a datum, and {on:.3g} are; "
        f"try SpikeSlabPrior(inclusion={on / len(seen.usage):.1g}) or learn_inclusion=True"
    )


def _scales(seen: Survey, of_residuals: bool = False) -> str:
    name, other = ("residuals'", seen.residual) if of_residuals else ("data's", seen.deviation)
    return f"scale {seen.noise:.2g} against the {name} {other:.2g}"
