import copy

import pytest
import torch

from vsc_pyro._scalars import ScalarModule


class Oven(ScalarModule):
    def __init__(self):
        super().__init__()
        self.register_scalar("heat", 2)
        self.door = 1

    def check_scalar(self, name, value):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def test_a_number_goes_into_the_tensor_that_is_there():
    oven = Oven()
    heat = oven.heat
    oven.heat = 0.5
    assert oven.heat is heat
    assert heat == 0.5
    oven.heat = replaced = torch.tensor(3.0)
    assert oven.heat is replaced
    oven.door = 2
    assert oven.door == 2
    with pytest.raises(ValueError, match="heat must be at least 0, got -1"):
        oven.heat = -1
    assert oven.heat == 3


def test_scalars_are_settings_that_follow_the_module():
    oven = Oven().double()
    assert oven.heat.dtype == torch.float64
    assert dict(oven.state_dict()) == {}
    other = copy.deepcopy(oven)
    other.heat = 9
    assert oven.heat == 2
