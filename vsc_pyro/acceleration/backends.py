"""Backends that run a recorded graph, and whether compiling is possible and worth while."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from vsc_pyro.acceleration.recorder import NotCapturedError, first_line
from vsc_pyro.acceleration.rewriting import rewriting


def _as_recorded(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    return graph


def _by_inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    import torch._inductor  # takes a second, and a C++ compiler (Triton on a GPU)
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    load_quietly()
    try:
        # Without such a context inductor does not look into its cache of graphs on disk.
        context = TracingContext(FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True))
        with tracing(context), torch.no_grad(), warnings.catch_warnings():
            # Inductor urges to allow TF32; that is the caller's choice.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            examples: list[Any] = list(inputs)
            options: dict[str, Any] = {"fallback_random": True, "post_grad_custom_pre_pass": rewriting()}
            if inputs[0].device.type == "cpu" and _knows_instructions():
                # Otherwise inductor builds and loads a program for each instruction set, which takes seconds.
                options["cpp.vec_isa_ok"] = True
            return cast(Any, torch._inductor.compile(graph, examples, options=options))
    except Exception as error:
        raise NotCapturedError(
            f"inductor did not compile it ({first_line(error)}); on a CPU it needs a C++ compiler, such as g++; "
            "backend='eager' needs none"
        ) from error


def _cpp_compiler() -> str:
    from torch._inductor import cpp_builder

    name = "get_cpp_compiler" if hasattr(cpp_builder, "get_cpp_compiler") else "_get_cpp_compiler"  # torch 2.4
    return getattr(cpp_builder, name)()


@functools.cache
def _knows_instructions() -> bool:
    """Return True if the C++ compiler knows every instruction set of x86 processors that inductor uses."""
    command = [_cpp_compiler(), "-mavx512f", "-mavx512vnni", "-mamx-tile", "-fsyntax-only", "-x", "c++", os.devnull]
    return not subprocess.run(command, capture_output=True).returncode


def load_quietly() -> None:
    """Load the module that finds inductor's header files, without its message about a missing GPU.

    On a machine with a CUDA compiler and no GPU it logs "No CUDA runtime" when it is loaded.
    """

    def is_of_use(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No CUDA runtime is found")

    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addFilter(is_of_use)
    try:
        import torch.utils.cpp_extension  # noqa: F401 - for its side effect
    finally:
        logger.removeFilter(is_of_use)


BACKENDS: dict[str, Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]] = {
    "inductor": _by_inductor,
    "eager": _as_recorded,
}


# Rough seconds on any machine that compilation costs, and saves in each step, whatever the model.
COMPILATION = 10.0
SAVED_BY_STEP = 0.002


def missing_compiler(device: torch.device) -> str | None:
    """Return what inductor lacks on this machine to compile for `device`, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "there is no Triton for this GPU"
    try:
        _cpp_compiler()
    except Exception as error:
        return f"there is no C++ compiler, such as g++ ({first_line(error)})"
    return None


def is_worth_compiling(
    num_steps: int, device: torch.device, saved_by_step: float = SAVED_BY_STEP, unit: str = "steps"
) -> bool:
    """Return True if the steps ahead save more time than their compilation takes.

    Warns if they do and there is no compiler.

    Args:
        num_steps: number of steps ahead.
        device: the device they run on.
        saved_by_step: seconds that a compiled step saves.
        unit: the word for steps in the warning.
    """
    # Decided by constants, not by timing, so that the same run ends in the same weights.
    if num_steps * saved_by_step < COMPILATION:
        return False
    if missing := missing_compiler(device):
        warnings.warn(
            f"compile='auto': {num_steps} {unit} would be worth compiling, and {missing}; they are taken eagerly "
            "(compile=False says that this is meant)",
            stacklevel=3,
        )
    return not missing
