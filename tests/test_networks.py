import pytest
import torch

from vsc_pyro.models.networks import ACTIVATIONS, MLP, ConvTrunk, DeconvTrunk
from vsc_pyro.training.checkpoints import load_weights

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


def constant_map_through(layers, channels, rows, columns):
    """The output of layers that double sizes for a map that is constant in space, off its border."""
    image = torch.randn(4, channels, 1, 1, dtype=torch.float64).expand(-1, -1, rows, columns)
    with torch.no_grad():
        for layer in layers:
            image = layer(image)
    return image[:, :, 8:-9, 8:-9]


def unevenness(image):
    """The variance in space, relative to the mean square."""
    return float((image - image.mean((-2, -1), keepdim=True)).square().mean() / image.square().mean())


@pytest.mark.parametrize("shape", [(1, 28, 36), (3, 31, 38)])
def test_no_weights_make_a_checkerboard_of_a_constant_map(shape):
    trunk = DeconvTrunk(shape, (6, 4)).double()
    after = list(trunk.layers)[2:]
    for disturb in (0.0, 1.0, 10.0):  # at the start, and as training could leave them
        with torch.no_grad():
            for parameter in trunk.parameters():
                parameter.add_(disturb * torch.randn_like(parameter))
        image = constant_map_through(after, 6, shape[1] // 4, shape[2] // 4)
        assert image.shape[-2:] == (shape[1] - 17, shape[2] - 17)
        assert image.square().mean() > 0
        assert unevenness(image) < 1e-20
    plain = torch.nn.ConvTranspose2d(6, 4, 4, 2, 1).double()  # whose kernel's size the stride divides, too
    assert unevenness(constant_map_through([plain], 6, 20, 20)) > 0.1


def share_of_period_two(images):
    """The share of the spectral power of images, their means apart, in the highest frequencies, up or across."""
    power = torch.fft.fft2(images - images.mean((-2, -1), keepdim=True)).abs().square().mean((0, 1))
    height, width = power.shape
    highest = torch.zeros_like(power, dtype=torch.bool)
    highest[height // 2] = True
    highest[:, width // 2] = True
    return float(power[highest].sum() / power.sum())


def test_pictures_of_random_codes_are_smooth_at_the_start_and_after_training():
    # White noise has a share of 1/16 there, and transposed convolutions of independent weights more, as they start.
    trunk = DeconvTrunk((1, 32, 32), (16, 8), 8)
    codes, smooth = torch.randn(50, 8), torch.nn.Upsample(scale_factor=8, mode="bilinear")
    targets = smooth(torch.randn(50, 1, 4, 4))
    assert share_of_period_two(trunk(codes).detach()) < 0.02
    optimizer = torch.optim.Adam(trunk.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        (trunk(codes) - targets).square().mean().backward()
        optimizer.step()
    assert share_of_period_two(trunk(codes).detach()) < 0.02
    plain = DeconvTrunk((1, 32, 32), (16, 8), 8)
    for number, (before, after) in ((3, (16, 8)), (5, (8, 1))):
        plain.layers[number] = torch.nn.ConvTranspose2d(before, after, 4, 2, 1)
    assert share_of_period_two(plain(codes).detach()) > 0.1


def test_weights_of_plain_transposed_convolutions_are_refused():
    trunk, plain = (DeconvTrunk((1, 8, 8), (6, 4)) for _ in range(2))
    for number, (before, after) in ((3, (6, 4)), (5, (4, 1))):
        plain.layers[number] = torch.nn.ConvTranspose2d(before, after, 4, 2, 1)
    with pytest.raises(
        ValueError, match=r"of another architecture: layers.3.kernel is absent there and \(6, 4, 4, 4\)"
    ):
        load_weights(trunk, {"model": plain.state_dict()})


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
    for _ in range(100):
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
