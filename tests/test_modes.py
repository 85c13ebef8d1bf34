import pytest
from torch import nn

from vsc_pyro.models.modes import in_mode


@pytest.mark.parametrize("training", [False, True])
def test_every_part_is_back_in_its_own_mode_also_after_an_error(training):
    whole = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1)))
    whole[1].eval()
    before = [part.training for part in whole.modules()]
    with in_mode(whole, training):
        assert all(part.training == training for part in whole.modules())
    assert [part.training for part in whole.modules()] == before
    with pytest.raises(ZeroDivisionError), in_mode(whole, training):
        raise ZeroDivisionError
    assert [part.training for part in whole.modules()] == before
