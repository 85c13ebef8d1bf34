import pytest
import torch
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro.evaluation.survey import survey


def test_history_as_csv(tmp_path):
    vsc.History([-3.5, -2.0], [0.1, 0.2]).to_csv(tmp_path / "h.csv")
    head = "epoch,elbo,seconds,validation,used_latents,expected_l0"
    assert (tmp_path / "h.csv").read_text().split() == [head, "1,-3.5,0.1,,,", "2,-2.0,0.2,,,"]
    history = vsc.History(
        [-3.5, -2.0], [0.1, 0.2], validation=[-4.0, -3.0], used_latents=[5, 6], expected_l0=[1.5, 2.0]
    )
    history.to_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text().split()[1:] == ["1,-3.5,0.1,-4.0,5,1.5", "2,-2.0,0.2,-3.0,6,2.0"]
    assert history.best_epoch == 2


QUIET = {"device": "cpu", "progress": False}


def test_the_summary_of_a_run_is_that_of_its_training_data(small_vae, digits):
    model = small_vae()
    history = vsc.fit(model, digits.train, epochs=3, batch_size=50, seed=4, **QUIET)
    rows = torch.linspace(0, len(digits.train) - 1, 1000).long()
    assert history.summary == survey(model, digits.train[rows], seed=4).as_dict()
    assert history.summary.keys() >= {"latents", "informative_latents", "used_per_datum", "r2", "hard_r2"}


def test_the_summary_survives_a_checkpoint(small_vae, digits, tmp_path):
    path = tmp_path / "c.pt"
    settings = {"batch_size": 100, "checkpoint": path, **QUIET}
    whole = vsc.fit(small_vae(), digits.train, epochs=3, batch_size=100, **QUIET)
    two = vsc.fit(small_vae(), digits.train, epochs=2, **settings)
    assert vsc.load_checkpoint(path)["history"]["summary"] == two.summary
    assert vsc.fit(small_vae(), digits.train, epochs=2, resume=True, **settings).summary == two.summary
    state = vsc.load_checkpoint(path)
    del state["history"]["summary"]  # as in checkpoints of earlier versions
    vsc.save_checkpoint(path, state)
    assert vsc.fit(small_vae(), digits.train, epochs=2, resume=True, **settings).summary is None
    assert vsc.fit(small_vae(), digits.train, epochs=3, resume=True, **settings).summary == whole.summary
    for damage in ({"r2": "x"}, {3: 0.5}, [0.5]):
        state["history"]["summary"] = damage
        vsc.save_checkpoint(path, state)
        with pytest.raises(ValueError, match=r"history\.summary must be finite numbers by name"):
            vsc.fit(small_vae(), digits.train, epochs=2, resume=True, **settings)


def test_a_line_at_the_end_says_whether_it_has_worked(small_vae, digits, capsys):
    model = small_vae()
    vsc.fit(model, digits.train, epochs=1, device="cpu")
    rows = torch.linspace(0, len(digits.train) - 1, 1000).long()
    assert str(survey(model, digits.train[rows])) in capsys.readouterr().err
    vsc.fit(model, digits.train, epochs=1, **QUIET)
    assert capsys.readouterr().err == ""


def test_loaders_and_half_precision(small_vae, digits):
    x = digits.train.images[:100].round()
    loader = DataLoader(x, batch_size=50)
    model = small_vae()
    history = vsc.fit(model, loader, epochs=1, precision="bfloat16", **QUIET)
    assert history.summary == survey(model, vsc.Dataset(x)).as_dict()


def test_other_processes_leave_it_to_the_first(small_vae, digits, monkeypatch):
    monkeypatch.setattr("vsc_pyro.training.summary.rank", lambda: 1)
    assert vsc.fit(small_vae(), digits.train, epochs=1, **QUIET).summary is None


def test_codes_without_a_centre_have_no_summary(small_vae, digits, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("vsc_pyro.training.summary.survey", refuse)
    assert vsc.fit(small_vae(), digits.train, epochs=1, **QUIET).summary is None
