r"""Copies of a draw: the value of an operation on a draw, scored as the draw itself would be.

A spike-and-slab's density jumps at zero, so its gradient cannot be read off a number; it takes the draw behind the
number (see `vsc_pyro.distributions.spike_slab`). Let v be computed from draws :math:`z = s w` of spikes s and slabs w.
Autograd holds the Jacobian of v by z. Where a cell of v depends on one cell of one draw, and linearly,

.. math:: v = c + a z, \qquad \log p(v) = s \log p(c + a w) + (1 - s) \log p(c),

which is linear in the spike, as the density of the draw is, and its gradient is as unbiased. That covers views, slices,
concatenations, padding and repetition (a = 1, c = 0), and scaled and shifted draws. A cell that depends on several
cells is a number of its own: its gradient is that of the gate, as in any likelihood. Refused are

* a number that is exactly zero: the gate knows nothing of the jump there;
* a function of one cell that is not linear, piecewise linear ones such as relu included;
* positions or masks that are tensors (`gather`, `where`, a sort): they may depend on the values, and a spike that flips
  would change them.

What has been computed from a detached draw is taken for a constant, and a log-sum-exp of densities by hand is not seen.

A draw of a *soft* gate is never zero, and its copy has the wrong density, not only the wrong gradient. A copy without a
graph is recognised by its memory or its numbers as long as the draw is in use, and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from vsc_pyro.distributions.draws import Draw, draw_at, shares_soft_memory, soft_draws
from vsc_pyro.gates import Gate

_SOFT_DRAWS_KNOWN = 8  # the latest ones


class Copy(NamedTuple):
    """The parts of a value, cell by cell, all of the value's shape.

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

    def __init__(self, gate: Gate, why: str = "") -> None:
        super().__init__(
            f"this value was drawn with {gate!r} and carries its gradients, but not the spike-and-slab draw it "
            f"came from{why}, so the gradient of its density would be wrong; pass the tensor that rsample returned "
            "itself, or use gate='score', which takes transformed posteriors and mixture priors"
        )


def copy_of(value: Tensor) -> Copy | None:
    """How `value` was made of draws; None if it is a number of its own.

    Raises:
        LostDrawError: a value that is neither.
        ValueError: a copy of a soft draw without its graph.
    """
    draws, between = _draws_behind(value)
    if not torch.is_grad_enabled():  # the number of a hard draw tells its density
        draws = {node: draw for node, draw in draws.items() if draw.is_soft}
    if draws:
        gate = next(iter(draws.values())).by.gate
        if torch.jit.is_tracing():
            raise LostDrawError(gate, " (a trace would keep what is found in this draw for all others)")
        if any(draw.is_edited() for draw in draws.values()):
            raise LostDrawError(gate, " (it has been edited in place)")
        try:
            with torch.enable_grad():
                tolerance = _tolerance(value, between)
                return _composed(value, *_sources(value, draws, tolerance), tolerance, between, gate)
        except RuntimeError as error:
            if "_local_scalar_dense" in str(error):  # a recorder's, which nothing here may look at values for
                raise
            raise LostDrawError(gate, " (a step between them cannot be differentiated twice)") from error
    if value.grad_fn is None and _is_copy_of_soft_draw(value):
        raise ValueError(
            "a value drawn with soft spikes is never exactly zero and cannot be scored without the draw it came "
            "from; pass the tensor that rsample returned itself, or use a gate with hard spikes"
        )
    return None


def _draws_behind(value: Tensor) -> tuple[dict[Node, Draw], list[Node]]:
    """The draws that `value` was computed from, by the nodes of the graph that made them, and the nodes between."""
    found: dict[Node, Draw] = {}
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node in found:
            continue
        if (draw := draw_at(node)) is not None:
            found[node] = draw
        else:
            seen.add(node)
            waiting.extend(source for source, _ in node.next_functions)
    return found, list(seen)


def _depends_on_values(node: Node) -> bool:
    """Return True if the derivative of an operation may depend on its values without a trace in the graph.

    It does where one input or the result is kept for it, as by a relu; and positions and masks that are kept as tensors
    may come from values.
    """
    kept = {name: getattr(node, name) for name in dir(node) if name.startswith("_saved_")}
    operands = [kept.pop("_saved_self", None), kept.pop("_saved_other", None)]
    others = [t for held in kept.values() for t in (held if isinstance(held, (tuple, list)) else (held,))]
    # An operand without dimensions is a Python number.
    positions = others + [t for t in operands if isinstance(t, Tensor) and t.dim()]
    if any(isinstance(t, Tensor) and not t.is_floating_point() for t in positions):
        return True
    inputs = [source for source, _ in node.next_functions if source is not None]
    own = (operands[0], kept.get("_saved_result"))
    return len(inputs) == 1 and any(isinstance(t, Tensor) and t.requires_grad for t in own)


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

    def has_unused_spike_off(self) -> bool:
        used = torch.zeros(self.draw.spike.numel(), dtype=torch.bool, device=self.index.device)
        used[self.index[self.copied]] = True
        return bool((~used & (self.draw.spike.detach().reshape(-1) == 0)).any())


def _composed(
    value: Tensor, parts: list[_Source], is_mixed: Tensor, tolerance: float, between: list[Node], gate: Gate
) -> Copy | None:
    """The value as a copy of its sources; `is_mixed` says which cells depend on draws in another way."""
    copied = sum(part.copied.long() for part in parts)
    is_mixed = is_mixed | (copied > 1)
    is_copied = (copied == 1) & ~is_mixed
    off = value - sum(torch.where(is_copied, part.scaled(part.draw.value), 0.0) for part in parts)
    is_exact = off.detach().abs() <= tolerance * value.detach().abs()
    off = torch.where(is_copied & is_exact, 0.0, off)
    zero = value.detach() == 0
    # A zero that depends on no draw may be a constant, such as padding, or a spike that is off behind a kink.
    constant = (copied == 0) & ~is_mixed
    is_lost = (zero & is_mixed).any() or ((zero | is_copied).any() and any(map(_depends_on_values, between)))
    if is_lost or ((zero & constant).any() and any(part.has_unused_spike_off() for part in parts)):
        raise LostDrawError(gate)
    if not is_copied.any():
        return None
    on, spike, is_repeated = off, torch.ones_like(value), False
    for part in parts:
        mine = part.copied & is_copied
        on = torch.where(mine, off + part.scaled(part.draw.slab), on)
        spike = torch.where(mine, part.gathered(part.draw.spike), spike)
        is_repeated |= len(part.index[mine].unique()) < int(mine.sum())
    return Copy(spike, on, off, gate, is_repeated)


def _sources(value: Tensor, draws: dict[Node, Draw], tolerance: float) -> tuple[list[_Source], Tensor]:
    """For each draw what it is behind, and which cells depend on draws in another way."""
    edges = [GradientEdge(node, 0) for node in draws]
    weight = _spread(value).requires_grad_()
    pulled = torch.autograd.grad(value, edges, weight, create_graph=True, allow_unused=True)
    mixed, parts = torch.zeros_like(value, dtype=torch.bool), []
    for draw, back in zip(draws.values(), pulled, strict=True):
        if back is None:
            continue
        push = _pushing(back, weight)
        scale = push(torch.ones_like(back))
        size = scale.detach()
        index = _index(push, back, size)
        # A Jacobian that depends on a draw is not linear in it, whatever its derivative is here.
        copied = (size != 0) if not _leads_to(back, draws) else torch.zeros_like(mixed)
        depends = size != 0
        for probe in (_spread(back), _spread(back).flip(0) if back.dim() else _spread(back)):
            pushed = push(probe).detach()
            copied = copied & ((pushed - size * probe.reshape(-1)[index]).abs() <= tolerance * size.abs())
            depends = depends | (pushed != 0)
        mixed = mixed | (depends & ~copied)
        parts.append(_Source(draw, copied, scale, index))
    return parts, mixed


def _leads_to(tensor: Tensor, draws: dict[Node, Draw]) -> bool:
    return any(node in draws for node in _draws_behind(tensor)[0])


def _pushing(back: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The Jacobian's product with a vector: the derivative, by the vector that was pulled back, of what came of it."""

    def push(tangent: Tensor) -> Tensor:
        if not back.requires_grad:
            return torch.zeros_like(weight)
        (pushed,) = torch.autograd.grad(back, weight, tangent, create_graph=True, allow_unused=True)
        return torch.zeros_like(weight) if pushed is None else pushed

    return push


def _index(push: Callable[[Tensor], Tensor], cells: Tensor, scale: Tensor) -> Tensor:
    """The index of the cell that each cell of the value is a multiple of, digit by digit, for a digit fits its type."""
    bits = 8 if torch.finfo(cells.dtype).eps < 1e-5 else 3
    number = torch.arange(cells.numel(), device=cells.device).reshape(cells.shape)
    index, divisor = torch.zeros_like(scale, dtype=torch.long), torch.where(scale == 0, 1.0, scale)
    for shift in range(0, max(1, cells.numel() - 1).bit_length(), bits):
        digit = ((number >> shift) & ((1 << bits) - 1)).to(cells.dtype)
        index += (push(digit).detach() / divisor).nan_to_num().round().long() << shift
    return index.clamp(0, max(0, cells.numel() - 1))


def _tolerance(value: Tensor, between: list[Node]) -> float:
    """Relative error of a value, by the coarsest type on its way from the draws."""
    types = {value.dtype} | {made.dtype for node in between for made in getattr(node, "_input_metadata", ())}
    return 8 * max(torch.finfo(dtype).eps for dtype in types if dtype.is_floating_point)


def _spread(like: Tensor) -> Tensor:
    """Numbers from 0.5 to 1.5 of the shape of `like` without a pattern, and without drawing any."""
    cells = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device)
    return (0.5 + (torch.sin(12.9898 * cells) * 43758.5453).remainder(1)).reshape(like.shape).to(like.dtype)


def _is_copy_of_soft_draw(value: Tensor) -> bool:
    """Return True if `value` has the memory, or most of the numbers, of a soft draw that is still in use."""
    if torch.jit.is_tracing() or torch._C._functorch.is_functorch_wrapped_tensor(value) or not value.numel():
        return False  # what is traced or vectorised cannot be looked at
    if shares_soft_memory(value):
        return True
    for draw in (draw.detach() for draw in soft_draws()[-_SOFT_DRAWS_KNOWN:]):
        # A much larger value is no copy, and a type of 16 bits has too few numbers to tell.
        is_alike = draw.device == value.device and draw.dtype == value.dtype
        if not is_alike or value.numel() > 4 * draw.numel() or value.dtype.itemsize < 4:
            continue
        numbers = value.detach().reshape(-1)
        if (draw == numbers[numbers.abs().argmax()]).any() and numbers.any():
            numbers = numbers[numbers != 0]
            if 2 * torch.isin(numbers, draw).sum() > numbers.numel():
                return True
    return False
