"""Images per second: minibatches of a data set in memory, against a `DataLoader` with torchvision's transforms.

    python benchmarks/loading.py

A contestant makes one pass over MNIST in random order, freshly binarised, in minibatches on the device. The contestants
are `Dataset.draw` with indices, as in `vsc_pyro.fit`; indexing and `torch.bernoulli`; and torchvision's MNIST with
`ToTensor` through a `DataLoader` with 0, 1 and 2 workers, as in Pyro's VAE example. The latter binarises whole
minibatches, which is faster than single images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor

from vsc_pyro import Dataset

MEMORY = "Dataset.draw"
BY_HAND = "torch.bernoulli(images[indices])"


def from_memory(data: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Return minibatches on the device of the data, by `Dataset.draw`."""
    order = torch.randperm(len(data), generator=generator, device=data.images.device)
    return (data.draw(indices, generator) for indices in order.split(batch_size))


def by_hand(data: Dataset, batch_size: int) -> Iterator[Tensor]:
    """Return minibatches by indexing and `torch.bernoulli`."""
    order = torch.randperm(len(data), device=data.images.device)
    return (torch.bernoulli(data.images[indices]) for indices in order.split(batch_size))


def from_loader(loader: torch.utils.data.DataLoader, device: torch.device) -> Iterator[Tensor]:
    """Return minibatches of torchvision's MNIST; each pass starts the workers of the loader again."""
    return (torch.bernoulli(x.to(device)) for x, _ in loader)


def mnist_loader(folder: Path, batch_size: int, num_workers: int, device: torch.device) -> torch.utils.data.DataLoader:
    from torchvision import datasets, transforms

    part = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
    return torch.utils.data.DataLoader(
        part, batch_size, shuffle=True, num_workers=num_workers, pin_memory=device.type == "cuda"
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = measure.parser(__doc__, rounds=5)
    options.add_argument("--batch-size", type=measure.whole, default=200)
    args = options.parse_args(argv)
    session = measure.Session("loading", args)
    folder, (train, _) = session.mnist()
    data = train.to(torch.empty(0, device=session.device))
    generator = torch.Generator(session.device).manual_seed(0)

    def consume(batches: partial[Iterator[Tensor]]) -> None:
        for _ in batches():
            pass

    passes = {MEMORY: partial(from_memory, data, args.batch_size, generator)}
    passes[BY_HAND] = partial(by_hand, data, args.batch_size)
    for workers in (0, 1, 2):
        name = f"DataLoader, {workers} worker{'s' * (workers != 1)}"
        loader = mnist_loader(folder, args.batch_size, workers, session.device)
        passes[name] = partial(from_loader, loader, session.device)
    result = session.compare(
        f"one pass over {len(data)} images in minibatches of {args.batch_size}",
        {name: session.timed(partial(consume, batches)) for name, batches in passes.items()},
        [MEMORY],
        num_images=len(data),
    )
    rows = []
    for name, found in result["contestants"].items():
        found["images_per_second"] = measure.summary(len(data) / seconds for seconds in found["rounds"])
        rows.append([name, measure.spread(found["images_per_second"], 1e-3)])
    measure.table("images per second", ["median (quartiles) of rounds", "thousands"], rows)
    return session.finish()


if __name__ == "__main__":
    main()
