r"""Copies of a draw: values computed from a draw that are scored as the draw itself would be.

The density of a spike-and-slab jumps at zero, so its gradient needs the draw behind a number (see
`vsc_pyro.distributions.draws`). Let v be computed from draws :math:`z = s w` with spikes s and slabs w. Autograd holds
the Jacobian of v by z. If an element of v depends on one element of one draw, and linearly, then

.. math:: v = c + a z, \qquad \log p(v) = s \log p(c + a w) + (1 - s) \log p(c).

Like the density of the draw itself, this is linear in the spike, and its gradient is unbiased. It covers views, slices,
concatenations, padding and repetition (a = 1, c = 0), and scaled and shifted draws. An element that depends on several
elements of draws is a number of its own. Its gradient is the gate's gradient, as in any likelihood. Refused are

* such a number if it is exactly zero: the gate does not see the jump there;
* a function of one element that is not linear, which includes piecewise linear functions such as relu;
* positions or masks that are tensors (`gather`, `where`, a sort): they may depend on the values, and a different spike
  would change them.

A value computed from a detached draw counts as a constant. A log-sum-exp of densities outside of an ELBO is not
detected.

A draw of a *soft* gate is never zero. A copy of it that has lost its graph has the wrong density, not only the wrong
gradient. Such a copy is recognised by its memory or its numbers while the draw is in use, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from vsc_pyro.distributions.draws import Draw, draw_at, is_vectorised, shares_soft_memory, soft_draws
from vsc_pyro.gates import Gate

_SOFT_DRAWS_COMPARED = 8  # only the latest draws, to bound the cost


class Copy(NamedTuple):
    """A value as a function of the spikes behind its elements. All tensors have the shape of the value.

    Attributes:
        spike: the spike behind each element, 1 for an element without a draw.
        on, off: the element's value if that spike is on, and if it is off.
        gate: the gate of one of the draws.
        is_repeated: True if an element of a draw is behind several elements of the value.
    """

    spike: Tensor
    on: Tensor
    off: Tensor
    gate: Gate
    is_repeated: bool


class LostDrawError(ValueError):
    """The gradient of a density is unknown, because its argument was computed from a draw in an unsupported way."""

    def __init__(self, gate: Gate, why: str = "") -> None:
        super().__init__(
            f"this value was drawn with {gate!r} and carries its gradients, but not the spike-and-slab draw it "
            f"came from{why}, so the gradient of its density would be wrong; pass the tensor that rsample returned "
            "itself, or use gate='score', which takes transformed posteriors and mixture priors"
        )


def copy_of(value: Tensor) -> Copy | None:
    """Return `value` as a copy of the draws it was computed from, or None if it is a number of its own.

    Raises:
        LostDrawError: the value is neither.
        ValueError: the value is a copy of a soft draw that has lost its graph.
    """
    draws, between = _draws_behind(value)
    if not torch.is_grad_enabled():  # without a gradient, the number of a hard draw is enough
        draws = {node: draw for node, draw in draws.items() if draw.is_soft}
    if draws:
        gate = next(iter(draws.values())).by.gate
        if _is_traced():
            raise LostDrawError(gate, " (torch.jit.trace would reuse the structure of this draw for all others)")
        if any(draw.is_edited() for draw in draws.values()):
            raise LostDrawError(gate, " (it has been edited in place)")
        try:
            with torch.enable_grad():
                tolerance = _tolerance(value, between)
                return _composed(value, *_sources(value, draws, tolerance), tolerance, between, gate)
        except RuntimeError as error:
            if "_local_scalar_dense" in str(error):  # a recorder of graphs refuses that values are read
                raise
            raise LostDrawError(gate, " (a step between them cannot be differentiated twice)") from error
    if value.grad_fn is None and _is_copy_of_soft_draw(value):
        raise ValueError(
            "a value drawn with soft spikes is never exactly zero and cannot be scored without the draw it came "
            "from; pass the tensor that rsample returned itself, or use a gate with hard spikes"
        )
    return None


def _draws_behind(value: Tensor) -> tuple[dict[Node, Draw], list[Node]]:
    """Return the draws that `value` was computed from, by the nodes that carry them, and the nodes in between."""
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
    """Return True if the derivative of an operation may depend on its values in a way that the graph does not show.

    This is so if the node saves its only input or its result for the derivative, as relu does. Positions and masks
    that are saved as tensors may have been computed from values.
    """
    kept = {name: getattr(node, name) for name in dir(node) if name.startswith("_saved_")}
    operands = [kept.pop("_saved_self", None), kept.pop("_saved_other", None)]
    others = [t for held in kept.values() for t in (held if isinstance(held, (tuple, list)) else (held,))]
    # An operand without dimensions comes from a Python number.
    positions = others + [t for t in operands if isinstance(t, Tensor) and t.dim()]
    if any(isinstance(t, Tensor) and not t.is_floating_point() for t in positions):
        return True
    inputs = [source for source, _ in node.next_functions if source is not None]
    own = (operands[0], kept.get("_saved_result"))
    return len(inputs) == 1 and any(isinstance(t, Tensor) and t.requires_grad for t in own)


class _Source(NamedTuple):
    """The elements of a value that are copies of elements of one draw.

    Attributes:
        draw: the draw.
        copied: True for the copies.
        scale: the factor a of each copy.
        origin: the flat index of the element of the draw.
    """

    draw: Draw
    copied: Tensor
    scale: Tensor
    origin: Tensor

    def gathered(self, elements: Tensor) -> Tensor:
        return elements.reshape(-1)[self.origin].to(self.scale.dtype)

    def scaled(self, elements: Tensor) -> Tensor:
        return self.scale * self.gathered(elements)

    def has_unused_spike_off(self) -> bool:
        used = torch.zeros(self.draw.spike.numel(), dtype=torch.bool, device=self.origin.device)
        used[self.origin[self.copied]] = True
        return bool((~used & (self.draw.spike.detach().reshape(-1) == 0)).any())


def _composed(
    value: Tensor, parts: list[_Source], is_mixed: Tensor, tolerance: float, between: list[Node], gate: Gate
) -> Copy | None:
    """Return the value as a copy of its sources; `is_mixed` marks elements that depend on draws in another way."""
    copied = sum(part.copied.long() for part in parts)
    is_mixed = is_mixed | (copied > 1)
    is_copied = (copied == 1) & ~is_mixed
    off = value - sum(torch.where(is_copied, part.scaled(cast("Tensor", part.draw.value)), 0.0) for part in parts)
    is_exact = off.detach().abs() <= tolerance * value.detach().abs()
    off = torch.where(is_copied & is_exact, 0.0, off)
    zero = value.detach() == 0
    # A zero that depends on no draw is a constant, such as padding, or hides a spike that is off, as relu(z) does.
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
        is_repeated |= len(part.origin[mine].unique()) < int(mine.sum())
    return Copy(spike, on, off, gate, is_repeated)


def _sources(value: Tensor, draws: dict[Node, Draw], tolerance: float) -> tuple[list[_Source], Tensor]:
    """Return the copies of each draw, and a mask of the elements that depend on draws in another way."""
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
        origin = _origin(push, back, size)
        # If the Jacobian depends on a draw, the value is not linear in it.
        copied = (size != 0) if not _leads_to(back, draws) else torch.zeros_like(mixed)
        depends = size != 0
        for probe in (_spread(back), _spread(back).flip(0) if back.dim() else _spread(back)):
            pushed = push(probe).detach()
            copied = copied & ((pushed - size * probe.reshape(-1)[origin]).abs() <= tolerance * size.abs())
            depends = depends | (pushed != 0)
        mixed = mixed | (depends & ~copied)
        parts.append(_Source(draw, copied, scale, origin))
    return parts, mixed


def _leads_to(tensor: Tensor, draws: dict[Node, Draw]) -> bool:
    return any(node in draws for node in _draws_behind(tensor)[0])


def _pushing(back: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product of the Jacobian with a vector, as the derivative of `back` (a pull-back) by `weight`."""

    def push(tangent: Tensor) -> Tensor:
        if not back.requires_grad:
            return torch.zeros_like(weight)
        (pushed,) = torch.autograd.grad(back, weight, tangent, create_graph=True, allow_unused=True)
        return torch.zeros_like(weight) if pushed is None else pushed

    return push


def _origin(push: Callable[[Tensor], Tensor], elements: Tensor, scale: Tensor) -> Tensor:
    """Return the flat index of the element of the draw that each element of the value is a multiple of.

    The Jacobian is applied to the digits of the indices, because the dtype cannot hold large indices exactly.
    """
    bits = 8 if torch.finfo(elements.dtype).eps < 1e-5 else 3
    number = torch.arange(elements.numel(), device=elements.device).reshape(elements.shape)
    index, divisor = torch.zeros_like(scale, dtype=torch.long), torch.where(scale == 0, 1.0, scale)
    for shift in range(0, max(1, elements.numel() - 1).bit_length(), bits):
        digit = ((number >> shift) & ((1 << bits) - 1)).to(elements.dtype)
        index += (push(digit).detach() / divisor).nan_to_num().round().long() << shift
    return index.clamp(0, max(0, elements.numel() - 1))


def _tolerance(value: Tensor, between: list[Node]) -> float:
    """Return the relative error of a value, from the coarsest dtype between it and the draws."""
    types = {value.dtype} | {made.dtype for node in between for made in getattr(node, "_input_metadata", ())}
    return 8 * max(torch.finfo(dtype).eps for dtype in types if dtype.is_floating_point)


def _spread(like: Tensor) -> Tensor:
    """Return irregular numbers from 0.5 to 1.5 with the shape of `like`, without touching the random state."""
    cells = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device)
    return (0.5 + (torch.sin(12.9898 * cells) * 43758.5453).remainder(1)).reshape(like.shape).to(like.dtype)


def _is_traced() -> bool:
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] torch documents it as public


def _is_copy_of_soft_draw(value: Tensor) -> bool:
    """Return True if `value` has the memory, or most of the numbers, of a soft draw that is in use."""
    if _is_traced() or is_vectorised(value) or not value.numel():
        return False  # the values cannot be read
    if shares_soft_memory(value):
        return True
    for draw in (draw.detach() for draw in soft_draws()[-_SOFT_DRAWS_COMPARED:]):
        # A much larger value is not a copy. Numbers of 16 bits coincide by chance.
        is_alike = draw.device == value.device and draw.dtype == value.dtype
        if not is_alike or value.numel() > 4 * draw.numel() or value.dtype.itemsize < 4:
            continue
        numbers = value.detach().reshape(-1)
        if (draw == numbers[numbers.abs().argmax()]).any() and numbers.any():
            numbers = numbers[numbers != 0]
            if 2 * torch.isin(numbers, draw).sum() > numbers.numel():
                return True
    return False
