"""CIFAR-10 and CelebA, from small files in the format of the real ones, of which only the checksums are replaced."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from vsc_pyro import datasets


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


class OldPickler(pickle.Pickler):
    """Writes number types as Python 2 did, which wrote the real files."""

    def reducer_override(self, value):
        return (np.dtype, ("u1", 0, 1), value.__reduce__()[2]) if isinstance(value, np.dtype) else NotImplemented


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    sums = {}

    def write(name, content):
        with (folder / name).open("wb") as file:
            OldPickler(file, protocol=2).dump(content)
        sums[name] = md5(folder / name)

    cls = torchvision.datasets.CIFAR10
    for name, _ in cls.train_list + cls.test_list:
        pixels = random.integers(0, 256, (8, 3072), dtype=np.uint8)
        write(name, {"data": pixels, "labels": random.integers(0, 10, 8).tolist()})
    write("batches.meta", {"label_names": list("abcdefghij")})
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(cls, files, [[name, sums[name]] for name, _ in getattr(cls, files)])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": sums["batches.meta"]})
    return folder


def grey_images(folder, name):
    batch = pickle.loads((folder / name).read_bytes(), encoding="latin1")
    red, green, blue = torch.tensor(batch["data"]).reshape(8, 3, 32, 32).float().unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255, torch.tensor(batch["labels"])


def test_cifar_whole_images_are_those_of_the_files(cifar):
    train, test = datasets.cifar10_grey(cifar.parent, size=32)
    assert (train.images.shape, test.images.shape) == ((40, 1, 32, 32), (8, 1, 32, 32))
    images, labels = grey_images(cifar, "data_batch_2")
    assert torch.allclose(train.images[8:16, 0], images, atol=1e-6)
    assert torch.equal(train.labels[8:16], labels)
    assert train.class_names == tuple("abcdefghij")
    images, labels = grey_images(cifar, "test_batch")
    assert torch.allclose(test.images[:, 0], images, atol=1e-6)
    assert torch.equal(test.labels, labels)


def test_cifar_crops_are_pieces_of_their_images(cifar):
    test = datasets.cifar10_grey(cifar.parent, size=12).test
    windows = grey_images(cifar, "test_batch")[0].unfold(1, 12, 1).unfold(2, 12, 1)
    same = (windows - test.images.unsqueeze(1)).abs().amax((-1, -2)) < 1e-5
    assert (same.flatten(1).sum(1) == 1).all()
    assert len(same.nonzero()[:, 1:].unique(dim=0)) > 4


def test_cifar_by_name_and_seed(cifar):
    train = datasets.load("cifar10-grey", cifar.parent).train
    assert train.images.shape == (40, 1, 16, 16)
    assert (train.images.dtype, train.binarize, train.name) == (torch.float32, None, "cifar10-grey")
    assert torch.equal(train.images, datasets.cifar10_grey(cifar.parent).train.images)
    assert not torch.equal(train.images, datasets.load("cifar10-grey", cifar.parent, seed=1).train.images)
    assert datasets.load("cifar10-grey", cifar.parent, "dynamic").train.draw(slice(3)).unique().tolist() == [0, 1]


def test_cifar_size(cifar):
    with pytest.raises(ValueError, match="size must be at most 32, the side of CIFAR-10's images, got 33"):
        datasets.cifar10_grey(cifar.parent, size=33)


def test_cifar_files_that_are_damaged_or_missing(cifar):
    (cifar / "data_batch_3").write_bytes(b"torn")
    with pytest.raises(OSError, match=r"CIFAR10 files .*cifar-10-batches-py are corrupt or truncated .*delete them"):
        datasets.cifar10_grey(cifar.parent)
    (cifar / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py lacks data_batch_3; .*download=True"):
        datasets.cifar10_grey(cifar.parent, download=False)


def test_a_download_of_cifar_that_fails(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    message = r"could not be downloaded \(.*no network here.*put the seven files data_batch_1, .*batches.meta into"
    with pytest.raises(FileNotFoundError, match=message):
        datasets.load("cifar10-grey", tmp_path)


SMILING = [1, -1, -1, 1, 1, -1, 1, -1]
PARTS = [0, 0, 1, 0, 2, 2, 1, 0]  # training, validation, test


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Eight photographs: red grows with the column, green with the row, blue says which one it is."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    rows, columns = np.mgrid[:218, :178]
    names = [f"{number + 1:06d}.jpg" for number in range(8)]
    for number, name in enumerate(names):
        image = np.stack([columns, rows, np.full_like(rows, 20 * number)], -1).astype(np.uint8)
        Image.fromarray(image).save(folder / "img_align_celeba" / name, quality=95, subsampling=0)
    tables = {
        # The real file has two blanks before a 1, and one at the end of the line of names.
        "list_attr_celeba.txt": [
            "8",
            "Smiling Young ",
            *(f"{n} {s:2d}  1" for n, s in zip(names, SMILING, strict=True)),
        ],
        "identity_CelebA.txt": [f"{name} 7" for name in names],
        "list_bbox_celeba.txt": ["8", "image_id x_1 y_1 width height", *(f"{name}  9 8 7 6" for name in names)],
        "list_landmarks_align_celeba.txt": ["8", "lefteye_x lefteye_y ", *(f"{name}  9 8" for name in names)],
        "list_eval_partition.txt": [f"{name} {part}" for name, part in zip(names, PARTS, strict=True)],
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    cls = torchvision.datasets.CelebA
    sums = {name: md5(folder / name) for name in tables}
    monkeypatch.setattr(cls, "file_list", [(key, sums.get(name, old), name) for key, old, name in cls.file_list])
    return folder


@pytest.mark.parametrize(("size", "crop"), [(64, 148), (32, 178), (37, 148)])
def test_celeba_is_the_middle_of_each_image(celeba, size, crop):
    train, test = datasets.celeba(celeba.parent, size=size, crop=crop)
    assert (train.images.shape, test.images.shape) == ((4, 3, size, size), (2, 3, size, size))
    assert train.images.dtype == torch.float32
    inner = slice(2, -2)  # resizing mirrors nothing, but averages fewer pixels at the border
    along = ((torch.arange(size) + 0.5) * crop / size - 0.5)[inner]
    red, green, blue = train.images.unbind(1)
    assert torch.allclose(red.mean((0, 1))[inner] * 255, (178 - crop) / 2 + along, atol=1)
    assert torch.allclose(green.mean((0, 2))[inner] * 255, (218 - crop) / 2 + along, atol=1)
    numbers = [number for number, part in enumerate(PARTS) if part == 0]
    assert torch.allclose(blue.mean((1, 2)) * 255, 20.0 * torch.tensor(numbers), atol=2)


def test_celeba_attributes_are_factors(celeba):
    train, test = datasets.load("celeba", celeba.parent)
    assert train.images.shape[1:] == (3, 64, 64)
    assert train.binarize is None
    assert train.factors.names == ("Smiling", "Young")
    assert train.factors.presence.tolist() == [[True, True], [False, True], [True, True], [False, True]]
    assert torch.equal(test.factors.values, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


def test_celeba_in_part(celeba):
    (celeba / "img_align_celeba" / "000008.jpg").unlink()  # the last of the training part
    train, test = datasets.celeba(celeba.parent, num_train=3, num_test=1)
    assert (len(train), len(test), len(train.factors.presence)) == (3, 1, 3)
    with pytest.raises(FileNotFoundError, match=r"000008.jpg is missing; unpack img_align_celeba.zip"):
        datasets.celeba(celeba.parent)


@pytest.mark.parametrize("damage", ["truncated", "small", "text"])
def test_celeba_images_that_are_damaged_are_named(celeba, damage):
    file = celeba / "img_align_celeba" / "000002.jpg"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "small":
        Image.new("RGB", (64, 64)).save(file)
    else:
        file.write_text("no photograph")
    with pytest.raises(OSError, match=r"000002.jpg are corrupt or truncated \(.*delete them and load again"):
        datasets.celeba(celeba.parent)


def test_celeba_files_that_are_damaged_or_missing(celeba):
    (celeba / "identity_CelebA.txt").write_text("torn")
    with pytest.raises(OSError, match=r"CelebA annotation files .*\*.txt are corrupt or truncated"):
        datasets.celeba(celeba.parent)
    (celeba / "identity_CelebA.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"celeba lacks identity_CelebA.txt; pass the folder"):
        datasets.celeba(celeba.parent, download=False)


def test_a_download_of_celeba_that_fails(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise RuntimeError("no network here")

    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", no_network)
    message = r"could not be downloaded \(no network here\); put the five annotation files and .* img_align_celeba into"
    with pytest.raises(FileNotFoundError, match=message):
        datasets.load("celeba", tmp_path)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"crop": 179}, {"num_train": 0}, {"num_test": 1.5}])
def test_celeba_bad_numbers(celeba, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        datasets.celeba(celeba.parent, **arguments)
