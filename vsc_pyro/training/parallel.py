"""Training by several processes on one machine or many. Each takes its share of every batch; gradients are summed.

``torchrun --nproc-per-node=2 program.py`` starts the processes. The program connects them with `joined` or
`torch.distributed.init_process_group`, and calls `vsc_pyro.fit` as usual. A loss is a sum over data, so the sum of the
processes' gradients is the gradient of the whole batch. Neither the objective nor the learning rate depends on the
number of processes. Only batch normalisation does: its statistics are those of a share. All processes draw the same
batches, and each process draws its own spikes and slabs.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[str]:
    """Connect the processes that torchrun started, by NCCL on GPUs and Gloo on CPUs. A single process does nothing.

    Args:
        device: ``"auto"``, ``"cuda"`` or ``"cpu"``. With ``"auto"`` and ``"cuda"`` each process gets its own GPU;
            ``"auto"`` falls back to the CPU, with a warning, if there are too few GPUs.

    Yields:
        The device of this process.

    Raises:
        ValueError: ``"cuda"`` with more processes on this machine than GPUs; a GPU given by its number; or processes
            that torchrun did not start.

    Example:
        >>> import vsc_pyro as vsc
        >>> with vsc.parallel.joined("cpu") as device:
        ...     print(device, vsc.parallel.num_processes())
        cpu 1
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, and {', '.join(missing)} is "
            "not set; start them by torchrun, or unset WORLD_SIZE for a single process"
        )
    here, local = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    found = torch.cuda.device_count()
    if device != "cpu" and device not in ("auto", "cuda"):
        raise ValueError(f"{here} processes cannot share device={device!r}; take 'auto', 'cuda' or 'cpu'")
    if device == "cuda" and found < here:
        raise ValueError(f"{here} processes need as many GPUs, got {found}; start fewer")
    if device == "auto" and 0 < found < here:
        warnings.warn(f"{here} processes for {found} GPUs: all train on the CPU; start {found} processes", stacklevel=3)
    if device != "cpu":
        device = f"cuda:{local}" if found >= here else "cpu"
    # The other processes wait while the first one evaluates, possibly for long; torchrun ends all if one fails.
    timeout = datetime.timedelta(days=1)
    if device == "cpu":
        distributed.init_process_group("gloo", timeout=timeout)
    else:
        torch.cuda.set_device(device)  # NCCL sends Python objects from the current device
        distributed.init_process_group("nccl", timeout=timeout, device_id=torch.device(device))
    try:
        yield device
        wait_for_all()  # a process that still uses a connection may abort if the other end closes it
    finally:
        distributed.destroy_process_group()


def num_processes() -> int:
    """Return the number of processes that train together; 1 unless `torch.distributed` is initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0. Process 0 writes files and shows progress."""
    return distributed.get_rank() if num_processes() > 1 else 0


def wait_for_all() -> None:
    """Wait until all processes have called this function."""
    if num_processes() > 1:
        distributed.barrier()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Run the context in the first process before all others, for a download that they share."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def from_the_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process, and return its result in all processes."""
    if num_processes() == 1:
        return make()
    results: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(results, 0)
    return results[0]


def share(x: Tensor) -> Tensor:
    """Return this process's share of a batch, shape ``(B, ...)``: every n-th datum for n processes."""
    return x[rank() :: num_processes()]


def total(x: Tensor) -> Tensor:
    """Return the sum of a tensor over processes."""
    if num_processes() == 1:
        return x
    x = x.clone()
    distributed.all_reduce(x)
    return x


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Make `optimizer` sum the gradients over processes before every step."""
    if num_processes() > 1:
        optimizer.register_step_pre_hook(_sum_gradients)


def _sum_gradients(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:  # for the data of this process; all must send the same number of values
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters]
    whole = total(torch.cat([gradient.flatten() for gradient in gradients]))  # one message for all gradients
    for gradient, part in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def check_alike(name: str, value: object) -> None:
    """Raise `ValueError` in every process unless all have the same `value`; otherwise some could wait for ever."""
    if num_processes() > 1:
        values: list[object] = [None] * num_processes()
        distributed.all_gather_object(values, value)
        if any(other != values[0] for other in values):
            raise ValueError(
                f"processes differ in {name}: {', '.join(map(str, values))}; let all of them see the same files"
            )


def as_the_first(module: nn.Module) -> None:
    """Copy the parameters and buffers of `module` from the first process to all others."""
    if num_processes() > 1:
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)


def common_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch that all processes share; it differs from every `own_seed`."""
    return int(np.random.SeedSequence([seed, epoch, num_processes()]).generate_state(1)[0])


def own_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch for this process; no other process has it."""
    return int(np.random.SeedSequence([seed, epoch, rank()]).generate_state(1)[0])
