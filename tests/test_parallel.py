"""Two processes train as one does with the same batches. One torchrun starts them, as a user would, for all tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro import parallel
from vsc_pyro._seeding import seeded

HERE = Path(__file__).parent
SMALL = "--dataset digits --epochs 2 --latent-dim 6 --hidden 20 --iwae-draws 5 --device cpu --quiet".split()


PROGRAM = """
import sys
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
sys.path[:0] = sys.argv[1:3]
import mnist_vsc
import vsc_pyro as vsc
from test_parallel import SMALL, train
from vsc_pyro import parallel

folder = sys.argv[3]


class Noting(vsc.DeltaEncoder):
    '''Keeps what it is trained on, a pattern of bits for each of 40 data.'''
    def forward(self, x):
        if self.training:
            seen.extend((x.long() * 2 ** torch.arange(16)).sum(1).tolist())
        return super().forward(x)


def keep(name, found):
    torch.save(found, f"{folder}/{name}-{parallel.rank()}.pt")


def refusal(task):
    try:
        task()
    except (SystemExit, ValueError) as error:
        return str(error)


with parallel.joined("cpu") as device:
    args = mnist_vsc.parse([*SMALL, "--output", folder + "/run"])
    keep("refused", refusal(lambda: mnist_vsc.train_and_measure(args, torch.device(device))))
    keep("point", train("point", 3).state_dict())
    keep("whole", train("spikes", 4, folder + "/whole.pt").state_dict())
    train("spikes", 2, folder + "/parts.pt")
    keep("parts", train("spikes", 4, folder + "/parts.pt", True).state_dict())

    data = TensorDataset(((torch.arange(40)[:, None] >> torch.arange(16)) & 1).float())
    for number, settings in enumerate(({}, {"num_workers": 1}, {"generator": torch.Generator()})):
        seen = []
        torch.manual_seed(0)
        model = vsc.VAE(Noting(16, 3, hidden=(8,)), vsc.BernoulliDecoder(3, 16, hidden=(8,)), vsc.LaplacePrior(3))
        vsc.fit(model, DataLoader(data, 10, shuffle=True, **settings), epochs=2, progress=False, device="cpu")
        keep(f"loader{number}", seen)
    mine = TensorDataset(torch.eye(16)[parallel.rank() :: 2])
    keep("loaders", [
        refusal(lambda: vsc.fit(model, loader, progress=False, device="cpu", **({"epochs": 1} | settings)))
        for loader, settings in (
            (DataLoader(data, 5, sampler=DistributedSampler(data)), {}),
            (DataLoader(data, 10), {"epochs": 1 + parallel.rank()}),
            (DataLoader(mine, 4), {}),
            (DataLoader(data, batch_sampler=[[0, 1], [2]]), {}),
        )
    ])

    a, b = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], 1.0)
    parallel.sum_gradients(optimizer)
    (a if parallel.rank() else b).sum().backward()
    optimizer.step()
    keep("unreached", [a.detach(), b.detach()])
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder that two processes have left their findings in, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    examples, printed = HERE.parent / "examples", []
    # Two launches: processes that have parted cannot meet again in the same one.
    for program in (
        [examples / "mnist_vsc.py", *SMALL, "--output", folder / "run"],
        [folder / "program.py", HERE, examples, folder],
    ):
        command = list(map(str, [*launch, *program]))
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
    return folder, printed[0]


@pytest.fixture
def found(run):
    """What each of the two has kept under a name."""
    return lambda name: [torch.load(run[0] / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_take_the_steps_of_one(found):
    first, second = found("point")
    alone = train("point", 3).state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    start = dict(build("point").named_parameters())
    assert any((alone[name] - value).abs().max() > 0.01 for name, value in start.items())


def test_a_run_of_two_is_gone_on_with_and_ends_in_the_same_weights(run, found):
    whole, other = found("whole")
    parts, _ = found("parts")
    for name, value in whole.items():
        assert torch.equal(value, other[name])
        assert torch.equal(value, parts[name])
    history = vsc.load_checkpoint(run[0] / "whole.pt")["history"]["elbo"]
    assert history[-1] > history[0]  # of all data, as one process tells it
    assert history[0] == pytest.approx(history_of_one()[0], abs=1)


def history_of_one():
    data, _ = vsc.datasets.load("digits")
    data = vsc.Dataset(data.images[:499].flatten(1), binarize="dynamic")
    return vsc.fit(build("spikes"), data, epochs=1, batch_size=99, progress=False, device="cpu").elbo


def test_mnist_vsc_by_two_processes_writes_once(run, found):
    folder, printed = run
    assert printed.count("digits, test:") == 1
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert (metrics["processes"], metrics["epochs"]) == (2, 2)
    assert all("holds a finished run" in refused for refused in found("refused"))


@pytest.mark.parametrize("number", range(3), ids=["plain", "worker", "generator"])
def test_an_epoch_of_a_loader_is_one_pass_over_the_data(found, number):
    both = found(f"loader{number}")
    for epoch in range(2):
        first, second = (part[20 * epoch : 20 * epoch + 20] for part in both)
        assert sorted(first + second) == list(range(40))
    assert both[0][:20] != both[0][20:]


def test_loaders_that_two_processes_cannot_share_are_refused(found):
    reasons = (
        "leave the sampler out",
        "processes differ in epochs: 1, 2",
        "processes differ in the first minibatch of epoch 1",
        "a batch of 1 data cannot be shared by 2 processes",
    )
    for refusals in found("loaders"):
        assert all(reason in refusal for reason, refusal in zip(reasons, refusals, strict=True))


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


def test_a_process_whose_data_reach_no_parameter_adds_nothing(found):
    for parameters in found("unreached"):
        assert all(torch.equal(parameter, -torch.ones(3)) for parameter in parameters)


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
