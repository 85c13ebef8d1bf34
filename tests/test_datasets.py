import dataclasses
import gzip
import shutil
import struct
import urllib.error

import numpy as np
import pytest
import torch
from conftest import assert_mean_equals
from torch._subclasses.fake_tensor import FakeTensorMode

import vsc_pyro as vsc
from vsc_pyro.datasets import Factors, as_dataset, default_root
from vsc_pyro.datasets.bernoulli import _places_of_true, bernoulli


def test_digits_are_real_and_split_by_seed():
    train, test = vsc.datasets.load("digits")
    assert (train.images.shape, test.images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert train.images.dtype == torch.float32
    assert (train.images.min(), train.images.max()) == (0, 1)
    assert len(train.images.unique()) == 17
    assert (train.labels.bincount() > 100).all()
    assert torch.equal(vsc.datasets.load("digits").train.images, train.images)
    assert not torch.equal(vsc.datasets.load("digits", seed=1).train.images, train.images)


@pytest.mark.parametrize(("name", "ink"), [("mnist", 0.1307), ("fashion-mnist", 0.2860)])
def test_real_files_on_a_root_that_is_read_only(mnist_root, name, ink):
    train, test = vsc.datasets.load(name, root=mnist_root)
    assert (train.images.shape, test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert train.images.mean() == pytest.approx(ink, abs=1e-4)  # the published mean intensity
    assert (train.name, train.binarize) == (name, "dynamic")
    assert (test.class_names or [None])[-1] == ("Ankle boot" if name == "fashion-mnist" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_binary_draws_have_the_probabilities_asked_for(dtype):
    # Grey levels of bytes, what a first random byte leaves open, and what only a second draw can tell from 0 and 1.
    asked = [0.0, 1 / 255, 0.1, 1 / 512, 0.5, 254 / 255, 1 - 2**-8, 1e-4, 2**-9 + 2**-16, 1.0]
    probs = torch.tensor(asked, dtype=dtype)[:, None].expand(-1, 200_001)
    draws = bernoulli(probs, torch.Generator().manual_seed(1))
    assert draws.dtype == dtype
    assert ((draws == 0) | (draws == 1)).all()
    for row, prob in zip(draws.double(), probs[:, 0].double().tolist(), strict=True):
        if prob in (0, 1):
            assert (row == prob).all()
        else:
            assert_mean_equals(row, prob)


@pytest.mark.parametrize("num", [0, 1, 7, 8, 9, 64, 1001])
def test_undecided_draws_are_found_in_order(num):
    flags = torch.rand(num, generator=torch.Generator().manual_seed(num)) < 0.2
    assert torch.equal(_places_of_true(flags), flags.nonzero().squeeze(1))


def test_binary_draws_are_independent_and_follow_the_generator():
    probs = torch.rand(40, 1, 7, 5)
    draws = bernoulli(probs[:, :, ::2], torch.Generator().manual_seed(3))
    assert torch.equal(draws, bernoulli(probs[:, :, ::2], torch.Generator().manual_seed(3)))
    assert not torch.equal(draws, bernoulli(probs[:, :, ::2], torch.Generator().manual_seed(4)))
    assert bernoulli(probs[:0]).shape == (0, 1, 7, 5)
    half = bernoulli(torch.full((100_000,), 0.3)).double()
    for lag in (1, 3, 7, 8):  # 8 bytes are of one random word
        pairs = half[: len(half) // (2 * lag) * 2 * lag].view(-1, 2, lag)
        assert_mean_equals((pairs[:, 0] * pairs[:, 1]).flatten(), 0.09)
    torch.manual_seed(5)
    first = bernoulli(probs)
    torch.manual_seed(5)
    assert torch.equal(first, bernoulli(probs))


@pytest.mark.parametrize(
    "rows",
    [
        slice(2, 9, 3),
        torch.tensor([4, 4, 0]),
        torch.tensor([4, 4, 0], dtype=torch.uint8),
        torch.arange(360) % 50 == 7,
        [4, 4, 0],
        np.arange(9, 2, -3),
        np.arange(360) % 50 == 7,
    ],
)
def test_some_of_the_data_are_data_with_all_that_belongs_to_them(rows):
    smiley = vsc.datasets.load("smiley").test
    data = dataclasses.replace(smiley, labels=torch.arange(len(smiley)))[:360]
    some = data[rows]
    rows = torch.from_numpy(np.arange(360)[rows.numpy() if isinstance(rows, torch.Tensor) else rows].copy())
    assert torch.equal(some.images, data.images[rows])
    assert torch.equal(some.labels, data.labels[rows])
    assert torch.equal(some.factors.presence, data.factors.presence[rows])
    assert torch.equal(some.factors.values, data.factors.values[rows])
    assert (some.binarize, some.name, some.factors.names) == (data.binarize, data.name, data.factors.names)


def test_a_single_row_and_no_rows():
    data = vsc.datasets.load("digits").test
    x, label = data[3]
    assert set(x.unique().tolist()) == {0.0, 1.0}  # as a model sees it
    assert (x.shape, label) == (data.images[3].shape, data.labels[3])
    assert torch.equal(vsc.Dataset(data.images)[-1], data.images[359])
    for strange in ("a", 1.5, True, None, (1, 2)):
        with pytest.raises(TypeError, match="index data by a number, a slice, or a list, array or tensor of"):
            data[strange]
    with pytest.raises(TypeError, match=r"index data by whole numbers or bools, got torch\.float"):
        data[[0.5]]
    with pytest.raises(IndexError, match="there is no datum 360 of 360"):
        data[360]
    with pytest.raises(ValueError, match="selects none of the 360 data"):
        data[[]]
    with pytest.raises(ValueError, match=r"slice\(400, 500, None\) selects none of the 360 data"):
        data[400:500]
    with pytest.raises(ValueError, match=r"must have one dimension, got shape \(\)"):
        data[torch.tensor(3)]


INDICES = {
    "from 0": torch.tensor([2, 0, 2]),
    "none": torch.tensor([], dtype=torch.long),
    "from the end": torch.tensor([-1, 0]),
    "bools": torch.arange(5) % 2 == 0,
    "int32": torch.tensor([1, 4], dtype=torch.int32),
    "slice": slice(1, 3),
}


@pytest.mark.parametrize("name", INDICES)
def test_rows_are_drawn_by_any_indices(name):
    data = vsc.Dataset(torch.rand(5, 3))
    assert torch.equal(data.draw(INDICES[name]), data.images[INDICES[name]])


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a torch that knows CUDA; no GPU")
def test_indices_on_the_cpu_draw_data_on_another_device():
    with FakeTensorMode():
        assert vsc.Dataset(torch.rand(5, 3)).to(torch.empty(0, device="cuda")).draw(torch.arange(2)).is_cuda


def test_dynamic_binarisation_draws_afresh_and_by_the_generator():
    data = vsc.datasets.load("digits").train
    rows = torch.arange(5).repeat_interleave(4000)
    draws = data.draw(rows)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    for row in range(5):
        assert_mean_equals(draws[rows == row].flatten(1), data.images[row].flatten())
    a, b = (data.draw(rows, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


def test_static_binarisation_is_drawn_once():
    train = vsc.datasets.load("digits", binarize="static").train
    assert set(train.images.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(train.draw(slice(50)), train.images[:50])
    assert torch.equal(train.images, vsc.datasets.load("digits", binarize="static").train.images)
    grey = vsc.datasets.load("digits", binarize=None).train
    assert torch.equal(grey.draw(slice(50)), grey.images[:50])


@pytest.mark.parametrize("array", [np.ones((5, 7)), torch.rand(5, 7), torch.ones(5, 7, dtype=torch.uint8)])
def test_arrays_of_the_users_own(array):
    data = as_dataset(array)
    assert (len(data), data.labels, data.binarize) == (5, None, None)
    assert data.images.is_floating_point()
    assert as_dataset(data) is data


def test_bad_arrays():
    for shape in [(0, 7), (7,), (), (5, 0)]:
        with pytest.raises(ValueError, match=r"data must have shape \(N, \.\.\.\) with at least one datum"):
            as_dataset(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), one for each datum, got \(4,\)"):
        vsc.Dataset(torch.zeros(5, 7), torch.zeros(4))
    assert torch.equal(vsc.Dataset(torch.zeros(5, 7), np.arange(5)).labels, torch.arange(5))
    for bad in (2.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=r"dynamic binarisation takes grey levels .* lie in \[0, 1\]"):
            vsc.Dataset(torch.full((5, 7), bad), binarize="dynamic")


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown data set 'svhn'; known are 'celeba', 'cifar10-grey', 'digits', "):
        vsc.datasets.load("svhn")
    with pytest.raises(ValueError, match="unknown binarisation 'otsu'; known are 'auto', 'dynamic', 'static', None"):
        vsc.datasets.load("digits", binarize="otsu")
    with pytest.raises(ValueError, match="unknown binarisation 'auto'; known are 'dynamic', 'static', None"):
        vsc.Dataset(torch.zeros(5, 7), binarize="auto")


@pytest.mark.parametrize("name", ["templates", "linear-5x5"])
@pytest.mark.parametrize("binarize", ["dynamic", "static"])
def test_real_values_are_no_probabilities(name, binarize):
    message = rf"{binarize} binarisation takes grey levels .* so {name} must .* got values from -.*pass binarize=None"
    with pytest.raises(ValueError, match=message):
        vsc.datasets.load(name, binarize=binarize)


@pytest.mark.parametrize(
    ("name", "shape", "binarize"),
    [
        ("digits", (1, 8, 8), "dynamic"),
        ("patches", (1, 12, 12), None),
        ("templates", (1, 10, 10), None),
        ("linear-5x5", (1, 5, 5), None),
        ("smiley", (1, 32, 32), None),
    ],
)
def test_every_data_set_that_needs_no_file_loads_by_name(name, shape, binarize):
    assert name in vsc.datasets.DATASETS
    for part in vsc.datasets.load(name):
        assert part.images.shape[1:] == shape
        assert part.images.dtype == torch.float32
        assert (part.name, part.binarize) == (name, binarize)
    other = vsc.datasets.load(name, seed=1).test
    assert not torch.equal(other.images, part.images)


def test_binary_images_stay_as_they_are_when_binarised():
    plain, drawn = (vsc.datasets.load("smiley", binarize=binarize).test for binarize in (None, "static"))
    assert torch.equal(drawn.images, plain.images)
    assert drawn.binarize == "static"
    assert drawn.factors is not None


def some_factors(**changes):
    presence = torch.tensor([[True, False], [True, True], [False, False]])
    fields = {"presence": presence, "values": presence * 1.5, "names": ("width", "tilt")}
    return Factors(**(fields | changes))


def test_factors_go_where_the_data_go():
    data = vsc.Dataset(torch.rand(3, 4), factors=some_factors())
    moved = data.to(torch.empty(0, dtype=torch.float64))
    assert moved.factors.values.dtype == torch.float64
    assert torch.equal(moved.factors.presence, data.factors.presence)
    assert moved.factors.names == ("width", "tilt")
    assert vsc.Dataset(torch.rand(3, 4)).factors is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presence": torch.ones(3, 2)}, r"presence must be a bool tensor of shape \(3, 2\).* got torch.float32"),
        ({"presence": torch.ones(2, 2).bool()}, r"presence must be .* got torch.bool of shape \(2, 2\)"),
        ({"presence": [[True]]}, r"presence must be a bool tensor of shape \(3, 2\).* got list"),
        ({"values": torch.ones(3, 2).long()}, r"values must be a floating-point tensor .* got torch.int64"),
        ({"values": torch.ones(3, 1)}, r"values must be .* of shape \(3, 2\).* got torch.float32 of shape \(3, 1\)"),
        ({"values": torch.full((3, 2), float("nan"))}, "values must be finite, got 6 that are not"),
        ({"values": torch.ones(3, 2)}, "values must be 0 where a factor is absent, got 3 that are not"),
        ({"names": ("tilt", "tilt")}, "names must differ, got 'tilt' more than once"),
        ({"names": ("tilt",)}, r"presence must be a bool tensor of shape \(3, 1\)"),
    ],
)
def test_bad_factors(changes, message):
    with pytest.raises(ValueError, match=f"factors.{message}"):
        vsc.Dataset(torch.rand(3, 4), factors=some_factors(**changes))


def test_a_printed_data_set_has_few_names_of_its_factors():
    data = vsc.datasets.features(512, 4).sample(3)
    text = str(data)
    assert text.endswith("names=('feature 0', 'feature 1', 'feature 2', ... 512 in all)))")
    assert "presence=tensor([[" in text
    presence, values, _ = data.factors
    assert str(Factors(presence[:, :2], values[:, :2], ("a", "b"))).endswith("names=('a', 'b'))")


def test_factors_have_their_own_type():
    with pytest.raises(ValueError, match=r"factors must be a Factors\(presence, values, names\), got tuple"):
        vsc.Dataset(torch.rand(3, 4), factors=tuple(some_factors()))


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("VSC_PYRO_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("VSC_PYRO_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "vsc_pyro"


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks train-images-idx3-ubyte, .*or download=True"):
        vsc.datasets.load("mnist", root=tmp_path, download=False)


def test_a_download_that_fails_says_where_to_put_the_files(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*put the four files .*MNIST/raw"):
        vsc.datasets.load("mnist", root=tmp_path)


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def tiny_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for kind, size in (("train", 30), ("t10k", 10)):
        write_idx(raw / f"{kind}-images-idx3-ubyte", random.integers(0, 256, (size, 28, 28)))
        write_idx(raw / f"{kind}-labels-idx1-ubyte", random.integers(0, 10, size))
    return raw


def test_files_in_the_real_format_are_used_as_they_are(tiny_mnist):
    train, test = vsc.datasets.load("mnist", root=tiny_mnist.parent.parent)
    assert (len(train), len(test)) == (30, 10)


def test_files_of_an_older_torchvision_do_not_win_over_the_real_ones(tiny_mnist, tmp_path, monkeypatch):
    processed = tiny_mnist.parent / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)), processed / name)
    assert len(vsc.datasets.load("mnist", root=tmp_path).train) == 30
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(vsc.datasets.load("mnist", root=f"~/{tmp_path.name}").train) == 30
    monkeypatch.setenv("VSC_PYRO_DATA", f"~/{tmp_path.name}")
    assert len(vsc.datasets.mnist().test) == 10
    shutil.rmtree(tiny_mnist)
    with pytest.raises(FileNotFoundError, match=r"torchvision found older files in .*MNIST"):
        vsc.datasets.load("mnist", root=tmp_path)


def test_labels_of_no_class_are_refused(tiny_mnist):
    write_idx(tiny_mnist / "t10k-labels-idx1-ubyte", np.array([3] * 9 + [200]))
    with pytest.raises(OSError, match=r"MNIST/raw/t10k-\* are corrupt .*labels from 3 to 200, where there are 0 to 9"):
        vsc.datasets.load("mnist", root=tiny_mnist.parent.parent)


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "labels", "gzip"])
def test_corrupt_files_are_named(tiny_mnist, damage):
    file = tiny_mnist / "train-images-idx3-ubyte"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "noise":
        file.write_bytes(bytes(range(256)) * 50)
    elif damage == "labels":
        shutil.copy(tiny_mnist / "t10k-labels-idx1-ubyte", tiny_mnist / "train-labels-idx1-ubyte")
    else:
        file.write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(OSError, match=r"MNIST/raw/train-\* are corrupt or truncated .*delete them and load again"):
        vsc.datasets.load("mnist", root=tiny_mnist.parent.parent)
