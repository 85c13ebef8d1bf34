"""Two processes train as one does with the same batches. One torchrun starts them, as a user would, for all tests."""

import json
import subprocess
import sys

import pytest
import torch
from problems import two_processes
from problems.two_processes import build, digits, train

import vsc_pyro as vsc
from vsc_pyro import parallel
from vsc_pyro._seeding import seeded


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder that two processes have left their findings in, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, two_processes.__file__, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.fixture(scope="module")
def found(run):
    """What each of the two has kept under a name."""
    kept = [torch.load(run[0] / f"found-{rank}.pt", weights_only=True) for rank in range(2)]
    return lambda name: [of_one[name] for of_one in kept]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "epochs", "least"), [("point", 3, 0.01), ("dictionary", 1, 0.001)])
def test_two_processes_take_the_steps_of_one(found, kind, epochs, least):
    first, second = found(kind)
    alone = train(kind, epochs).state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    start = dict(build(kind).named_parameters())
    assert any((alone[name] - value).abs().max() > least for name, value in start.items())


@pytest.mark.slow
def test_two_processes_clip_validate_and_stop_as_one(found):
    (seen, first), (unseen, second) = found("shaped")
    expected, alone = two_processes.shaped()
    assert unseen == []
    assert len(seen) == len(expected) == 3
    for one, other in zip(seen, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
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
    return vsc.fit(build("spikes"), digits(), epochs=1, batch_size=99, progress=False, device="cpu").elbo


@pytest.mark.slow
def test_mnist_vsc_by_two_processes_writes_once(run):
    folder, printed = run
    assert printed.count("digits, test:") == 1
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert (metrics["processes"], metrics["epochs"]) == (2, 2)
    for rank in range(2):
        assert "holds a finished run" in torch.load(folder / f"refused-{rank}.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3), ids=["plain", "worker", "generator"])
def test_an_epoch_of_a_loader_is_one_pass_over_the_data(found, number):
    both = [seen[number] for seen in found("loaders")]
    for epoch in range(2):
        first, second = (part[20 * epoch : 20 * epoch + 20] for part in both)
        assert sorted(first + second) == list(range(40))
    assert both[0][:20] != both[0][20:]


@pytest.mark.slow
def test_loaders_that_two_processes_cannot_share_are_refused(found):
    reasons = (
        "leave the sampler out",
        "processes differ in epochs: 1, 2",
        "processes differ in the first minibatch of epoch 1",
        "a batch of 1 data cannot be shared by 2 processes",
    )
    for refusals in found("refused loaders"):
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


@pytest.mark.slow
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
