"""Training by several processes, on one machine or many: each takes its share of every batch, and gradients are summed.

``torchrun --nproc-per-node=2 program.py`` starts them; the program joins them by `joined`, or by
`torch.distributed.init_process_group` itself, and then calls `vsc_pyro.fit` as ever. A loss is a sum over data, so the
sum over processes of the gradients by their shares is the gradient by the whole batch: nothing of the objective or the
learning rate changes with the number of processes, but for batch normalisation, whose statistics are those of a share.
Data are drawn alike by all, and spikes and slabs apart by each.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, distributed, nn


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[str]:
    """Join the processes that torchrun started, by NCCL on GPUs and Gloo elsewhere; nothing if it started none.

    Args:
        device: where to train; of ``"auto"`` and ``"cuda"`` each process gets a GPU of its own, if there are as many.

    Yields:
        The device of this process.

    Raises:
        ValueError: more processes on this machine than GPUs, with a device of ``"cuda"``; one GPU by its number; or
            processes that were not started by torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, and {', '.join(missing)} is "
            "not set; start them by torchrun, or unset WORLD_SIZE for a process alone"
        )
    here, local = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    found = torch.cuda.device_count()
    if device != "cpu" and device not in ("auto", "cuda"):
        raise ValueError(f"{here} processes cannot share device={device!r}; take 'auto', 'cuda' or 'cpu'")
    if device == "cuda" and found < here:
        raise ValueError(f"{here} processes need as many GPUs, got {found}; start fewer")
    if device == "auto" and 0 < found < here:
        warnings.warn(f"{here} processes, and {found} GPUs: all train on the CPU; start {found}", stacklevel=3)
    if device != "cpu":
        device = f"cuda:{local}" if found >= here else "cpu"
    # Whoever waits does so for as long as the first one measures; torchrun ends all when one fails.
    timeout = datetime.timedelta(days=1)
    if device == "cpu":
        distributed.init_process_group("gloo", timeout=timeout)
    else:
        torch.cuda.set_device(device)  # where NCCL sends what is no tensor from
        distributed.init_process_group("nccl", timeout=timeout, device_id=torch.device(device))
    try:
        yield device
        wait_for_all()  # a connection that is closed at the other end may abort a process that still uses it
    finally:
        distributed.destroy_process_group()


def num_processes() -> int:
    """How many processes train together; 1 unless `torch.distributed` has been initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0 on; the first one writes files and shows progress."""
    return distributed.get_rank() if num_processes() > 1 else 0


def wait_for_all() -> None:
    """Go on when all processes have come this far."""
    if num_processes() > 1:
        distributed.barrier()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """What is done within is done by the first process before all others, such as a download that they then find."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def share(x: Tensor) -> Tensor:
    """The data of a batch, shape ``(B, ...)``, that are this process's: every n-th."""
    return x[rank() :: num_processes()]


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over processes, the same for all of them."""
    if num_processes() == 1:
        return x
    x = x.clone()
    distributed.all_reduce(x)
    return x


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Let every step of `optimizer` be by the sum over processes of the gradients."""
    if num_processes() > 1:
        optimizer.register_step_pre_hook(_sum_gradients)


def _sum_gradients(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:  # by the data of this process; the message is to be of the same size in all
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters]
    whole = total(torch.cat([gradient.flatten() for gradient in gradients]))  # one message instead of one for each
    for gradient, part in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def check_alike(name: str, value: object) -> None:
    """Raise `ValueError` in every process unless all have the same `value`: else some would wait for ever."""
    if num_processes() > 1:
        values: list[object] = [None] * num_processes()
        distributed.all_gather_object(values, value)
        if any(other != values[0] for other in values):
            raise ValueError(
                f"processes differ in {name}: {', '.join(map(str, values))}; let all of them see the same files"
            )


def as_the_first(module: nn.Module) -> None:
    """Give `module` the parameters and buffers that it has in the first process."""
    if num_processes() > 1:
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)


def common_seed(seed: int, epoch: int) -> int:
    """A seed of all processes for an epoch, that none has as its own."""
    return int(np.random.SeedSequence([seed, epoch, num_processes()]).generate_state(1)[0])


def own_seed(seed: int, epoch: int) -> int:
    """A seed of this process for an epoch, that differs from all others'."""
    return int(np.random.SeedSequence([seed, epoch, rank()]).generate_state(1)[0])
