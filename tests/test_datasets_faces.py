"""The drawn faces: every factor shows, alone, and as its table says."""

import pytest
import torch
from conftest import assert_mean_equals

from vsc_pyro import datasets

SPLIT = datasets.smiley(num_train=5000, num_test=100)
NAMES = SPLIT.train.factors.names
GRID = torch.linspace(-1, 1, 41)
NOTHING = datasets.render_smiley(torch.zeros(1, 18, dtype=torch.bool), torch.zeros(1, 18))


def alone(name):
    """The pixels of one part, for attributes from -1 to 1: shape ``(41, 32, 32)``."""
    presence = torch.zeros(len(GRID), 18, dtype=torch.bool)
    presence[:, NAMES.index(name)] = True
    return (datasets.render_smiley(presence, presence * GRID[:, None]) - NOTHING)[:, 0]


def row(pixels):
    return (pixels.sum(-1) * torch.arange(32)).sum() / pixels.sum()


def column(pixels):
    return row(pixels.T)


def ink(pixels):
    return pixels.sum()


def test_every_part_is_there_half_of_the_time_whatever_the_others():
    presence, values, names = SPLIT.train.factors
    assert len(names) == 18
    assert [sum(name.startswith(group) for name in names) for group in ("hat/", "eyes/", "mouth/", "neck/")] == [
        *(4, 4, 5, 5)
    ]
    assert_mean_equals(presence.double(), 0.5)
    first, second = torch.triu_indices(18, 18, 1)
    assert_mean_equals((presence[:, first] & presence[:, second]).double(), 0.25)
    assert (values[~presence] == 0).all()
    assert ((values[presence].abs() <= 1) & (values[presence] != 0)).all()
    assert_mean_equals(values[presence], 0.0)
    assert_mean_equals(values[presence] ** 2, 1 / 3)
    assert_mean_equals(values[presence] ** 4, 1 / 5)


def test_images_are_binary_and_made_of_their_factors():
    for part in SPLIT:
        assert part.images.shape == (len(part), 1, 32, 32)
        assert set(part.images.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(datasets.render_smiley(part.factors.presence, part.factors.values), part.images)


@pytest.mark.parametrize("name", NAMES)
def test_switching_a_part_adds_its_own_pixels_and_no_others(name):
    data = SPLIT.train
    presence, values = data.factors.presence.clone(), data.factors.values.clone()
    k = NAMES.index(name)
    values[:, k] = torch.linspace(-1, 1, len(data))
    presence[:, k] = True
    with_part = datasets.render_smiley(presence, values)
    presence[:, k] = False
    added = with_part - datasets.render_smiley(presence, values)
    assert (added >= 0).all()
    assert (added.flatten(1).sum(1) > 0).all()
    own = added.amax(0)
    absent = ~data.factors.presence[:, k]
    assert not (data.images[absent] * own).any()
    assert (data.images[~absent] * own).flatten(1).any(1).all()


def test_no_part_hides_another():
    owners = torch.stack([alone(name).amax(0) for name in NAMES]).sum(0) + NOTHING[0, 0]
    assert owners.max() == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_attribute_shows(name):
    assert len(alone(name).flatten(1).unique(dim=0)) >= 5


@pytest.mark.parametrize(
    ("part", "grows"),
    [
        ("hat/bobble", column),
        ("hat/crown", lambda pixels: column(pixels[:4])),
        ("hat/brim", ink),
        ("hat/feather", column),
        ("eyes/left brow", lambda pixels: row(pixels[:, 9:11]) - row(pixels[:, 12:14])),
        ("eyes/left eye", ink),
        ("mouth/nose", ink),
        ("mouth/left cheek", lambda pixels: -row(pixels)),
        ("mouth/moustache", ink),
        ("mouth/mouth", lambda pixels: row(pixels[:, 15:17]) - row(pixels[:, 10:12])),
        ("neck/left shoulder", lambda pixels: row(pixels[:, :2]) - row(pixels[:, 5:7])),
        ("neck/left wing", ink),
        ("neck/knot", ink),
    ],
)
def test_the_attribute_does_what_the_table_says(part, grows):
    measured = torch.stack([grows(pixels) for pixels in alone(part)[::20]])
    assert (measured.diff() > 0).all()


def test_left_and_right_are_mirror_images():
    lefts = [name for name in NAMES if "left" in name]
    assert len(lefts) == 5
    for left in lefts:
        assert torch.equal(alone(left).flip(-1), alone(left.replace("left", "right")))


def test_bad_factors():
    presence = torch.ones(2, 18, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"must have shape \(N, 18\), got torch.bool of shape \(2, 17\)"):
        datasets.render_smiley(presence[:, 1:], torch.zeros(2, 17))
    with pytest.raises(ValueError, match=r"must have shape \(N, 18\), got torch.float32"):
        datasets.render_smiley(presence.float(), torch.zeros(2, 18))
    for value in (1.2, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]; clamp them"):
            datasets.render_smiley(presence, torch.full((2, 18), value))
