"""`Call`: the arguments of a step as a graph takes them, and which numbers among them are tensors there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from vsc_pyro.acceleration.recorder import NotCapturedError
from vsc_pyro.acceleration.state_changes import kind_of
from vsc_pyro.training.svi import distinct

# Of graphs with a number as a constant, where it changes and cannot be a tensor.
_MAX_CONSTANTS = 2
# Of a changing number that is a tensor in a graph, the values that the graph is held against an eager step at.
_VALUES_CHECKED = 20


class Call(NamedTuple):
    """The arguments of a step.

    Attributes:
        args, kwargs: the programs'.
        traced: the same for recording, where numbers that change from call to call are tensors.
        tensors: those of `traced`, each once.
        key: equal for calls that may share a graph.
        kind: equal for those that differ in numbers alone.
        numbers: those that are tensors in `traced`.
    """

    args: tuple
    kwargs: dict[str, Any]
    traced: tuple[tuple, dict[str, Any]]
    tensors: list[Tensor]
    key: tuple
    kind: tuple
    numbers: tuple = ()


class Numbers:
    """The Python numbers among arguments: constants of a graph, and tensors from where they are seen to change."""

    def __init__(self) -> None:
        self._first: dict[tuple, dict[int, float]] = {}
        self._changing: dict[tuple, set[int]] = {}
        self._constant_graphs: dict[tuple, int] = {}
        self._checked: dict[tuple, set[tuple]] = {}

    def call(self, args: tuple, kwargs: dict[str, Any], like: Tensor) -> Call:
        """A call with these arguments, numbers as tensors of the type and device of `like` where they are to be.

        Raises:
            NotCapturedError: an argument that is neither a tensor nor fixed.
        """
        leaves, spec = tree_flatten((args, kwargs))
        numbers = {position: leaf for position, leaf in enumerate(leaves) if type(leaf) in (int, float)}
        try:
            kind = (spec, *(type(leaf) if i in numbers else kind_of(leaf) for i, leaf in enumerate(leaves)))
            first = self._first.setdefault(kind, numbers)
        except TypeError as error:
            raise NotCapturedError(f"an argument, or a part of one, is neither a tensor nor fixed ({error})") from error
        traced, values = leaves, ()
        if numbers and kind not in self._constant_graphs:
            changing = self._changing.setdefault(kind, set())
            changing |= {position for position, number in numbers.items() if number != first[position]}
            traced = [_as_tensor(leaf, like) if i in changing else leaf for i, leaf in enumerate(leaves)]
            values = tuple(leaves[i] for i in sorted(changing))
        tensors = distinct(leaf for leaf in traced if isinstance(leaf, Tensor))
        positions = {id(tensor): position for position, tensor in enumerate(tensors)}
        aliases = (positions.get(id(leaf), -1) for leaf in traced) if len(traced) > 1 else ()
        key = (spec, *map(kind_of, traced), *aliases)
        return Call(args, kwargs, tree_unflatten(traced, spec), tensors, key, kind, values)

    def take_for_constants(self, call: Call) -> bool:
        """Let numbers of calls of this kind be constants; whether any have been tensors."""
        if call.kind in self._constant_graphs or not self._changing.get(call.kind):
            return False
        self._constant_graphs[call.kind] = 1  # that of the first
        return True

    def are_new(self, call: Call) -> bool:
        """Return True for each of the first values of changing numbers, by which a program may branch, once."""
        checked = self._checked.setdefault(call.kind, set())
        is_new = bool(call.numbers) and call.numbers not in checked and len(checked) < _VALUES_CHECKED
        if is_new:
            checked.add(call.numbers)
        return is_new

    def count(self, call: Call) -> None:
        """A graph of this call has been captured."""
        if call.kind in self._constant_graphs:
            self._constant_graphs[call.kind] += 1

    def are_enough(self, call: Call) -> bool:
        """Whether a number that cannot be a tensor has changed so often that there are to be no more graphs."""
        return self._constant_graphs.get(call.kind, 0) >= _MAX_CONSTANTS


def _as_tensor(number: float, like: Tensor) -> Tensor:
    dtype = torch.int64 if isinstance(number, int) else like.dtype
    return torch.full((), number, dtype=dtype, device=like.device)
