import vsc_pyro as vsc


def test_history_as_csv(tmp_path):
    vsc.History([-3.5, -2.0], [0.1, 0.2]).to_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text().split() == ["epoch,elbo,seconds", "1,-3.5,0.1", "2,-2.0,0.2"]
