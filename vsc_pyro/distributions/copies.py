r"""Copies of a draw: the value of an operation on a draw, scored as the draw itself would be.

A spike-and-slab's density jumps at zero, so its gradient cannot be read off a number; it takes the draw behind the
number (see `vsc_pyro.distributions.spike_slab`). Let v be computed from draws :math:`z = s w` of spikes s and slabs w.
Autograd holds the Jacobian of v by z. Where a cell of v depends on one cell of one draw, and linearly,

.. math:: v = c + a z, \qquad \log p(v) = s \log p(c + a w) + (1 - s) \log p(c),

which is linear in the spike, as the density of the draw is, and its gradient is as unbiased. That covers views, slices,
permutations, concatenations, padding and repetition (a = 1, c = 0), and scaled and shifted draws. Any other value is a
number of its own: its gradient is that of the gate, as in any likelihood. Where such a number is exactly zero, the gate
knows nothing of the jump there, and where it is a copy whose position depends on values, as of a sort, a spike that
flips would move it. Both are refused.

A draw of a *soft* gate is never zero, and its copy has the wrong density, not only the wrong gradient. Without a graph
it is recognised by its numbers, and refused.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from vsc_pyro.distributions.draws import Draw, draw_at
from vsc_pyro.gates import Gate

_GOLDEN = (math.sqrt(5) - 1) / 2


class Copy(NamedTuple):
    """What a value is made of, cell by cell, all of the value's shape.

    Attributes:
        spike: the spike of the draw behind each cell, 1 where there is none.
        on, off: the cell's value with that spike on and off.
        gate: that of the draws, or of one of them.
        is_repeated: whether a cell of a draw is behind several cells of the value.
    """

    spike: Tensor
    on: Tensor
    off: Tensor
    gate: Gate
    is_repeated: bool


class LostDrawError(ValueError):
    """A value that was drawn, and of whose density the gradient is not known."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(
            f"this value was drawn with {gate!r} and carries its gradients, but not the spike-and-slab draw it "
            "came from, so the gradient of its density would be wrong; pass the tensor that rsample returned "
            "itself, or use gate='score', which takes transformed posteriors and mixture priors"
        )


def copy_of(value: Tensor) -> Copy | None:
    """How `value` was made of draws; None if it is a number of its own.

    Raises:
        LostDrawError: a value that is neither.
        ValueError: a copy of a soft draw without its graph.
    """
    draws = _draws_behind(value)
    if not torch.is_grad_enabled():  # the number of a hard draw tells its density
        draws = {node: draw for node, draw in draws.items() if draw.is_soft}
    if draws:
        gate = next(iter(draws.values())).by.gate
        if torch.jit.is_tracing() or any(draw.is_edited() for draw in draws.values()):
            raise LostDrawError(gate)  # a trace would keep what is found here for draws to come
        try:
            with torch.enable_grad():
                parts, is_mixed = _sources(value, draws)
        except RuntimeError as error:  # a step of the graph that cannot be differentiated twice
            raise LostDrawError(gate) from error
        return _composed(value, parts, is_mixed, gate)
    if value.grad_fn is None and _is_copy_of_soft_draw(value):
        raise ValueError(
            "a value drawn with soft spikes is never exactly zero and cannot be scored without the draw it came "
            "from; pass the tensor that rsample returned itself, or use a gate with hard spikes"
        )
    return None


def _draws_behind(value: Tensor) -> dict[Node, Draw]:
    """The draws that `value` was computed from, by the nodes of its autograd graph that made them."""
    found: dict[Node, Draw] = {}
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (draw := draw_at(node)) is not None:
            found[node] = draw
        else:
            waiting.extend(source for source, _ in node.next_functions)
    return found


def _composed(value: Tensor, parts: list[_Source], is_mixed: Tensor, gate: Gate) -> Copy | None:
    """The value as a copy of its sources; `is_mixed` says which cells depend on draws in another way."""
    copied = sum(part.copied.long() for part in parts)
    is_mixed = is_mixed | (copied > 1)
    is_made_of_one = (copied == 1) & ~is_mixed
    off = value - sum(torch.where(is_made_of_one, part.scaled(part.draw.value), 0.0) for part in parts)
    size, remainder = value.detach().abs(), off.detach().abs()
    exact = remainder <= _tolerance(value) * size
    off = torch.where(is_made_of_one & exact, torch.zeros_like(off), off)
    # A copy that has been rounded to 16 bits and back: beside exact zeros, every shift is next to nothing.
    is_rounded = is_made_of_one & ~exact & (size > 0) & (remainder < 0.004 * size)
    on, spike, is_followed = off, torch.ones_like(value), torch.zeros_like(is_mixed)
    is_repeated = False
    for part in parts:
        mine = part.copied & is_made_of_one
        if not mine.any():
            continue
        if _is_regular(part.index, mine, part.draw.slab.numel()):
            is_followed = is_followed | mine
            on = torch.where(mine, off + part.scaled(part.draw.slab), on)
            spike = torch.where(mine, part.gathered(part.draw.spike), spike)
            is_repeated |= len(part.index[mine].unique()) < int(mine.sum())
    zero = value.detach() == 0
    constant = (copied == 0) & ~is_mixed
    lost = ~is_followed & ~constant & (zero | (is_made_of_one & (off.detach() == 0)))
    if (constant & zero).any():
        # The zero may be a constant, such as padding, or a spike that is off behind a kink, such as that of relu.
        lost = lost | (constant & zero & any(part.has_unused_spike_off(is_followed) for part in parts))
    if (is_made_of_one & zero).any() and (is_rounded | exact | ~is_made_of_one).all():
        lost = lost | is_rounded
    if lost.any():
        raise LostDrawError(gate)
    if not is_followed.any():
        return None
    return Copy(spike, on, off, gate, is_repeated)


class _Source(NamedTuple):
    """The cells of a value that a draw is behind: which, times what, and the index of the draw's cell."""

    draw: Draw
    copied: Tensor
    scale: Tensor
    index: Tensor

    def gathered(self, cells: Tensor) -> Tensor:
        return cells.reshape(-1)[self.index].to(self.scale.dtype)

    def scaled(self, cells: Tensor) -> Tensor:
        return self.scale * self.gathered(cells)

    def has_unused_spike_off(self, is_followed: Tensor) -> bool:
        used = torch.zeros(self.draw.spike.numel(), dtype=torch.bool, device=self.index.device)
        used[self.index[self.copied & is_followed]] = True
        return bool((~used & (self.draw.spike.detach().reshape(-1) == 0)).any())


def _sources(value: Tensor, draws: dict[Node, Draw]) -> tuple[list[_Source], Tensor]:
    """For each draw what it is behind, and which cells depend on draws in another way."""
    edges = [GradientEdge(node, 0) for node in draws]
    weight = (0.5 + _spread(value)).requires_grad_()
    pulled = torch.autograd.grad(value, edges, weight, create_graph=True, allow_unused=True)
    curved = _curvature(pulled, edges)
    mixed, parts = torch.zeros_like(value, dtype=torch.bool), []
    for draw, back, curve in zip(draws.values(), pulled, curved, strict=True):
        if back is None:
            continue
        push = _pushing(back, weight)
        scale = push(torch.ones_like(back))
        size = scale.detach()
        index = _index(push, back, size)
        probe = 0.5 + _spread(back)
        expected = size * probe.reshape(-1)[index]
        alone = ((push(probe).detach() - expected).abs() <= _tolerance(value) * size.abs()) & (size != 0)
        straight = torch.ones_like(alone) if curve is None else (curve.reshape(-1)[index] == 0)
        copied = alone & straight
        mixed = mixed | (~copied & ((size != 0) | (push(probe).detach() != 0)))
        parts.append(_Source(draw, copied, scale, index))
    return parts, mixed


def _pushing(back: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The Jacobian's product with a vector: the derivative, by the vector that was pulled back, of what came of it."""

    def push(tangent: Tensor) -> Tensor:
        if not back.requires_grad:
            return torch.zeros_like(weight)
        (pushed,) = torch.autograd.grad(back, weight, tangent, create_graph=True, allow_unused=True)
        return torch.zeros_like(weight) if pushed is None else pushed

    return push


def _curvature(pulled: tuple, edges: list[GradientEdge]) -> tuple:
    """Where the Jacobian depends on the draws themselves: not zero at those cells."""
    outputs = [back for back in pulled if back is not None and back.requires_grad]
    if not outputs:
        return (None,) * len(edges)
    weights = [0.5 + _spread(output) for output in outputs]
    return torch.autograd.grad(outputs, edges, weights, retain_graph=True, allow_unused=True)


def _index(push: Callable[[Tensor], Tensor], cells: Tensor, scale: Tensor) -> Tensor:
    """The index of the cell that each cell of the value is a multiple of, digit by digit, for a digit fits its type."""
    bits = 8 if torch.finfo(cells.dtype).eps < 1e-5 else 3
    number = torch.arange(cells.numel(), device=cells.device).reshape(cells.shape)
    index, divisor = torch.zeros_like(scale, dtype=torch.long), torch.where(scale == 0, 1.0, scale)
    for shift in range(0, max(1, cells.numel() - 1).bit_length(), bits):
        digit = ((number >> shift) & ((1 << bits) - 1)).to(cells.dtype)
        index += (push(digit).detach() / divisor).nan_to_num().round().long() << shift
    return index.clamp(0, max(0, cells.numel() - 1))


def _tolerance(value: Tensor) -> float:
    """Relative error of a value that may have passed through single precision."""
    return 8 * max(torch.finfo(dtype).eps for dtype in (value.dtype, torch.float32))


def _spread(like: Tensor) -> Tensor:
    """Numbers in [0, 1) of the shape of `like`, no simple combination of which is another, without randomness."""
    cells = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    return ((1 + cells) * _GOLDEN).remainder(1).reshape(like.shape).to(like.dtype)


def _is_regular(index: Tensor, mine: Tensor, num_cells: int) -> bool:
    """Whether the position of a cell says which it copies, whatever the values: not so of a sort or a maximum.

    The copied cells form a box, and indices are sums of one number for each coordinate; if cells of the draw are left
    out, these are multiples of the coordinate, as in a slice.
    """
    where = mine.nonzero()
    low, high = (where.amin(0), where.amax(0) + 1) if where.numel() else (where.new_zeros(0), where.new_zeros(0))
    if mine.dim() == 0:
        return True
    if len(where) != int((high - low).prod()):
        return False
    box = index[tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))]
    total, lines = box.flatten()[0], []
    for dim in range(box.dim()):
        line = box[tuple(slice(None) if d == dim else 0 for d in range(box.dim()))]
        lines.append(line - box.flatten()[0])
        total = total + lines[-1].reshape([-1 if d == dim else 1 for d in range(box.dim())])
    if not torch.equal(total.expand_as(box), box):
        return False
    return len(box.unique()) == num_cells or all(len(line.diff().unique()) < 2 for line in lines)


_soft_draws: list[weakref.ref[Tensor]] = []
_last_soft_draw: list[Tensor] = []


def remember_soft(value: Tensor) -> None:
    """Let copies of `value`, a soft draw, be recognised for as long as it is in use, or is the last of all."""
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return
    _soft_draws[:] = [ref for ref in _soft_draws if ref() is not None]
    _soft_draws.append(weakref.ref(value))
    _last_soft_draw[:] = [value.detach()]


def _is_copy_of_soft_draw(value: Tensor) -> bool:
    """Whether most of what is not zero in `value` are numbers of a soft draw."""
    known = [soft for ref in _soft_draws if (soft := ref()) is not None] + _last_soft_draw
    known = [soft.detach() for soft in known if soft.device == value.device]
    if not known:
        return False
    numbers = value.detach()[value.detach() != 0]
    pool = torch.cat([soft.reshape(-1).to(numbers.dtype) for soft in known])
    return bool(2 * torch.isin(numbers, pool).sum() > numbers.numel())
