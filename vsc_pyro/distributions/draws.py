r"""The slab and the spike that a draw of a spike-and-slab carries, so that its density has an unbiased gradient.

A hard spike has no derivative, so the gradient of :math:`\log q(z)` at the number :math:`z = 0` does not pass through
the spike. `pyro.infer.Trace_ELBO` would never learn the sparsity; with a straight-through spike it would learn it with
the wrong sign. Neither would raise an error. Given the slab draw :math:`w`, however, every log-density is linear in the
spike,

.. math:: \log q = s\,(\log\gamma + \log F(w)) + (1 - s) \log(1 - \gamma).

With :math:`s = \text{hard} + \gamma - \text{stop}(\gamma)`, whose derivative is exactly one, the value is the same
number and its gradient is unbiased. So a draw carries :math:`(w, s)`, and `log_prob` of any `SpikeSlab`, posterior or
prior, uses them. (`pyro.distributions.RelaxedBernoulliStraightThrough` carries its unrounded value in the same way.)
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from vsc_pyro.distributions.spike_slab import SpikeSlab

_KEY = "_spike_slab_draw"
# Soft draws that are in use, with their memory: a detached tensor keeps the memory of a draw alive, but not the draw.
_soft_draws: list[tuple[StorageWeakRef, weakref.ref[Tensor]]] = []


class Draw(NamedTuple):
    """One draw of a spike-and-slab.

    Attributes:
        slab: the draw w of the slab.
        spike: the spike s, 0 or 1, with a derivative of one with respect to the inclusion probability.
        value: the value of the draw, with the gate's gradient; None if an edit in place has replaced it.
        by: the distribution that made the draw.
        score: the score, for a gate that has one.
        version: the version counter of the value's memory at the time of the draw.
    """

    slab: Tensor
    spike: Tensor
    value: Tensor | None
    by: SpikeSlab
    score: Tensor | None = None
    version: int = 0

    @property
    def is_soft(self) -> bool:
        """True if the value is a relaxed spike times the slab."""
        return self.by.gate.hardened() is not self.by.gate

    def is_edited(self) -> bool:
        """Return True if the value was edited in place after the draw."""
        return self.value is None or _version(self.value) != self.version


NO_TERM = cast("Tensor", 0)
"""An absent term of `ScoreParts`: Pyro's ELBOs test for the number 0, which the annotation does not mention."""


class CentredScoreParts(ScoreParts):
    """Score parts of draws that are each other's baseline. An ELBO must not subtract another one."""

    def scale_and_mask(self, scale: float | Tensor = 1.0, mask: torch.BoolTensor | None = None) -> CentredScoreParts:
        return CentredScoreParts(*super().scale_and_mask(scale, mask))


def remember(draw: Draw) -> Tensor:
    """Return the value of `draw`, a tensor that carries the draw, as does its node of the autograd graph."""
    value = cast("Tensor", draw.value)
    if value.grad_fn is None:
        draw = draw._replace(value=value.detach(), version=_version(value))  # a tensor must not hold itself
    else:
        # A node that holds its own tensor would never be freed, so the node of a view holds it.
        node, value = value.grad_fn, value.view_as(value)
        draw = draw._replace(version=_version(value))
        if draw.spike.requires_grad or draw.is_soft:
            _metadata(cast("Node", value.grad_fn))[_KEY] = draw
            _metadata(node)[_KEY] = draw._replace(value=None)  # an edit in place replaces the node of the view
    setattr(value, _KEY, draw)
    if draw.is_soft and not is_vectorised(value):
        _soft_draws[:] = [known for known in _soft_draws if not known[0].expired()]
        _soft_draws.append((StorageWeakRef(value.untyped_storage()), weakref.ref(value)))
    return value


def is_vectorised(value: Tensor) -> bool:
    """Return True inside `torch.func.vmap` and the like, where a tensor has no memory of its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]


def shares_soft_memory(value: Tensor) -> bool:
    """Return True if `value` shares its memory with a draw of a soft gate."""
    return bool(_soft_draws) and StorageWeakRef(value.untyped_storage()) in [memory for memory, _ in _soft_draws]


def soft_draws() -> list[Tensor]:
    """Return the draws of soft gates that are in use, the latest last."""
    return [draw for _, ref in _soft_draws if (draw := ref()) is not None]


def draw_of(value: Tensor) -> Draw | None:
    """Return the draw that `value` carries, or None. A value that was edited in place carries no draw."""
    draw = getattr(value, _KEY, None)
    return None if draw is None or draw.version != _version(value) else draw


def draw_at(node: Node) -> Draw | None:
    """Return the draw that a node of the autograd graph carries, or None."""
    return _metadata(node).get(_KEY)


def _metadata(node: Node) -> dict:
    return cast("dict", node.metadata)  # torch declares a method


def expand_draw(value: Tensor, shape: torch.Size) -> Tensor:
    """Return ``value.expand(shape)``, which carries the expanded draw of `value`."""
    expanded = value.expand(shape)
    if draw := draw_of(value):
        score = None if draw.score is None else draw.score.expand(shape)
        setattr(
            expanded, _KEY, draw._replace(slab=draw.slab.expand(shape), spike=draw.spike.expand(shape), score=score)
        )
    return expanded


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version
