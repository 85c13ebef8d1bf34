"""The world of known features is what its docstring says, and its truth is the truth."""

import itertools

import pytest
import torch
from conftest import Z_BOUND, assert_mean_equals
from torch.nn.functional import normalize

import vsc_pyro as vsc
from vsc_pyro.datasets.firing import ANY_CHILD, Correlated, power_law

STRUCTURES = ["independent", "correlated", "hierarchical"]


def world(structure, **options):
    return vsc.datasets.features(100, 20, **{"expected_active": 6, "structure": structure, **options})


@pytest.fixture(scope="module", params=STRUCTURES)
def both(request):
    made = world(request.param, noise=0.3)
    return made, made.sample(20_000)


def test_rates_are_those_of_the_data(both):
    made, data = both
    assert made.rates.sum() == pytest.approx(6)
    assert made.rates.max() <= 0.5
    # 300 two-sided tests at 5 standard errors fail by chance with a probability below 2e-4.
    error = data.factors.presence.double().mean(0) - made.rates
    assert (error.abs() < Z_BOUND * (made.rates * (1 - made.rates) / len(data)).sqrt()).all()


def test_data_are_the_sum_of_their_features_and_noise(both):
    made, data = both
    residual = data.images - made.bias - data.factors.values @ made.dictionary
    assert_mean_equals(residual, 0.0)
    assert_mean_equals(residual**2, 0.3**2)
    assert torch.equal(data.factors.values > 0, data.factors.presence)


def test_magnitudes_are_those_stated(both):
    made, data = both
    often = int(made.rates.argmax())
    values = data.factors.values[data.factors.presence[:, often], often].double()
    mean, deviation = (float(part[often]) for part in made.magnitudes)
    assert_mean_equals(values**2, mean**2 + deviation**2)
    for part, (low, high) in zip(made.magnitudes, ((1, 1.5), (0.2, 0.5)), strict=True):
        assert low <= part.min()
        assert part.max() <= high


def test_parents_and_siblings():
    made = world("hierarchical")
    presence, parent = made.sample(20_000).factors.presence, made.parent
    children = (parent >= 0).nonzero().flatten()
    assert parent[:5].tolist() == [-1] * 5
    assert (parent[children] < children).all()
    assert not (presence[:, children] & ~presence[:, parent[children]]).any()
    for feature in parent.unique()[1:].tolist():
        assert (presence[:, parent == feature].sum(1) <= 1).all()
        below = made.rates[parent == feature]
        assert below.sum() == pytest.approx(ANY_CHILD * made.rates[feature])
        assert below.tolist() == sorted(below, reverse=True)
    # Three levels of four children: 5 roots, 20 children, 75 of the 80 grandchildren.
    assert parent[5:25].bincount().tolist() == [4] * 5
    assert parent[25:].bincount()[5:].tolist() == [4] * 18 + [3]


def test_pairs_are_correlated_as_their_loadings():
    made = world("correlated", expected_active=20)
    structure = made._structure
    assert isinstance(structure, Correlated)
    correlation = (structure.loadings.T @ structure.loadings).fill_diagonal_(0)
    presence = made.sample(20_000).factors.presence.double()
    observed = presence.T.corrcoef()
    for extreme, sign in ((correlation.argmax(), 1), (correlation.argmin(), -1)):
        assert abs(correlation.flatten()[extreme]) > 0.3
        # Under independence, a correlation of n data has the standard error n ** -1/2.
        assert sign * observed.flatten()[extreme] > Z_BOUND / len(presence) ** 0.5
    independent = world("independent", expected_active=20).sample(20_000).factors.presence.double()
    strongest = independent.T.corrcoef().fill_diagonal_(0).abs().max()
    assert strongest < Z_BOUND / len(independent) ** 0.5  # 4,950 pairs; 0.3 per cent by chance


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches_depend_on_seed_and_step_only(structure):
    first = list(itertools.islice(world(structure, batch_size=7), 4))
    again = world(structure, batch_size=7)
    assert all(map(torch.equal, first, again))
    assert all(map(torch.equal, first, again))  # iterated once more
    assert torch.equal(next(iter(again.start_at(2))), first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], next(iter(world(structure, batch_size=7, seed=1))))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_data_do_not_depend_on_the_default_type(structure):
    def drawn():
        made = world(structure, batch_size=7)
        sample = made.sample(9)
        return next(iter(made)), sample.images, sample.factors.values

    expected = drawn()
    torch.set_default_dtype(torch.float64)
    try:
        found = drawn()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_stream_is_drawn_on_a_device(structure, device):
    made = world(structure, device=device, noise=0)
    x = torch.stack(list(itertools.islice(made, 20))).double()
    assert x.device.type == torch.device(device).type
    m, t = (part.double() for part in made.magnitudes)
    magnitude = m * (m / t / 2**0.5).erf() + t * (2 / torch.pi) ** 0.5 * (-((m / t) ** 2) / 2).exp()  # E|a|
    error = x.flatten(0, 1).cpu() - made.bias - (made.rates * magnitude) @ made.dictionary.double()
    # 60 two-sided tests at 5 standard errors fail by chance with a probability below 4e-5.
    assert (error.mean(0).abs() < Z_BOUND * error.std(0) / len(error) ** 0.5).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_samples_have_their_own_random_numbers(structure):
    made = world(structure)
    sample = made.sample(1500, seed=3)
    next(iter(made))
    again = made.sample(1500, seed=3)
    assert torch.equal(sample.images, again.images)
    assert torch.equal(sample.factors.values, again.factors.values)
    assert torch.equal(made.sample(1024, seed=3).images, sample.images[:1024])
    assert not torch.equal(made.sample(1500, seed=4).images, sample.images)
    # No datum of a sample is one of the stream, whatever the seeds.
    stream = {tuple(row) for batch in itertools.islice(made, 3) for row in batch.tolist()}
    assert all(stream.isdisjoint(map(tuple, made.sample(1024, seed).images.tolist())) for seed in range(3))


@pytest.mark.parametrize(("num", "dim"), [(60, 20), (20, 20), (7, 20)])
def test_directions_are_as_orthogonal_as_the_dimension_allows(num, dim):
    directions = vsc.datasets.features(num, dim, expected_active=2).dictionary
    torch.testing.assert_close(directions, normalize(directions))
    squares = ((directions @ directions.T) ** 2).sum() - num
    assert squares.item() == pytest.approx(max(0, num * (num - dim) / dim), abs=0.05)


def test_rates_follow_the_power_law_below_the_greatest_rate():
    weights = torch.linspace(1, 2, 6).double().numpy()
    rates = power_law(weights, 2.5, 1.5, 0.4)
    assert rates @ weights == pytest.approx(2.5)
    capped = (rates == 0.4).sum()
    assert 1 < capped < 6
    assert rates[capped:] / rates[-1] == pytest.approx((torch.arange(capped + 1, 7) / 6).numpy() ** -1.5)
    assert power_law(weights, 0.4 * weights.sum(), 1.5, 0.4) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "chain"}, "unknown structure 'chain'; known are 'correlated', 'hierarchical', 'independent'"),
        ({"expected_active": 51}, "expected_active=51 is more than the 50 features"),
        ({"expected_active": 0}, "expected_active must be a finite number above 0, got 0"),
        ({"noise": -1}, "noise must be a finite number of at least 0, got -1"),
        ({"exponent": float("nan")}, "exponent must be a finite number of at least 0, got nan"),
        ({"max_rate": 1.5}, "max_rate is a probability of at most 1, got 1.5"),
        ({"device": "x"}, "device 'x' is not available: .*; use 'auto' or 'cpu'"),
        ({"device": None}, "device None is not available"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        world(**{"structure": "independent", **options})


def test_a_later_start_leaves_the_world_as_it_is():
    one = world("independent")
    assert torch.equal(next(iter(one.start_at(3))), next(itertools.islice(one, 3, None)))
    assert torch.equal(next(iter(one)), next(iter(world("independent"))))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_exponent_whose_powers_underflow(structure):
    with pytest.raises(ValueError, match="exponent=5000"):
        vsc.datasets.features(50, 8, expected_active=1, structure=structure, exponent=5000)
