"""The program of test_parallel.py, started by torchrun: each process leaves its findings in the folder argv[1]."""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import vsc_pyro as vsc
from vsc_pyro import parallel

SMALL = "--dataset digits --epochs 2 --latent-dim 6 --hidden 20 --iwae-draws 5 --device cpu --quiet".split()


def build(kind):
    """A model whose codes are points, so that two processes have nothing to draw differently; one with spikes; a
    dictionary, whose objective draws nothing.
    """
    torch.manual_seed(0)
    if kind == "dictionary":
        return vsc.SparseDictionary(64, 80)
    if kind == "point":
        encoder, prior = vsc.DeltaEncoder(64, 4, hidden=(16,)), vsc.LaplacePrior(4)
    else:
        encoder = vsc.SpikeSlabEncoder(64, 4, hidden=(16,))
        prior = vsc.PseudoInputPrior(encoder, 3, hidden=(8,))
    return vsc.VAE(encoder, vsc.BernoulliDecoder(4, 64, hidden=(16,)), prior)


def digits():
    data, _ = vsc.datasets.load("digits")
    return vsc.Dataset(data.images[:499].flatten(1), binarize="dynamic")  # batches and shares of different sizes


def train(kind, epochs, checkpoint=None, resume=False, **settings):
    model = build(kind)
    settings |= {"epochs": epochs, "checkpoint": checkpoint, "resume": resume}
    vsc.fit(model, digits(), batch_size=99, progress=False, device="cpu", **settings)
    return model


def shaped():
    """The epochs that callbacks have seen, and the weights of a clipped, validated run, which a callback ends."""
    seen = []

    def stop(history, model):
        seen.append((history.best_epoch, *history.validation))
        return len(history) == 3

    settings = {"clip_norm": 2.0, "validation": 0.2, "patience": 5, "callbacks": [stop], "weight_decay": 0.1}
    return seen, train("point", 9, **settings).state_dict()


def refusal(task, *args, **settings):
    try:
        task(*args, **settings)
    except (SystemExit, ValueError) as error:
        return str(error)


class Recording(vsc.DeltaEncoder):
    """Records the data that it is trained on, each a pattern of bits."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.extend((x.long() * 2 ** torch.arange(16)).sum(1).tolist())
        return super().forward(x)


def train_by_loader(loader, **settings):
    """The data seen in two epochs of a loader."""
    torch.manual_seed(0)
    encoder = Recording(16, 3, hidden=(8,))
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(3, 16, hidden=(8,)), vsc.LaplacePrior(3))
    vsc.fit(model, loader, progress=False, device="cpu", **({"epochs": 2} | settings))
    return encoder.seen


def sum_of_unreached():
    """Two parameters after a step; each process reaches one of them."""
    a, b = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], 1.0)
    parallel.sum_gradients(optimizer)
    (a if parallel.rank() else b).sum().backward()
    optimizer.step()
    return [a.detach(), b.detach()]


def work(folder):
    data = TensorDataset(((torch.arange(40)[:, None] >> torch.arange(16)) & 1).float())
    mine = TensorDataset(torch.eye(16)[parallel.rank() :: 2])
    found = {
        "point": train("point", 3).state_dict(),
        "dictionary": train("dictionary", 1).state_dict(),
        "whole": train("spikes", 4, folder / "whole.pt").state_dict(),
        "begun": train("spikes", 2, folder / "parts.pt").state_dict(),
        "parts": train("spikes", 4, folder / "parts.pt", True).state_dict(),
        "loaders": [
            train_by_loader(DataLoader(data, 10, shuffle=True, **settings))
            for settings in ({}, {"num_workers": 1}, {"generator": torch.Generator()})
        ],
        "refused loaders": [
            refusal(train_by_loader, loader, **settings)
            for loader, settings in (
                (DataLoader(data, 5, sampler=DistributedSampler(data)), {}),
                (DataLoader(data, 10), {"epochs": 1 + parallel.rank()}),
                (DataLoader(mine, 4), {}),
                (DataLoader(data, batch_sampler=[[0, 1], [2]]), {}),
            )
        ],
        "unreached": sum_of_unreached(),
        "shaped": shaped(),
    }
    torch.save(found, folder / f"found-{parallel.rank()}.pt")


def main(folder):
    """The example's own `main` joins the two processes, which cannot part and meet again; the rest is done within."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import mnist_vsc

    train_and_measure = mnist_vsc.train_and_measure
    mnist_vsc.FIGURES = ("training_curve",)

    def and_then_the_rest(args, device):
        train_and_measure(args, device)
        parallel.wait_for_all()  # the first process measures after the last step of the others
        refused = refusal(train_and_measure, args, device)
        torch.save(refused, folder / f"refused-{parallel.rank()}.pt")
        work(folder)

    mnist_vsc.train_and_measure = and_then_the_rest
    mnist_vsc.main([*SMALL, "--output", str(folder / "run")])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
