import pickle

import pytest
import torch

import vsc_pyro as vsc


class Malicious:
    def __reduce__(self):
        return (print, ("this ran on loading",))


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.arange(3.0)}, "epoch": 3, "history": {"elbo": [-1.0]}, "schedule": None}
    vsc.save_checkpoint(tmp_path / "new" / "c.pt", state)
    loaded = vsc.load_checkpoint(tmp_path / "new" / "c.pt")
    assert torch.equal(loaded["model"].pop("w"), torch.arange(3.0))
    assert loaded == {"model": {}, "epoch": 3, "history": {"elbo": [-1.0]}, "schedule": None, "format": 2}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["c.pt"]


def test_damaged_weights_are_noticed(tmp_path):
    path, weights = tmp_path / "c.pt", torch.randn(300)
    vsc.save_checkpoint(path, {"model": {"w": weights}})
    whole = path.read_bytes()
    start = whole.index(weights.numpy().tobytes())
    for position in range(start, start + 1200, 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"c\.pt is no checkpoint, or is truncated or corrupt; .*wrong checksum"):
            vsc.load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9, -1])
def test_truncated(tmp_path, keep):
    path = tmp_path / "c.pt"
    vsc.save_checkpoint(path, {"model": {"w": torch.randn(1000)}})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(
        ValueError, match=r"c\.pt is no checkpoint, or is truncated or corrupt; if it was one, train again"
    ):
        vsc.load_checkpoint(path)


def test_malicious_pickles_do_not_run(tmp_path, capsys):
    path = tmp_path / "c.pt"
    for write in (
        lambda: torch.save({"model": Malicious()}, path),
        lambda: path.write_bytes(pickle.dumps(Malicious(), protocol=2)),
    ):
        write()
        with pytest.raises(ValueError, match=r"was not read: .* could run code"):
            vsc.load_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        vsc.load_checkpoint(tmp_path / "none.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="is not a vsc_pyro checkpoint of format 2"):
        vsc.load_checkpoint(tmp_path / "c.pt")
    torch.save(torch.zeros(1), tmp_path / "c.pt")
    with pytest.raises(ValueError, match="is not a vsc_pyro checkpoint"):
        vsc.load_checkpoint(tmp_path / "c.pt")


def test_weights_of_another_architecture(small_vae, tmp_path):
    state = {"model": small_vae(latent_dim=8).state_dict()}
    vsc.load_weights(small_vae(latent_dim=8, seed=1), state)
    vsc.save_checkpoint(tmp_path / "c.pt", state)
    other = small_vae(latent_dim=8, seed=1)
    vsc.load_weights(other, tmp_path / "c.pt")
    assert all(torch.equal(weight, state["model"][name]) for name, weight in other.state_dict().items())
    with pytest.raises(
        ValueError, match=r"of another architecture: decoder\.network\.0\.weight is \(32, 8\) there and"
    ):
        vsc.load_weights(small_vae(latent_dim=9), state, "c.pt")
    with pytest.raises(ValueError, match=r"model must be the module to load weights into, got .* it is the first"):
        vsc.load_weights(state, small_vae())
    with pytest.raises(ValueError, match="device must be a torch device such as 'cpu', got VAE"):
        vsc.load_checkpoint("any.pt", small_vae())
    normal = vsc.VAE(vsc.NormalEncoder(64, 8), vsc.BernoulliDecoder(8, 64), vsc.NormalPrior(8))
    with pytest.raises(ValueError, match="holds no weights: it has epoch, format, not 'model'"):
        vsc.load_weights(small_vae(), {"format": 1, "epoch": 2}, "c.pt")
    with pytest.raises(ValueError, match="build the model with the settings it was trained with"):
        vsc.load_weights(normal, state)
