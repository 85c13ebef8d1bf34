import pytest
import torch

from vsc_pyro.networks import ACTIVATIONS, MLP


@pytest.mark.parametrize("hidden", [(), 7, (5,), (6, 4, 3)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_shapes_of_any_widths(hidden, activation):
    net = MLP(10, 2, hidden, activation)
    assert net(torch.randn(3, 4, 10)).shape == (3, 4, 2)
    widths = [layer.out_features for layer in net if isinstance(layer, torch.nn.Linear)]
    assert widths == [*((hidden,) if isinstance(hidden, int) else hidden), 2]
    assert sum(isinstance(layer, ACTIVATIONS[activation]) for layer in net) == len(widths) - 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown activation 'relu6'; known are 'elu', 'gelu'"):
        MLP(10, 2, activation="relu6")
    with pytest.raises(ValueError, match="hidden must be a whole number of at least 1, got 0"):
        MLP(10, 2, hidden=(5, 0))
    with pytest.raises(ValueError, match="out_features must be a whole number of at least 1, got -1"):
        MLP(10, -1)
