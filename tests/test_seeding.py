import pytest
import torch

from vsc_pyro.seeding import seeded


def test_other_devices_are_not_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded every CUDA device"))
    with seeded(1, torch.device("cpu")):
        torch.rand(1)


def test_seeds_within_and_leaves_the_callers_state():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    draws = []
    for _ in range(2):
        with seeded(1, torch.device("cpu")):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.rand(2), expected)
