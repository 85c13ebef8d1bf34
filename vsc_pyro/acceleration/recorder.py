"""`record`: the tensor operations of a function as a graph, without what looks at values."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor


class NotCapturedError(Exception):
    """Why a step cannot be captured."""


@contextlib.contextmanager
def unvalidated(elbo: ELBO) -> Iterator[None]:
    """Pyro without whatever looks at the value of a tensor. It has just been run with it, and said what it had to."""

    def item(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    with contextlib.ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Pyro's own ELBOs read every term back as a number, to add up the loss that they return.
        for module in {cls.__module__ for cls in type(elbo).__mro__ if cls.__module__.startswith("pyro.")}:
            for name, replacement in (("torch_item", item), ("warn_if_nan", lambda value, *_: value)):
                if hasattr(sys.modules[module], name):
                    stack.enter_context(mock.patch.object(sys.modules[module], name, replacement))
        yield


def record(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The operations of `function` as a graph of `inputs`, and of the tensors it reads beside them."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        recorded = make_fx(function)(*inputs)
    except NotCapturedError:
        raise
    except Exception as error:
        looked = "aten._local_scalar_dense" in str(error)  # what .item(), float() and bool() come down to
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
    """The last line of code before torch's own."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    torchs = os.path.dirname(torch.__file__)
    file, line = [frame for frame in frames if not frame[0].startswith(torchs)][-1]
    return f"line {line} of {file}"


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
