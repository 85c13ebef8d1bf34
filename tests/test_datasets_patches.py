"""Patches of photographs: whitened by what the training patches say, and no pixel in both parts."""

import numpy as np
import pytest
import torch
from PIL import Image

from vsc_pyro.datasets import patches


def write(folder, name, array):
    Image.fromarray(array).save(folder / name)


@pytest.fixture
def columns(tmp_path):
    """Two photographs in which a pixel's grey level is its column."""
    for name, height in (("a.png", 40), ("b.png", 100)):
        write(tmp_path, name, np.tile(np.arange(256, dtype=np.uint8), (height, 1)))
    (tmp_path / "notes.txt").write_text("no photograph")
    return tmp_path


def flat(dataset):
    return dataset.images.flatten(1).double()


def test_bundled_photographs():
    train, test = patches(num_train=3000, num_test=500)
    assert (train.images.shape, test.images.shape) == ((3000, 1, 12, 12), (500, 1, 12, 12))
    assert train.images.dtype == torch.float32
    assert flat(train).mean(0).abs().max() < 1e-5
    assert flat(train).var(correction=0) == pytest.approx(1, abs=1e-5)
    assert train.labels is None
    assert torch.equal(train.images, patches(num_train=3000, num_test=500).train.images)
    assert not torch.equal(train.images, patches(num_train=3000, num_test=500, seed=1).train.images)


def test_grey_levels_and_positions_that_do_not_depend_on_the_other_part():
    a, b = (patches(size=8, num_train=number, num_test=100, whiten=False) for number in (50, 200))
    assert torch.equal(a.test.images, b.test.images)
    assert not torch.equal(a.train.images, b.train.images[:50])
    assert (a.test.images.min() >= 0) & (a.test.images.max() <= 1)


def test_whitened_patches_have_the_identity_for_covariance():
    x = flat(patches(num_train=3000, num_test=10, regularisation=1e-9).train)
    assert torch.allclose(x.T @ x / len(x), torch.eye(144, dtype=x.dtype), atol=1e-3)


def test_regularisation_holds_back_what_hardly_varies():
    grey, white = (flat(patches(num_train=3000, num_test=10, whiten=w).train) for w in (False, True))
    variances, directions = torch.linalg.eigh(torch.cov(grey.T, correction=0))
    expected = variances / (variances + 0.01 * variances.mean())
    assert expected[0] < 0.4 < 0.99 < expected[-1]
    expected = expected / expected.mean()
    assert torch.allclose(((white @ directions) ** 2).mean(0), expected, atol=1e-4)


def test_the_transform_is_symmetric_and_that_of_the_training_patches():
    grey, white = (patches(size=6, num_train=2000, num_test=300, whiten=w) for w in (False, True))
    mean = flat(grey.train).mean(0)
    transform = torch.linalg.lstsq(flat(grey.train) - mean, flat(white.train)).solution
    assert torch.allclose(transform, transform.T, atol=1e-2 * transform.abs().max())
    assert torch.allclose((flat(grey.test) - mean) @ transform, flat(white.test), atol=1e-3)


def test_no_pixel_is_in_both_parts(columns):
    train, test = (
        part.images * 255 for part in patches(size=10, num_train=4000, num_test=4000, folder=columns, whiten=False)
    )
    assert torch.allclose(train.diff(dim=3), torch.ones(1))
    assert torch.allclose(train.diff(dim=2), torch.zeros(1))
    assert (round(train.min().item()), round(train.max().item())) == (0, 181)
    assert (round(test.min().item()), round(test.max().item())) == (192, 255)


def test_every_photograph_is_used_by_its_number_of_positions(tmp_path):
    for name, height, level in (("small.png", 13, 50), ("large.png", 34, 200)):
        write(tmp_path, name, np.full((height, 80), level, dtype=np.uint8))
    train = patches(size=4, num_train=4000, num_test=10, folder=tmp_path, whiten=False).train
    share = (train.images[:, 0, 0, 0] * 255 < 100).double()
    assert abs(share.mean() - 10 / 41) < 5 * (10 / 41 * 31 / 41 / 4000) ** 0.5
    assert 0 < share[:100].sum() < 100  # in no order


def test_colour_and_depth(tmp_path):
    write(tmp_path, "colour.png", np.full((20, 80, 3), (255, 0, 0), dtype=np.uint8))
    train = patches(size=4, num_train=5, num_test=5, folder=tmp_path, whiten=False).train
    assert torch.allclose(train.images, torch.tensor(0.299), atol=1 / 255)
    (tmp_path / "colour.png").unlink()
    write(tmp_path, "deep.png", np.full((20, 80), 20000, dtype=np.uint16))
    train = patches(size=4, num_train=5, num_test=5, folder=tmp_path, whiten=False).train
    assert torch.allclose(train.images, torch.tensor(20000 / 65535))


def test_folders_that_will_not_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; pass a folder of photographs"):
        patches(folder=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no photograph; put files of .bmp"):
        patches(folder=tmp_path)
    write(tmp_path, "grey.png", np.full((20, 80), 7, dtype=np.uint8))
    with pytest.raises(ValueError, match="have no contrast to whiten"):
        patches(folder=tmp_path, size=4, num_train=10, num_test=10)
    with pytest.raises(ValueError, match=r"grey.png of 80x20 pixels is too small for patches of size 21: .* 84x21"):
        patches(folder=tmp_path, size=21)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(ValueError, match=r"torn.jpg is not a photograph that Pillow can read .*remove it"):
        patches(folder=tmp_path, size=4)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"num_train": 0}, {"num_test": -3}, {"regularisation": 0.0}])
def test_bad_numbers(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be a"):
        patches(**arguments)
