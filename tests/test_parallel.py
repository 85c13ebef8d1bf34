"""Two processes train as one does with the same batches; each test starts them as a user would, by torchrun."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro import parallel
from vsc_pyro.seeding import seeded

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAM = """
import sys
import torch
import vsc_pyro as vsc
from vsc_pyro import parallel
from test_parallel import build, train

kind, folder, epochs, *resume = sys.argv[1:]
with parallel.joined("cpu"):
    model = train(kind, int(epochs), folder + "/checkpoint.pt", bool(resume))
    torch.save(model.state_dict(), f"{folder}/{parallel.rank()}.pt")
"""


def build(kind):
    """A model whose codes are points, so that two processes have nothing to draw differently; and one with spikes."""
    torch.manual_seed(0)
    if kind == "point":
        encoder, prior = vsc.DeltaEncoder(64, 4, hidden=(16,)), vsc.LaplacePrior(4)
    else:
        encoder = vsc.SpikeSlabEncoder(64, 4, hidden=(16,))
        prior = vsc.PseudoInputPrior(encoder, 3, hidden=(8,))
    return vsc.VAE(encoder, vsc.BernoulliDecoder(4, 64, hidden=(16,)), prior)


def train(kind, epochs, checkpoint=None, resume=False):
    data, _ = vsc.datasets.load("digits")
    data = vsc.Dataset(data.images[:499].flatten(1), binarize="dynamic")  # batches and shares of different sizes
    model = build(kind)
    vsc.fit(
        model, data, epochs=epochs, batch_size=99, checkpoint=checkpoint, resume=resume, progress=False, device="cpu"
    )
    return model


def torchrun(*command, **settings):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*launch, *map(str, command)], capture_output=True, text=True, **settings)


def train_by_two(folder, *arguments):
    (folder / "program.py").write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{PROGRAM}")
    result = torchrun(folder / "program.py", *arguments)
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_take_the_steps_of_one(tmp_path):
    first, second = train_by_two(tmp_path, "point", tmp_path, 3)
    alone = train("point", 3).state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    assert any((value - build("point").state_dict()[name]).abs().max() > 0.01 for name, value in alone.items())


def test_a_run_of_two_is_gone_on_with_and_ends_in_the_same_weights(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, other = train_by_two(tmp_path / "whole", "spikes", tmp_path / "whole", 4)
    train_by_two(tmp_path / "parts", "spikes", tmp_path / "parts", 2)
    parts, _ = train_by_two(tmp_path / "parts", "spikes", tmp_path / "parts", 4, "resume")
    for name, value in whole.items():
        assert torch.equal(value, other[name])
        assert torch.equal(value, parts[name])
    history = vsc.load_checkpoint(tmp_path / "whole" / "checkpoint.pt")["history"]["elbo"]
    assert history[-1] > history[0]  # of all data, as one process tells it
    assert history[0] == pytest.approx(history_of_one()[0], abs=1)


def history_of_one():
    data, _ = vsc.datasets.load("digits")
    data = vsc.Dataset(data.images[:499].flatten(1), binarize="dynamic")
    return vsc.fit(build("spikes"), data, epochs=1, batch_size=99, progress=False, device="cpu").elbo


def test_mnist_vsc_by_two_processes_writes_once(tmp_path):
    small = "--dataset digits --epochs 2 --latent-dim 6 --hidden 20 --iwae-draws 5 --device cpu --quiet".split()
    result = torchrun(EXAMPLES / "mnist_vsc.py", *small, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("digits, test:") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["processes"], metrics["epochs"]) == (2, 2)
    refused = torchrun(EXAMPLES / "mnist_vsc.py", *small, "--output", tmp_path / "run")
    assert refused.returncode != 0
    assert "holds a finished run" in refused.stderr


LOADERS = """
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
import vsc_pyro as vsc
from vsc_pyro import parallel

class Noting(vsc.DeltaEncoder):
    '''Keeps what it is trained on, a pattern of bits for each of 40 data.'''
    def forward(self, x):
        if self.training:
            seen.extend((x.long() * 2 ** torch.arange(16)).sum(1).tolist())
        return super().forward(x)

with parallel.joined("cpu"):
    data = TensorDataset(((torch.arange(40)[:, None] >> torch.arange(16)) & 1).float())
    for settings in ({}, {"num_workers": 1}, {"generator": torch.Generator()}):
        seen = []
        torch.manual_seed(0)
        model = vsc.VAE(Noting(16, 3, hidden=(8,)), vsc.BernoulliDecoder(3, 16, hidden=(8,)), vsc.LaplacePrior(3))
        vsc.fit(model, DataLoader(data, 10, shuffle=True, **settings), epochs=2, progress=False, device="cpu")
        both = [None, None]
        torch.distributed.all_gather_object(both, seen)
        for epoch in range(2):
            parts = [part[20 * epoch : 20 * epoch + 20] for part in both]
            assert sorted(parts[0] + parts[1]) == list(range(40)), (settings, parts)
        assert both[0][:20] != both[0][20:]
    mine = TensorDataset(torch.eye(16)[parallel.rank() :: 2])
    for loader, settings, reason in (
        (DataLoader(data, 5, sampler=DistributedSampler(data)), {}, "leave the sampler out"),
        (DataLoader(data, 10), {"epochs": 1 + parallel.rank()}, "processes differ in epochs: 1, 2"),
        (DataLoader(mine, 4), {}, "processes differ in the first minibatch of epoch 1"),
        (DataLoader(data, batch_sampler=[[0, 1], [2]]), {}, "a batch of 1 data cannot be shared by 2 processes"),
    ):
        try:
            vsc.fit(model, loader, progress=False, device="cpu", **({"epochs": 1} | settings))
        except ValueError as error:
            assert reason in str(error), error
        else:
            raise AssertionError(f"not refused: {reason}")
"""


def test_an_epoch_of_a_loader_is_one_pass_over_the_data(tmp_path):
    (tmp_path / "loaders.py").write_text(LOADERS)
    result = torchrun(tmp_path / "loaders.py")
    assert result.returncode == 0, result.stderr


def test_what_was_not_started_by_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    missing = r"WORLD_SIZE=4 .* RANK, LOCAL_RANK, LOCAL_WORLD_SIZE is not set"
    with pytest.raises(ValueError, match=missing), parallel.joined():
        pass
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes cannot share device='cuda:0'"), parallel.joined("cuda:0"):
        pass


def test_a_process_whose_data_reach_no_parameter_adds_nothing(tmp_path):
    (tmp_path / "unreached.py").write_text(UNREACHED)
    result = torchrun(tmp_path / "unreached.py")
    assert result.returncode == 0, result.stderr


UNREACHED = """
import torch
from vsc_pyro import parallel

with parallel.joined("cpu"):
    a, b = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], 1.0)
    parallel.sum_gradients(optimizer)
    (a if parallel.rank() else b).sum().backward()
    optimizer.step()
    assert torch.equal(a.detach(), -torch.ones(3)) and torch.equal(b.detach(), -torch.ones(3))
"""


def test_alone_nothing_is_different():
    x = torch.arange(5)
    assert (parallel.num_processes(), parallel.rank()) == (1, 0)
    own = [parallel.own_seed(*of) for of in ((0, 0), (0, 1), (1, 0))]
    assert len({*own, parallel.common_seed(0, 0)}) == 4
    assert torch.equal(parallel.share(x), x)
    assert parallel.total(x) is x
    with parallel.joined("cpu") as device, parallel.first_process_first(), seeded(0, torch.device(device)):
        parallel.wait_for_all()
        assert device == "cpu"
