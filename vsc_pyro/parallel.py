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
        ValueError: more processes on this machine than GPUs, with a device of ``"cuda"``.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    here, local = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    enough = torch.cuda.device_count() >= here
    if device == "cuda" and not enough:
        raise ValueError(f"{here} processes need as many GPUs, got {torch.cuda.device_count()}; start fewer")
    if device in ("auto", "cuda"):
        device = f"cuda:{local}" if enough else "cpu"
    # Whoever waits does so for as long as the first one measures; torchrun ends all when one fails.
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=datetime.timedelta(days=1))
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
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
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


def own_seed(seed: int, epoch: int) -> int | None:
    """A seed of this process for an epoch, that differs from all others'; None for a process alone."""
    if num_processes() == 1:
        return None
    return int(np.random.SeedSequence([seed, epoch, rank()]).generate_state(1)[0])
