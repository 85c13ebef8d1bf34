r"""`advise`: the problems of a model and remedies, one line each; `NothingExplainedWarning`.

The rules read a `vsc_pyro.evaluation.survey.Survey`. If it shows a failure, they also look at the model and a few data.

A code that explains nothing is a failure only if the data have structure to explain. The test is by principal
components of at most 1,000 data: as many components as latents, but at most 50 and at most a quarter of the pixels and
of the data. The first components of pure noise also explain a share of the data they were fitted to. So their share is
compared with the share after each pixel is shuffled among the data (J. L. Horn, 1965), which destroys all structure
that several pixels have in common.

A model that has not been trained for long enough has the symptoms of wrong settings. So the advice is to train for
longer before settings are changed, if its last run of `fit` was short or the bound still rose at its end: so fast in
the last tenth that at this rate as many epochs again would gain a fifth of what the run has gained. Only faults that no
training mends come first: the noise's scale and the decoder's start.

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
from vsc_pyro.distributions.families import values_of
from vsc_pyro.evaluation.survey import Survey, as_share, comparable
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.history import History, last_runs
from vsc_pyro.training.loaded import Loaded

NOTHING = 0.05  # a code with a smaller R2 explains nothing
_STRUCTURE = 0.1  # excess of the share that principal components explain over that of shuffled data
_COMPONENTS, _DATA = 50, 1000
_SHUFFLES, _DEVIATIONS = 8, 3.0
_WRONG = 1.4  # factor: a noise scale wrong by it has half, or twice, the right variance
_UNLIKE = 4.0  # factor by which the prior's and the posterior's numbers of latents may differ
_OFF_CENTRE, _DOMINANT = 10.0, 0.5
_JUMP, _LATENTS = 5.0, 32
_FEW_STEPS = 1000
_LAST, _GAIN = 0.1, 0.2
# Mean inclusion of a latent that is on for every datum (1 minus it: for none); share of the others' sum in theirs.
_ALWAYS, _REST = 0.99, 0.1
_WARM_UP = "raise the weight of the KL divergence gradually (fit(..., warmup=0.2))"
_SMALLER_SCALE = "try NormalDecoder(scale='data') or a smaller number"


class NothingExplainedWarning(UserWarning):
    """A model decodes data no better than their mean does, although a linear code would."""


def advise(model: VAE, data: Dataset | Loaded, seen: Survey, *, seed: int = 0) -> tuple[str, ...]:
    """Return the problems of a model with remedies, a line each, the most serious first.

    The caller's random state and the model's mode are restored.

    Args:
        model: the model of the survey.
        data: the data of the survey.
        seen: the result of `vsc_pyro.evaluation.survey.survey`.
        seed: of random draws.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> from vsc_pyro.evaluation.advice import advise
        >>> from vsc_pyro.evaluation.survey import survey
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.SpikeSlabPrior(2))
        >>> data = vsc.Dataset(100 + torch.randn(50, 4))
        >>> any("subtract it" in line for line in advise(model, data, survey(model, data)))
        True
    """
    unused = nothing_explained(model, data, seen, seed=seed) or _unused(model, data, seen)
    first = unused or _rising(model)
    all_on = _all_on(seen) or (None if unused else _never_chosen(model, seen))  # whose remedies differ
    lines = [
        first,
        all_on,
        None if first and seen.noise > seen.residual else _noise(model, seen),  # `first` names the scale
        _units(seen),
        None if all_on else _prior(seen),  # which would contradict `all_on`
    ]
    return tuple(line for line in lines if line)


def warn_of_nothing(model: VAE, data: Dataset | Loaded, seen: Survey, *, seed: int = 0, stacklevel: int = 3) -> None:
    """Warn by a `NothingExplainedWarning` if `nothing_explained` returns a line."""
    if line := nothing_explained(model, data, seen, seed=seed):
        warnings.warn(line, NothingExplainedWarning, stacklevel=stacklevel)


def nothing_explained(model: VAE, data: Dataset | Loaded, seen: Survey, *, seed: int = 0) -> str | None:
    """Return a line with the likely cause if the code explains nothing of data that have structure; else None."""
    if math.isnan(seen.r2) or seen.r2 >= NOTHING:
        return None
    # More components would explain nearly everything, noise included.
    num = max(1, min(_COMPONENTS, len(seen.usage), len(seen.mean) // 4, min(seen.num_data, _DATA) // 4))
    components, chance = principal_components(model, data, num, seed)
    if components - chance < _STRUCTURE:
        return None
    unused = "" if seen.is_informative.all() else f"{_count(seen)}; "
    return (
        f"the code explains nothing: R2 {as_share(seen.r2)}, where {num} principal components reach "
        f"{as_share(components)}; {unused}{_remedy(model, data, seen)}"
    )


def principal_components(model: VAE, data: Dataset | Loaded, num: int, seed: int) -> tuple[float, float]:
    """Return the share of squared deviation that `num` principal components explain, and its limit under no structure.

    The limit is three standard deviations above the mean share of several shuffled copies of the data. In a shuffled
    copy each pixel is permuted among the data independently of the other pixels.
    """
    like = model.reference
    rows = torch.linspace(0, len(data) - 1, min(len(data), _DATA)).long()
    with torch.no_grad(), seeded(seed, like.device):
        x = data.draw(rows, torch.Generator(data.images.device).manual_seed(seed)).to(like)
        x = comparable(model, x)[0].flatten(1)
        x = x - x.mean(0) if model.missing is None else (x - x.nanmean(0)).nan_to_num(0.0)
        x = x / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
        shuffled = torch.tensor([_explained(x.gather(0, torch.rand_like(x).argsort(0)), num) for _ in range(_SHUFFLES)])
        return _explained(x, num), float(shuffled.mean() + _DEVIATIONS * shuffled.std())


def _explained(x: Tensor, num: int) -> float:
    _, singular, _ = torch.pca_lowrank(x, q=min(num, *x.shape), center=False)
    return float(singular.square().sum() / x.square().sum().clamp(min=torch.finfo(x.dtype).tiny))


def _remedy(model: VAE, data: Dataset | Loaded, seen: Survey) -> str:
    """Return the likely cause of unused latents, and a remedy."""
    # If nothing is explained, the residuals are the data and no scale is too large for them.
    follows = getattr(model.decoder, "follows_data", False)
    if seen.r2 < NOTHING and _WRONG * seen.noise > seen.deviation and not follows:
        return f"{_scales(seen)}; {_SMALLER_SCALE}"
    if seen.noise > _WRONG * seen.residual and not follows:
        return f"{_scales(seen, of_residuals=True)}; {_SMALLER_SCALE}"
    # If nothing is explained, the decoder does not use the informative latents either.
    idle = ~seen.is_informative if seen.r2 >= NOTHING else torch.ones_like(seen.is_informative)
    jump = _jump(model, data, idle.nonzero()[:_LATENTS, 0])
    if jump > _JUMP:
        factor = math.sqrt(0.5 / jump)
        return (
            f"switching a latent from 0 to 1 moves the output by {jump:.0f} nats, so training turns latents off before "
            f"the decoder has learnt to use them; build the model anew and scale decoder.network[0].weight by "
            f"{factor:.1g}"
        )
    if model.beta > 1:
        settings = f"lower beta, {model.beta:g}, the weight of the KL divergence"
    else:
        settings = f"{_WARM_UP} or raise the encoder's initial_inclusion"
    if seen.r2 >= NOTHING:
        settings += ", or take fewer latents"
    if too_short := _rising(model) or _short(model):
        return f"{too_short}; if that does not help, {settings}"
    return f"{settings}, or train for longer"


def _short(model: VAE) -> str | None:
    steps = last_runs.get(model, History()).steps
    return f"the last run had only {steps} steps; train for longer" if 0 < steps < _FEW_STEPS else None


def _rising(model: VAE) -> str | None:
    """Return a line if the bound rose until the end of the last run of `fit`."""
    history = last_runs.get(model, History())
    warmup = math.ceil(history.warmup_steps / max(history.steps_per_epoch, 1))
    bound = torch.tensor(history.validation or history.elbo, dtype=torch.float64)[warmup:]
    if len(bound) < 2:
        return None
    last = max(1, round(_LAST * len(bound)))
    rise = float(bound[-last:].mean() - bound[-2 * last : -last].mean())
    bends = bound[len(bound) // 2 :].diff(n=2)  # which a steady rise leaves at 0; of variance 6 for noise of variance 1
    noise = float(bends.square().mean().div(6).nan_to_num().mul(2 / last).sqrt())
    if rise <= max(_DEVIATIONS * noise, _GAIN * last / len(bound) * float(bound.max() - bound.min())):
        return None
    return f"the bound still rose by {rise:.2g} nats in the last {last} of {len(history)} epochs; train for longer"


def _jump(model: VAE, data: Dataset | Loaded, latents: Tensor) -> float:
    """Return the median over latents of the output's change in nats when a latent goes from 0 to 1; 0 if unknown."""
    with model.evaluating(), pyro.validation_enabled(False):
        shape = model.encoder(data.images[:1].to(model.reference)).event_shape
        off = model.reference.new_zeros(len(latents), shape.numel())
        on = off.clone()
        on[torch.arange(len(latents)), latents] = 1.0
        try:
            moved = kl_divergence(*(values_of(model.decoder(code.reshape(-1, *shape))) for code in (off, on)))
        except NotImplementedError:
            return 0.0
    return float(moved.median())


def _count(seen: Survey) -> str:
    return f"{int((~seen.is_informative).sum())} of {len(seen.usage)} latents unused"


def _unused(model: VAE, data: Dataset | Loaded, seen: Survey) -> str | None:
    if 2 * int(seen.is_informative.sum()) >= len(seen.usage):
        return None
    # At such an R2 `nothing_explained` has found no structure.
    remedy = "the data have little structure" if seen.r2 < NOTHING else _remedy(model, data, seen)
    return f"{_count(seen)}; {remedy}"


def _all_on(seen: Survey) -> str | None:
    on = float(seen.usage.mean())
    if not seen.has_atom or on < 0.9 or not seen.prior_inclusion < 0.5:
        return None
    remedy = "take a smaller inclusion for the prior, or a larger beta"
    if not math.isnan(seen.noise) and _WRONG * seen.noise < seen.deviation:
        remedy = f"{_scales(seen)}; try a larger scale"
    return f"codes are not sparse: {as_share(on)} of all latents are on for a datum; {remedy}"


def _never_chosen(model: VAE, seen: Survey) -> str | None:
    """Return a line if a learned prior has come to have every latent on for all data or for none."""
    always, rest = int((seen.usage > _ALWAYS).sum()), seen.usage[seen.usage <= _ALWAYS]
    is_learned = any(parameter.requires_grad for parameter in model.prior.parameters())
    chooses = bool((rest >= 1 - _ALWAYS).any()) or float(rest.sum()) > _REST * always  # many rare latents choose, too
    if not seen.has_atom or not is_learned or not always or chooses:
        return None
    latents = f"{always} of {len(seen.usage)} latents" if len(rest) else f"all {always} latents"
    return (
        f"codes are not sparse: {latents} are on for every datum{', and the others for none' if len(rest) else ''}; "
        "take a prior with a fixed, small inclusion, or PseudoInputPrior with a sparsity_weight and no warm-up"
    )


def _noise(model: VAE, seen: Survey) -> str | None:
    """Compare the decoder's scale with the residuals, if the code explains something."""
    if seen.r2 < NOTHING or math.isnan(seen.noise) or not seen.residual > 0:
        return None
    if getattr(model.decoder, "follows_data", False) or 1 / _WRONG <= seen.noise / seen.residual <= _WRONG:
        return None
    harm = "smaller structure counts as noise" if seen.noise > seen.residual else "the code describes noise, too"
    return f"{_scales(seen, of_residuals=True)}, so {harm}; try NormalDecoder(scale='data', variance='shared')"


def _units(seen: Survey) -> str | None:
    """Find data in units that no scale common to all pixels fits."""
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
    return f"the decoder's scale is {seen.noise:.2g}, the {name} deviation {other:.2g}"
