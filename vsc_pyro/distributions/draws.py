"""What a draw of a spike-and-slab remembers."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from vsc_pyro.distributions.spike_slab import SpikeSlab

_KEY = "_spike_slab_draw"
# Soft draws and their memory, as long as these are in use: of a detached draw the memory alone is.
_soft_draws: list[tuple[StorageWeakRef, weakref.ref[Tensor]]] = []


class Draw(NamedTuple):
    """How a value was drawn.

    Attributes:
        slab: the slab's draw.
        spike: 0 or 1, with the derivative of a density.
        value: what came of them, with the gate's gradient; None at a node behind an edited value.
        by: the distribution that drew.
        score: the score if the gate has one.
        version: of the value's memory at that time.
    """

    slab: Tensor
    spike: Tensor
    value: Tensor | None
    by: SpikeSlab
    score: Tensor | None = None
    version: int = 0

    @property
    def is_soft(self) -> bool:
        """Whether the value is a relaxed spike times the slab."""
        return self.by.gate.hardened() is not self.by.gate

    def is_edited(self) -> bool:
        """Whether the value has been edited in place."""
        return self.value is None or _version(self.value) != self.version


class CentredScoreParts(ScoreParts):
    """Score parts of draws that are held against each other already: an ELBO's own baseline would double the score."""

    def scale_and_mask(self, scale: float | Tensor = 1.0, mask: Tensor | None = None) -> CentredScoreParts:
        return CentredScoreParts(*super().scale_and_mask(scale, mask))


def remember(draw: Draw) -> Tensor:
    """The value of `draw`, which carries it, and whose node of the autograd graph does if there is one."""
    value = draw.value
    if value.grad_fn is None:
        draw = draw._replace(value=value.detach(), version=_version(value))  # a tensor must not hold itself
    else:
        # The node's own tensor, held by the node, would never be freed, so the node is that of a view.
        node, value = value.grad_fn, value.view_as(value)
        draw = draw._replace(version=_version(value))
        if draw.spike.requires_grad or draw.is_soft:
            value.grad_fn.metadata[_KEY] = draw
            node.metadata[_KEY] = draw._replace(value=None)  # where an edit in place has replaced the view's node
    setattr(value, _KEY, draw)
    if draw.is_soft and not torch._C._functorch.is_functorch_wrapped_tensor(value):
        _soft_draws[:] = [known for known in _soft_draws if not known[0].expired()]
        _soft_draws.append((StorageWeakRef(value.untyped_storage()), weakref.ref(value)))
    return value


def shares_soft_memory(value: Tensor) -> bool:
    """Whether `value` has the memory of a draw of a soft gate."""
    return bool(_soft_draws) and StorageWeakRef(value.untyped_storage()) in [memory for memory, _ in _soft_draws]


def soft_draws() -> list[Tensor]:
    """Draws of soft gates that are still in use, the latest last."""
    return [draw for _, ref in _soft_draws if (draw := ref()) is not None]


def draw_of(value: Tensor) -> Draw | None:
    """The draw that `value` is; None if it is none, or has been edited in place."""
    draw = getattr(value, _KEY, None)
    return None if draw is None or draw.version != _version(value) else draw


def draw_at(node: Node) -> Draw | None:
    """The draw that a node of the autograd graph made, or None."""
    return node.metadata.get(_KEY)


def expand_draw(value: Tensor, shape: torch.Size) -> Tensor:
    """``value.expand(shape)``, which remembers the draw that `value` is."""
    expanded = value.expand(shape)
    if draw := draw_of(value):
        score = None if draw.score is None else draw.score.expand(shape)
        setattr(
            expanded, _KEY, draw._replace(slab=draw.slab.expand(shape), spike=draw.spike.expand(shape), score=score)
        )
    return expanded


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version
