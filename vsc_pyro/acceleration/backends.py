"""Backends: what runs a recorded graph, whether it can on this machine, and whether that is worth while."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vsc_pyro.acceleration.recorder import NotCapturedError, first_line


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
            # Whether float32 products may be of TF32 is for whoever calls to set: inductor urges it.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            return torch._inductor.compile(graph, inputs, options={"fallback_random": True})
    except Exception as error:
        raise NotCapturedError(
            f"inductor did not compile it ({first_line(error)}); on a CPU it needs a C++ compiler, such as g++; "
            "backend='eager' needs none"
        ) from error


def load_quietly() -> None:
    """Load what inductor takes the paths of header files from, without a word of a GPU that nobody has asked for.

    On a machine with a CUDA compiler and no GPU it logs that there is "No CUDA runtime", as it is loaded and never
    again.
    """

    def is_of_use(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No CUDA runtime is found")

    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addFilter(is_of_use)
    try:
        import torch.utils.cpp_extension  # noqa: F401 - for what it does
    finally:
        logger.removeFilter(is_of_use)


BACKENDS: dict[str, Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]] = {
    "inductor": _by_inductor,
    "eager": _as_recorded,
}


# What compilation costs and saves, seconds, on any machine roughly: 2 ms of bookkeeping a step, whatever the model.
COMPILATION = 20.0
SAVED_BY_STEP = 0.002


def missing_compiler(device: torch.device) -> str | None:
    """What inductor lacks on this machine to compile for `device`; None if nothing."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "there is no Triton for this GPU"
    from torch._inductor import cpp_builder

    name = "get_cpp_compiler" if hasattr(cpp_builder, "get_cpp_compiler") else "_get_cpp_compiler"  # torch 2.4
    try:
        getattr(cpp_builder, name)()
    except Exception as error:
        return f"there is no C++ compiler, such as g++ ({first_line(error)})"
    return None


def is_worth_compiling(
    num_steps: int, device: torch.device, saved_by_step: float = SAVED_BY_STEP, unit: str = "steps"
) -> bool:
    """Whether so many steps save more time than their compilation takes; warns if they do and there is no compiler.

    Args:
        num_steps: of the work ahead.
        device: that it is done on.
        saved_by_step: seconds.
        unit: what the warning calls them.
    """
    # By numbers that are the same every time, not by timing: the same run is to end in the same weights.
    if num_steps * saved_by_step < COMPILATION:
        return False
    if missing := missing_compiler(device):
        warnings.warn(
            f"compile='auto': {num_steps} {unit} would be worth compiling, and {missing}; they are taken eagerly "
            "(compile=False says that this is meant)",
            stacklevel=3,
        )
    return not missing
