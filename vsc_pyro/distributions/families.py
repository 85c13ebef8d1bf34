"""What the library asks of a distribution, answered by its family.

Every function here takes `Independent` off and asks the class of what is left. A family answers by registering with the
function, beside its own class, as divergences are registered by `register_kl`::

    @centre.register
    def _(distribution: StudentT) -> Tensor:
        return distribution.loc

What a family does not register is answered from its moments and attributes. So a new family is one file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Delta, ImproperUniform
from torch import Tensor
from torch.distributions import Bernoulli, Cauchy, Distribution, Independent, MixtureSameFamily, StudentT
from torch.distributions.constraints import Constraint, real
from torch.nn.functional import logsigmoid


def _by_family(answer: Callable[[Distribution], Any]) -> Any:
    """The function `answer`, and where a family has registered an answer of its own that one."""
    answers = functools.singledispatch(answer)

    @functools.wraps(answer)
    def ask(distribution: Distribution) -> Any:
        return answers(_without_independent(distribution))

    ask.register = answers.register
    return ask


def _without_independent(distribution: Distribution) -> Distribution:
    """The distribution without the `Independent` around it."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


@_by_family
def is_point(distribution: Distribution) -> bool:
    """Whether the distribution is a point (`Delta`), which has no density."""
    return False


@is_point.register
def _(distribution: Delta) -> bool:
    return True


@_by_family
def is_proper(distribution: Distribution) -> bool:
    """Whether it integrates to 1 and can be drawn from."""
    return True


@is_proper.register
def _(distribution: ImproperUniform) -> bool:
    return False


@_by_family
def is_bernoulli(distribution: Distribution) -> bool:
    """Whether data are distributed as independent Bernoullis, so that their cross-entropy is at least 0."""
    return False


@is_bernoulli.register
def _(distribution: Bernoulli) -> bool:
    return True


@_by_family
def has_mean(distribution: Distribution) -> bool:
    """Whether the mean is finite; not of Cauchy, nor of a spike-and-slab that has such a slab."""
    return True


@has_mean.register
def _(distribution: Cauchy) -> bool:
    return False


@_by_family
def inclusion_logits(distribution: Distribution) -> Tensor | None:
    """Log-odds of P(z != 0) of every coordinate, shape `batch_shape + event_shape`; None where zero has no mass.

    Of a mixture, those of its weighted mean probability.
    """
    return inclusion_logits(distribution.base_dist) if hasattr(distribution, "base_dist") else None


@inclusion_logits.register
def _(distribution: MixtureSameFamily) -> Tensor | None:
    logits = inclusion_logits(distribution.component_distribution)
    if logits is None:
        return None
    ndims = len(distribution.event_shape)
    weights = distribution.mixture_distribution.logits.reshape(logits.shape[: logits.ndim - ndims] + (1,) * ndims)
    on, off = (torch.logsumexp(weights + logsigmoid(sign * logits), -1 - ndims) for sign in (1, -1))
    return on - off


@_by_family
def slab_of(distribution: Distribution) -> Distribution:
    """What a code of independent latents is distributed by where it is not zero: a spike-and-slab's slab, or itself.

    The latents are dimensions of its batch: the shape is `batch_shape + event_shape` of the distribution.
    """
    return distribution


@_by_family
def centre(distribution: Distribution) -> Tensor:
    r"""The mean, or where a family need not have one its median; shape `batch_shape + event_shape`.

    That is `loc` for Cauchy and Student's t, :math:`\gamma c` for a spike-and-slab whose slab has the centre c, and
    the mean for all others. What `evaluate`, the probes and the plots take as the code of a datum.

    Raises:
        NotImplementedError: a distribution that does not give its mean.
    """
    return distribution.mean


@centre.register(Cauchy)
@centre.register(StudentT)
def _(distribution: Distribution) -> Tensor:
    return distribution.loc


@_by_family
def noise_scale(distribution: Distribution) -> Tensor | None:
    """The parameter `scale` of the data's family, in units of the data; None where it has none."""
    return getattr(distribution, "scale", None)


@_by_family
def scale_of(distribution: Distribution) -> Tensor:
    """How wide the distribution of every coordinate is, of the shape of `centre`.

    The parameter `scale` of a family that has one, 0 of a point, and the standard deviation of any other.

    Raises:
        NotImplementedError: a distribution that gives neither.
    """
    if hasattr(distribution, "scale"):
        return distribution.scale.expand(distribution.batch_shape + distribution.event_shape)
    return distribution.stddev


@scale_of.register
def _(distribution: Delta) -> Tensor:
    return torch.zeros_like(centre(distribution))


Change = Callable[[str, Tensor, Constraint], Tensor]
"""Makes a parameter's new value from its name, its value and its constraint."""


@functools.singledispatch
def changed(distribution: Distribution, change: Change) -> Distribution:
    """The distribution of the same family with other parameters, each of which `change` gives.

    Parts come under dotted names, such as ``"slab.loc"``. Of probabilities it is the log-odds that change.

    Raises:
        NotImplementedError: a distribution that is not one of scalars, or has no parameters.
    """
    constraints = distribution.arg_constraints
    names = [name for name in constraints if not (name == "probs" and "logits" in constraints)]
    if distribution.event_shape or not names:
        raise NotImplementedError(f"{type(distribution).__name__} cannot be made of other parameters")
    parameters = {name: change(name, getattr(distribution, name), constraints[name]) for name in names}
    return type(distribution)(**parameters, validate_args=False)


@changed.register
def _(distribution: Independent, change: Change) -> Distribution:
    return changed(distribution.base_dist, change).to_event(distribution.reinterpreted_batch_ndims)


@changed.register
def _(distribution: Delta, change: Change) -> Distribution:
    return Delta(change("v", distribution.v, real), event_dim=distribution.event_dim)


def of_part(name: str, change: Change) -> Change:
    """The change of a part of that name."""
    return lambda parameter, value, constraint: change(f"{name}.{parameter}", value, constraint)


def inclusion_of(distribution: Distribution) -> Tensor:
    """P(z != 0) of every coordinate: 1 without an atom at zero, and of a point whether it is not zero."""
    logits = inclusion_logits(distribution)
    if logits is not None:
        return logits.sigmoid()
    code = centre(distribution)
    return (code != 0).to(code) if is_point(distribution) else torch.ones_like(code)


def hard_code(distribution: Distribution) -> Tensor:
    r"""The code with exact zeros: the slab's centre where :math:`\gamma > 1/2`, else 0; shape as of `centre`.

    Of a distribution without an atom at zero, and of a point, it is the `centre`.
    """
    logits = inclusion_logits(distribution)
    if logits is None:
        return centre(distribution)
    return torch.where(logits > 0, centre(slab_of(distribution)), torch.zeros_like(logits))
