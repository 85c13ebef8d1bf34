import pytest
import torch

from vsc_pyro.networks import ACTIVATIONS, MLP, ConvTrunk, DeconvTrunk

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 27, 33), (2, 7, 4)]


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


@pytest.mark.parametrize("shape", IMAGES)
def test_convolutions_of_any_size_with_images_flat_or_not(shape):
    trunk = ConvTrunk(shape, channels=(4, 6), features=10, activation="silu")
    assert (trunk.input_shape, trunk.out_features) == (shape, 10)
    x = torch.randn(3, *shape)
    features = trunk(x)
    assert features.shape == (3, 10)
    torch.testing.assert_close(trunk(x.flatten(1)), features)
    assert trunk(x[:0]).shape == (0, 10)


@pytest.mark.parametrize("shape", IMAGES)
def test_transposed_convolutions_give_the_size_asked_for_whatever_the_leading_dimensions(shape):
    trunk = DeconvTrunk(shape, channels=(6, 4), features=10, activation="silu")
    assert (trunk.output_shape, trunk.in_features) == (shape, 10)
    x = torch.randn(2, 5, 3, 10)
    images = trunk(x)
    assert images.shape == (2, 5, 3, *shape)
    torch.testing.assert_close(trunk(x[1]), images[1])
    torch.testing.assert_close(trunk(x[1, 4, 2]), images[1, 4, 2])
    assert trunk(x[:0]).shape == (0, 5, 3, *shape)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_trunks_of_any_depth(num_layers):
    channels = (4, 5, 6)[:num_layers]
    features = ConvTrunk((1, 29, 8), channels)(torch.randn(2, 1, 29, 8))
    assert DeconvTrunk((1, 29, 8), channels[::-1])(features).shape == (2, 1, 29, 8)


@pytest.mark.parametrize("shape", IMAGES)
def test_every_pixel_is_seen_and_drawn(shape):
    x = torch.randn(2, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(ConvTrunk(shape, (4, 6), activation="tanh")(x).sum(), x)
    assert (gradient != 0).all()
    images = DeconvTrunk(shape, (6, 4), activation="tanh")(torch.randn(20, 256))
    assert (images.std(0) > 1e-4).all()


def test_no_checkerboard():
    # With all weights alike, a kernel that the stride does not divide covers neighbouring pixels unequally.
    trunk = DeconvTrunk((1, 29, 28), (3, 2))
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.fill_(0.1)
        image = trunk(torch.ones(256))[0]
    inside = image[3:-4, 3:-4]  # borders of 3, and 1 of output padding
    torch.testing.assert_close(inside, inside[:1, :1].expand_as(inside))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_signals_are_neither_lost_nor_blown_up_at_the_start(activation):
    features = ConvTrunk((1, 64, 64), (16, 32, 32, 32), activation=activation)(torch.randn(64, 1, 64, 64))
    assert 0.15 < features.std(0).mean() < 2
    images = DeconvTrunk((1, 64, 64), (32, 32, 32, 16), activation=activation)(torch.randn(64, 256))
    assert 0.15 < images.std(0).mean() < 2


def test_trunks_learn_to_reconstruct_images(digits):
    x = digits.train.images[:100]
    trunks = torch.nn.Sequential(ConvTrunk((1, 8, 8)), torch.nn.ReLU(), DeconvTrunk((1, 8, 8)))
    optimizer = torch.optim.Adam(trunks.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (trunks(x) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.detach() < 0.3 * x.var(0, correction=0).mean()  # far better than the mean image


def test_bad_arguments_of_trunks():
    with pytest.raises(ValueError, match=r"input_shape must be \(channels, height, width\), got \(28, 28\)"):
        ConvTrunk((28, 28))
    with pytest.raises(ValueError, match=r"output_shape must be at least 8 pixels high and wide .* fewer channels"):
        DeconvTrunk((1, 8, 7), (8, 8, 8))
    with pytest.raises(ValueError, match="channels must have one entry for each convolution"):
        ConvTrunk((1, 8, 8), ())
    with pytest.raises(ValueError, match="channels must be a whole number of at least 1, got 0"):
        DeconvTrunk((1, 8, 8), (4, 0))
    with pytest.raises(ValueError, match="features must be a whole number of at least 1, got -1"):
        DeconvTrunk((1, 8, 8), features=-1)
    with pytest.raises(ValueError, match="unknown activation 'relu6'"):
        ConvTrunk((1, 8, 8), activation="relu6")
    with pytest.raises(
        ValueError, match=r"x must be images of shape \(3, 8, 8\), flattened or not, got \(2, 8, 8, 3\)"
    ):
        ConvTrunk((3, 8, 8))(torch.zeros(2, 8, 8, 3))
