import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import vsc_pyro as vsc


@pytest.fixture
def folder(tmp_path):
    """Four parts of two photographs, in a subfolder each, beside files that are no pictures."""
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (tmp_path / name).mkdir()
        for number, columns in enumerate(np.split(photograph, 2, axis=1)):
            Image.fromarray(columns).save(tmp_path / name / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".thumbnails").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / ".thumbnails" / "hidden.png")
    return tmp_path


def test_pictures_are_split_and_labelled_by_folder(folder):
    train, test = vsc.datasets.images(folder, size=(32, 24), test_share=0.25)
    assert train.shape == (3, 3, 32, 24)
    assert test.shape == (1, 3, 32, 24)
    assert sorted([*train.labels.tolist(), *test.labels.tolist()]) == [0, 0, 1, 1]
    assert train.class_names == test.class_names == ("china", "flower")
    again = vsc.datasets.images(str(folder), size=(32, 24), test_share=0.25)
    assert torch.equal(train.images, again.train.images)
    others = [vsc.datasets.images(folder, 4, test_share=0.25, seed=seed).test.images for seed in range(10)]
    assert len({tuple(image.flatten().tolist()) for image in others}) > 1
    few = vsc.datasets.images(folder, 4, limit=2)
    assert (len(few.train), len(few.test)) == (1, 1)


def test_pixels_are_those_of_the_central_part(tmp_path):
    # Left and right quarters are cut off; the rest is two colours, one above the other.
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:4, 4:12], pixels[4:, 4:12] = (255, 0, 51), (0, 102, 255)
    for name in ("a.png", "b.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    train, _ = vsc.datasets.images(tmp_path, size=8)
    expected = torch.tensor([[1, 0, 0.2], [0, 0.4, 1]]).T[:, :, None].repeat_interleave(4, 1).expand(3, 8, 8)
    torch.testing.assert_close(train.images[0], expected)
    assert train.labels is None
    grey, _ = vsc.datasets.images(tmp_path, size=8, grey=True)
    luma = torch.tensor([0.299 + 0.114 * 0.2, 0.587 * 0.4 + 0.114])
    torch.testing.assert_close(grey.images[0, 0, :, 0], luma.repeat_interleave(4), atol=1 / 255, rtol=0)


def _deep():
    return Image.fromarray(np.full((6, 6), 32768, dtype=np.uint16))


def _transparent(mode):
    return Image.new("RGBA", (6, 6), (255, 0, 0, 0)).convert(mode)


def _turned():
    picture = Image.new("L", (6, 6))
    picture.paste(255, (0, 0, 6, 3))  # white above
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    return picture, exif


def test_depth_transparency_and_orientation(tmp_path):
    def read(picture, name, **options):
        for copy in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            picture.save(tmp_path / name / f"{copy}.png", **options)
        return vsc.datasets.images(tmp_path / name, size=6, grey=True).train.images[0, 0]

    assert read(_deep(), "deep").unique().tolist() == pytest.approx([0.5], abs=1 / 255)
    for mode in ("RGBA", "LA"):
        assert read(_transparent(mode), mode).unique().tolist() == [1]
    palette = Image.new("P", (6, 6))
    palette.putpalette([255, 0, 0])
    assert read(palette, "palette", transparency=0).unique().tolist() == [1]
    picture, exif = _turned()
    assert read(picture, "turned", exif=exif)[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_linked_folders_are_followed(tmp_path, folder):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "here").symlink_to(folder / "china")
    (tmp_path / "linked" / "there").symlink_to(folder / "flower")
    (folder / "china" / "round").symlink_to(folder / "china")
    train, test = vsc.datasets.images(tmp_path / "linked", 4)
    assert sorted([*train.labels.tolist(), *test.labels.tolist()]) == [0, 0, 1, 1]


def test_refusals(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"folder must be a folder of pictures, got .*missing, which is none"):
        vsc.datasets.images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"at least two pictures.* got 0 .*end in \.bmp"):
        vsc.datasets.images(tmp_path / "empty")
    for name, value in {"size": (2, 3, 4), "test_share": 1, "limit": 0, "grey": "yes", "seed": -1}.items():
        with pytest.raises(ValueError, match=f"{name} must "):
            vsc.datasets.images(folder, **{name: value})
    damaged = folder / "china" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"china/0\.png is no picture that can be read \(.*\); convert it or remove it"):
        vsc.datasets.images(folder)
    Image.fromarray(np.full((6, 6), 3e4, dtype=np.float32)).save(folder / "china" / "0.tiff")
    damaged.unlink()
    with pytest.raises(OSError, match="mode 'F', whose white is unknown"):
        vsc.datasets.images(folder)


def test_a_model_of_pictures_in_a_folder(folder):
    train, test = vsc.datasets.images(folder, size=8, test_share=0.25)
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder((3, 8, 8), 4, hidden=(8,)),
        vsc.NormalDecoder(4, (3, 8, 8), hidden=(8,)),
        vsc.SpikeSlabPrior(4),
    )
    vsc.fit(model, train, epochs=2, progress=False)
    assert np.isfinite(vsc.evaluate(model, test, num_draws=2).elbo)
