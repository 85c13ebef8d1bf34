"""`record`: the tensor operations of a function as a graph, and the tensors that they write."""

from __future__ import annotations

import contextlib
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NotCapturedError(Exception):
    """The reason why a step cannot be captured."""


class Number(float):
    """The number that ``tensor.item()`` returns while a step is recorded: sums and products of it are recorded too.

    Its own value is NaN. So a use of it that is not recorded (``math.sqrt``, a format) makes the loss NaN, unlike the
    loss of a step that reads tensors.
    """

    tensor: Tensor

    def __new__(cls, tensor: Tensor) -> Number:
        number = super().__new__(cls, "nan")
        number.tensor = tensor.detach()
        return number

    def __ne__(self, other: object) -> bool:
        if other is self:  # a check for NaN
            return False
        raise NotCapturedError("it looks at the value of a tensor")

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__
    __hash__ = float.__hash__

    def __add__(self, other: float | Tensor) -> Any:
        return Number(self.tensor + _plain(other))

    def __sub__(self, other: float | Tensor) -> Any:
        return Number(self.tensor - _plain(other))

    def __rsub__(self, other: float | Tensor) -> Any:
        return Number(_plain(other) - self.tensor)

    def __mul__(self, other: float | Tensor) -> Any:
        return Number(self.tensor * _plain(other))

    def __truediv__(self, other: float | Tensor) -> Any:
        return Number(self.tensor / _plain(other))

    def __neg__(self) -> Any:
        return Number(-self.tensor)

    __radd__, __rmul__ = __add__, __mul__


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, Number) else value


class _Unread(TorchFunctionMode):
    """Lets ``tensor.item()`` return a recorded number, and operations take such numbers."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.item:
            return Number(args[0])
        return func(*map(_plain, args), **{name: _plain(value) for name, value in (kwargs or {}).items()})


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Switch off Pyro's checks that read tensor values, and let its ELBOs add up losses without reading them.

    The checks have been made in an eager step before, and its warnings have been shown.
    """
    with pyro.validation_enabled(False), warnings.catch_warnings(), _Unread():
        warnings.simplefilter("ignore")
        yield


def as_tensor(loss: Any) -> Tensor:
    """Return the loss of an ELBO that ran within `unread` as a tensor.

    Raises:
        NotCapturedError: a loss that is no number of tensors.
    """
    loss = _plain(loss)
    if not isinstance(loss, Tensor):
        raise NotCapturedError(f"the ELBO returns its loss as a {type(loss).__name__}")
    return loss.detach()


class Journal(TorchDispatchMode):
    """Keeps a copy of every tensor from elsewhere that operations within write to, and restores them at the end.

    States of `torch.Generator`s that are passed to operations are restored as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: set[int] = set()
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for value, declared in zip((*args, *kwargs.values()), _declared(func, len(args), kwargs), strict=False):
            if isinstance(value, torch.Generator):
                self._generators.setdefault(id(value), (value, value.get_state()))
            if declared.alias_info is not None and declared.alias_info.is_write:
                self.keep(*(tensor for tensor in tree_leaves(value) if isinstance(tensor, Tensor)))
        result = func(*args, **kwargs)
        inputs = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self._made |= {_memory(t) for t in tree_leaves(result) if isinstance(t, Tensor)} - inputs
        return result

    def keep(self, *tensors: Tensor) -> None:
        """Keep copies of tensors; needed for statistics of a batch norm, which torch does not declare as written."""
        for tensor in tensors:
            memory = _memory(tensor)
            if memory not in self._made and memory not in self._copies:
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                whole = tensor.detach().as_strided((size,), (1,), 0)
                self._copies[memory] = whole, whole.clone()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        with torch.no_grad():
            for tensor, copy in self._copies.values():
                tensor.copy_(copy)
        for generator, state in self._generators.values():
            generator.set_state(state)


def _declared(func: Any, num_args: int, kwargs: dict[str, Any]) -> list[Any]:
    arguments = func._schema.arguments
    by_name = {argument.name: argument for argument in arguments}
    return [*arguments[:num_args], *(by_name[name] for name in kwargs)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def record(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Return the operations of `function` as a graph, and the tensors it reads beside `inputs`.

    Raises:
        NotCapturedError: a function that reads values of tensors, or fails.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        recorded = make_fx(function)(*inputs)
    except Exception as error:
        if isinstance(error, NotCapturedError) and not str(error).startswith("it looks"):
            raise
        looked = isinstance(error, NotCapturedError) or "aten._local_scalar_dense" in str(error)
        what = "it looks at the value of a tensor" if looked else f"recording it fails ({first_line(error)})"
        raise NotCapturedError(f"{what}, in {_where(error)}") from error
    graph = recorded.graph
    constants: list[Tensor] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1:]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        # A tensor that the step itself makes of numbers is a constant; any other was there before and may change.
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        with graph.inserting_after(*last) if last else graph.inserting_before():
            last = [graph.placeholder(f"tensor_{len(constants)}")]
        constants.append(getattr(recorded, node.target))
        node.replace_all_uses_with(last[0])
        graph.erase_node(node)
    recorded.delete_all_unused_submodules()
    recorded.recompile()
    return recorded, constants


def _where(error: Exception) -> str:
    """Return the last line of code before torch's own, and before this file's."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = (os.path.dirname(torch.__file__), __file__)
    file, line = [frame for frame in frames if not frame[0].startswith(own)][-1]
    return f"line {line} of {file}"


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
