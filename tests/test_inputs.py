"""Data as people have them: arrays of every kind are the tensor of their numbers, all else is refused in words."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xarray
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, random_split

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.datasets import as_dataset

X = torch.rand(60, 16, generator=torch.Generator().manual_seed(0))
N = X.numpy()
WHOLE = (4 * N).astype(int)
TENSOR = torch.as_tensor(WHOLE).float()
READ_ONLY = N.copy()
READ_ONLY.flags.writeable = False
CLASSES = np.arange(60) % 3


def built(seed=0):
    torch.manual_seed(seed)
    return vsc.VAE(
        vsc.SpikeSlabEncoder(16, 4, hidden=(8,)), vsc.NormalDecoder(4, 16, hidden=(8,)), vsc.SpikeSlabPrior(4, 0.3)
    )


def trained(data, **settings):
    return vsc.fit(built(), data, progress=False, device="cpu", **({"epochs": 1} | settings)).elbo


class OfAnyone:
    """A class that is an array only by `__array__`."""

    def __array__(self, dtype=None, copy=None):
        return np.asarray(N, dtype)


class Unreadable:
    def __array__(self, dtype=None, copy=None):
        raise OSError("the file is closed")


ARRAYS = {
    "data frame": (pd.DataFrame(N), X),
    "data frame with an index": (pd.DataFrame(N, index=[f"row {i}" for i in range(60)]).add_prefix("gene "), X),
    "xarray": (xarray.DataArray(N, dims=("cell", "gene")), X),
    "class of anyone's": (OfAnyone(), X),
    "read-only": (READ_ONLY, X),
    "matrix": (np.asmatrix(N), X),
    "masked nowhere": (np.ma.masked_invalid(N), X),
    "flipped": (N[::-1].copy()[::-1], X),
    "flipped both ways": (np.flip(np.flip(N).copy()), X),
    "every other row": (np.repeat(N, 2, 0)[::2], X),
    "Fortran order": (np.asfortranarray(N), X),
    "broadcast": (np.broadcast_to(N[:1], N.shape), X[:1].expand(60, 16)),
    "other byte order": (N.astype(">f4"), X),
    "double": (N.astype(">f8"), X),
    "half": (N.astype("f2"), torch.as_tensor(N.astype("f2")).float()),
    "integers": (WHOLE, TENSOR),
    "unsigned": (WHOLE.astype("uint16"), TENSOR),
    "bool": (N > 0.5, (X > 0.5).float()),
    "rows": (N.tolist(), X),
    "list of arrays": (list(N), X),
    "list of tensors": (list(X), X),
    "list of columns' rows": ([row for _, row in pd.DataFrame(N).iterrows()], X),
    "with a gradient": (X.clone().requires_grad_(), X),
    "with a history": (X.clone().requires_grad_() * 1, X),
    "nullable": (pd.DataFrame(N).astype("Float32"), X),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_are_the_tensor_of_their_numbers(kind):
    data, x = ARRAYS[kind]
    assert torch.equal(as_dataset(data).images.float(), x)
    assert torch.equal(vsc.Dataset(data).images.float(), x)
    assert trained(data) == trained(x)
    assert torch.equal(vsc.codes(built(), data).inclusion, vsc.codes(built(), x).inclusion)


def test_nothing_is_copied_where_torch_can_look():
    for array in (N, READ_ONLY, pd.DataFrame(N), xarray.DataArray(N)):
        assert as_dataset(array).images.data_ptr() == np.asarray(array).ctypes.data


def test_columns_of_numbers_of_different_types_are_numbers():
    frame = pd.DataFrame({"a": N[:, 0], "b": N[:, 1] > 0.5, "c": WHOLE[:, 2], "d": pd.array(WHOLE[:, 3], "Int64")})
    expected = torch.stack([X[:, 0], (X[:, 1] > 0.5).float(), *TENSOR[:, 2:4].T], 1)
    assert torch.equal(as_dataset(frame).images.float(), expected)


def test_frames_may_come_in_a_stream():
    frames = [pd.DataFrame(N)] * 3
    assert trained(iter(frames), epochs=None, steps=3) == trained(iter([X] * 3), epochs=None, steps=3)


REFUSED = {
    "csr_matrix": (scipy.sparse.csr_matrix(N), r"data must be dense, got a csr_matrix.* pass data\.toarray\(\)"),
    "coo_array": (scipy.sparse.coo_array(N), r"data must be dense, got a coo_array.* pass data\.toarray\(\)"),
    "nested tensor": (
        torch.nested.nested_tensor(list(X), layout=torch.jagged),
        "data must be dense, got a nested tensor",
    ),
    "tensor without memory": (X.to("meta"), "data must hold numbers, got a tensor on the device meta"),
    "missing numbers": (
        pd.DataFrame({"a": pd.array([1, None] * 30), "b": True}),
        r"holds <NA> \(astype\(float\) makes NaN of it",
    ),
    "sparse tensor": (X.to_sparse(), r"data must be dense, got a tensor of layout .*to_dense\(\)"),
    "masked": (np.ma.masked_where(N > 0.9, N), r"data holds \d+ values under a mask, which are missing; remove"),
    "list of masked": (list(np.ma.masked_where(N > 0.9, N)), r"values under a mask, which are missing; remove"),
    "complex": (N + 1j * N, "data must be real numbers, got an array of complex"),
    "complex tensor": (X + 1j * X, "data must be real numbers, got a tensor of torch.complex64"),
    "strings": (N.astype(str), "data must be real numbers, got an array of <U"),
    "dates": (WHOLE.astype("M8[s]"), "data must be real numbers, got an array of datetime64"),
    "structure": (np.zeros(60, [("a", float), ("b", int)]), "data must be real numbers, got an array of"),
    "column of strings": (pd.DataFrame({"a": N[:, 0], "b": ["f"] * 60}), "a DataFrame that holds 'f'; pass floats"),
    "column of NA": (pd.DataFrame({"a": [1, None] * 30, "b": True}, dtype="object"), "a DataFrame that holds None"),
    "column of dates": (pd.DataFrame({"a": N[:, 0], "b": pd.Timestamp(0)}), "a DataFrame that holds Timestamp"),
    "column": (pd.Series(N[:, 0]), r"data must have shape \(N, \.\.\.\) .* got \(60,\)"),
    "several arrays": (xarray.Dataset({"a": ("cell", N[:, 0])}), "data must be .* got a Dataset"),
    "unreadable": (Unreadable(), r"data must be an array, .* got a Unreadable that is none \(the file is closed\)"),
    "dict": ({"x": N}, "data must be .* got a dict"),
    "pair": ((N, CLASSES), "data must be .* got a tuple"),
    "pair of tensors": ((X, torch.as_tensor(CLASSES)), "data must be .* got a tuple"),
    "string": ("data.npy", "data must be .* got a str"),
    "None": (None, "data must be .* got a NoneType"),
    "number": (3.0, "data must be .* got a float"),
    "torch's data": (TensorDataset(X), "data must be .* got a TensorDataset"),
    "list of strings": ([["a", "b"]] * 5, "data must be .* got a list that is none"),
    "ragged list": ([[1.0, 2.0], [3.0]], "data must be .* got a list that is none"),
    "ragged arrays": ([N[0], N[1, :3]], "data must be .* got a list that is none"),
    "list of matrices": ([N, N], r"data must be .* pass torch\.stack\(\.\.\.\) of data, or torch\.cat"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_all_else_is_refused_in_words(kind):
    data, message = REFUSED[kind]
    for take in (as_dataset, trained, lambda data: vsc.evaluate(built(), data), lambda data: vsc.codes(built(), data)):
        with pytest.raises(ValueError, match=message):
            take(data)


@pytest.mark.parametrize("stream", [(x for x in X), iter(X), map(torch.exp, X), zip(X, X, strict=True)])
def test_generators_are_streams_and_need_steps(stream):
    with pytest.raises(ValueError, match=r"steps must be the number of batches .*data must be a Dataset, an array"):
        trained(stream)
    with pytest.raises(ValueError, match=r"data must be an array, tensor or data frame, .* got a"):
        vsc.evaluate(built(), stream)


def test_the_remedy_for_torchs_data_is_a_loader():
    with pytest.raises(ValueError, match=r"data must be .* got a TensorDataset .*; put a torch Dataset into"):
        trained(TensorDataset(X))


@pytest.mark.parametrize("place", [(0, 0), (3, 2), (59, 15)])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers_are_found_in_arrays_of_all_kinds(place, value):
    for kind in (pd.DataFrame, xarray.DataArray, np.asarray):
        data = N.astype(np.float64)
        data[place] = value
        with pytest.raises(ValueError, match=f"data holds 1 NaN or infinite .* in datum {place[0]}"):
            trained(kind(data))


LOST = {
    "offset": X.double() + 1e9,
    "tiny": X.double() * 1e-50,
    "times in seconds": torch.arange(960).reshape(60, 16) // 320 + 1_700_000_000,
}


@pytest.mark.parametrize("kind", LOST)
def test_differences_that_the_models_type_does_not_resolve_are_refused(kind):
    for train in (trained, lambda data: vsc.fit_ensemble([built(), built()], data, epochs=1, device="cpu")):
        with pytest.raises(ValueError, match=r"data vary from .* torch\.float32, does not resolve .*subtract the mean"):
            train(LOST[kind])
    model = built().double()
    vsc.fit(model, (LOST[kind] - LOST[kind][0]) if kind == "tiny" else LOST[kind], epochs=1, progress=False)
    trained(X.double() + 1e3)
    trained(torch.full((60, 16), 1e9, dtype=torch.float64))


# Labels ---------------------------------------------------------------------------------------------------------------

LABELS = {
    "list": CLASSES.tolist(),
    "tuple": tuple(CLASSES.tolist()),
    "list of NumPy's": list(CLASSES),
    "list of tensors": list(torch.as_tensor(CLASSES)),
    "array": CLASSES,
    "flipped": CLASSES[::-1].copy()[::-1],
    "other byte order": CLASSES.astype(">i4"),
    "unsigned": CLASSES.astype("uint16"),
    "bytes": CLASSES.astype("uint8"),
    "float": CLASSES.astype(float),
    "tensor": torch.as_tensor(CLASSES),
    "float tensor": torch.as_tensor(CLASSES).float(),
    "Series": pd.Series(CLASSES, index=range(100, 160)),
    "nullable Series": pd.Series(CLASSES, dtype="Int64"),
    "Categorical": pd.Categorical(CLASSES),
    "Index": pd.Index(CLASSES),
    "xarray": xarray.DataArray(CLASSES),
    "masked nowhere": np.ma.array(CLASSES),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind(kind):
    data = vsc.Dataset(X, labels=LABELS[kind])
    assert not data.labels.is_floating_point()
    assert torch.equal(data.labels.long(), torch.as_tensor(CLASSES))
    assert data[:7].labels.tolist() == CLASSES[:7].tolist()
    assert trained(data) == trained(X)
    stored = vsc.to_arviz(built(), X, 2, labels=LABELS[kind])["constant_data"]["label"]
    assert stored.values.tolist() == CLASSES.tolist()


NAMES = ["a", "b", "ä"] * 20
BAD_LABELS = {
    "short": (CLASSES[:5], r"labels must have shape \(60,\), one for each datum, got \(5,\)"),
    "long": ([0] * 61, r"labels must have shape \(60,\), one for each datum, got \(61,\)"),
    "column": (CLASSES[:, None], r"labels must have shape \(60,\), one for each datum, got \(60, 1\)"),
    "one-hot": (np.eye(3)[CLASSES], r"labels must have shape \(60,\), one for each datum, got \(60, 3\)"),
    "one": (torch.tensor(3), r"labels must have shape \(60,\), one for each datum, got \(\)"),
    "fractions": (N[:, 0], r"labels must be whole numbers, got 0\.\d+"),
    "fractions in a tensor": (X[:, 0], r"labels must be whole numbers, got 0\.\d+"),
    "missing": (np.where(CLASSES, CLASSES, np.nan), "labels must be whole numbers, got nan"),
    "huge": ([2**70, *CLASSES[1:].tolist()], "labels must be .* numbers of at most 64 bits"),
    "of no type": ([2**63 + 1, *CLASSES[1:].tolist()], "labels must be .* numbers of at most 64 bits"),
    "None": ([None, *CLASSES[1:]], "labels must be all numbers or all strings.* with none missing.* got such as None"),
    "NA": (pd.Series([pd.NA, *CLASSES[1:]], dtype="Int64"), "labels must be whole numbers, got nan"),
    "NaN among names": ([np.nan, *NAMES[1:]], "labels must be .* with none missing.* got such as nan, 'ä'; leave"),
    "names without one": (pd.Categorical([None, *NAMES[1:]]), "labels must be .* with none missing.* nan, 'ä'"),
    "mixed": (["a", *CLASSES[1:].tolist()], "labels must be all numbers or all strings"),
    "dates": (np.full(60, "2026-01-01", "datetime64[D]"), "labels must be whole numbers or strings, got datetime64"),
    "masked": (np.ma.masked_equal(CLASSES, 2), "labels holds 20 values under a mask"),
    "complex": (CLASSES * 1j, "labels must be whole numbers or strings, got complex128"),
    "large": (np.full(60, 2**64 - 1, "uint64"), r"labels must be whole numbers below 2\^63"),
    "dict": ({0: 1}, "labels must be .* got a dict"),
    "generator": ((i for i in range(60)), "labels must be .* got a generator"),
    "string": ("abc", "labels must be .* got a str"),
    "sparse": (scipy.sparse.csr_matrix(CLASSES), "labels must be dense, got a csr_matrix"),
}


NAMED = {
    **{kind.__name__: kind for kind in (list, tuple, np.array, pd.Categorical, pd.Series, pd.Index, xarray.DataArray)},
    "objects": lambda names: np.array(names, object),
    "strings of pandas": lambda names: pd.Series(names, dtype="string"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_names_as_labels_are_numbered(kind):
    shuffled = ["ä", "b", "a"] * 20
    data = vsc.Dataset(X, NAMED[kind](shuffled))
    assert data.class_names == ("a", "b", "ä")
    assert data.labels.dtype == torch.int64
    for part in (data, data[[2, 0, 1]], data[10:20], data.to(X.double()), train_test_split(data, random_state=0)[0]):
        assert part.class_names == data.class_names
    assert [data.class_name(label) for label in data.labels.tolist()] == shuffled
    assert [data.class_name(int(label)) for _, label in (data[2], data[0])] == ["a", "ä"]
    # An order of one's own, as two sets with different classes need it.
    other = vsc.Dataset(X[:2], NAMED[kind](["b", "ä"]), class_names=["ä", "x", "b"])
    assert (other.labels.tolist(), other.class_names) == ([2, 0], ("ä", "x", "b"))
    numbered = vsc.Dataset(X[:2], labels=[2, 0], class_names=pd.Index(["ä", "x", "b"]))
    assert [numbered.class_name(label) for label in numbered.labels.tolist()] == ["b", "ä"]


BAD_NAMES = {
    "labels outside": (NAMES, ["a", "b"], "labels must be among class_names, 'a', 'b', got 'ä'"),
    "numbers outside": (CLASSES, ["a", "b"], r"numbers of the 2 class_names from 0 on, got 0 to 2"),
    "below": (CLASSES - 1, ["a", "b", "c"], r"numbers of the 3 class_names from 0 on, got -1 to 1"),
    "one text": (CLASSES, "abc", "class_names must be different strings, one for each class, got 'abc'"),
    "twice": (CLASSES, ["a", "b", "a"], "class_names must be different strings"),
    "no strings": (CLASSES, [0, 1, 2], "class_names must be different strings"),
    "no labels": (None, ["a"], "class_names are the names of labels, and labels is None"),
}


@pytest.mark.parametrize("kind", BAD_NAMES)
def test_other_names_of_classes_are_refused(kind):
    labels, names, message = BAD_NAMES[kind]
    with pytest.raises(ValueError, match=message):
        vsc.Dataset(X, labels, class_names=names)


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_other_labels_are_refused_at_construction(kind):
    labels, message = BAD_LABELS[kind]
    with pytest.raises(ValueError, match=message):
        vsc.Dataset(X, labels=labels)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Categorical, pd.Series, pd.Index, xarray.DataArray])
def test_names_are_kept_where_they_can_be(kind, tmp_path):
    names = kind(NAMES[:6])
    inference = vsc.to_arviz(built(), X[:6], num_samples=2, labels=names)
    assert inference["constant_data"]["label"].values.tolist() == NAMES[:6]
    inference["constant_data"]["label"].to_netcdf(tmp_path / "labels.nc")
    assert xarray.load_dataarray(tmp_path / "labels.nc").values.tolist() == NAMES[:6]


@pytest.mark.usefixtures("unpainted")
def test_all_that_shows_classes_shows_their_names(tmp_path, digits):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    data = vsc.Dataset(digits.test.images.flatten(1)[:60], digits.test.labels[:60], class_names=names)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(64, 4, hidden=(8,)), vsc.NormalDecoder(4, 64, hidden=()), vsc.SpikeSlabPrior(4, 0.3)
    )
    for by in ("class", "datum"):
        ticks = plots.inclusion_map(model, data, by=by).axes[0].get_yticklabels()
        assert [text.get_text() for text in ticks] == names
    with pytest.raises(ValueError, match="num_classes=11 rows are more than 10 classes"):
        plots.inclusion_map(model, data, num_classes=11)
    axes = plots.embedding(model, data).axes[0]
    assert [text.get_text() for text in axes.texts] == names
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    assert '"labels": ["zero", ' in vsc.explore(model, data, tmp_path / "explore.html").read_text()
    assert "<td>seven</td>" in vsc.feature_pages(model, data, tmp_path / "features.html", features=[0]).read_text()
    stored = vsc.to_arviz(model, data, 2)["constant_data"]["label"].values
    assert stored.tolist() == [names[label] for label in data.labels.tolist()]
    renamed = vsc.Dataset(data.images, data.labels, class_names=names[::-1])
    with pytest.raises(ValueError, match="train and test must number classes alike, got class_names"):
        vsc.linear_probe(model, data, renamed, num_labels=60)
    assert vsc.linear_probe(model, data, data, num_labels=60) > 0.1


def test_a_missing_name_is_refused():
    for names in (["a", None], pd.Categorical(["a", None]), pd.Series(["a", pd.NA]), ["a", 1]):
        with pytest.raises(ValueError, match="labels must be all numbers or all strings"):
            vsc.to_arviz(built(), X[:2], num_samples=2, labels=names)


# One datum at a time --------------------------------------------------------------------------------------------------


def test_a_loader_of_data_trains_as_data_do():
    data = vsc.Dataset(X, labels=CLASSES)
    for dataset in (data, vsc.Dataset(X), TensorDataset(X)):
        assert trained(DataLoader(dataset, batch_size=20)) == trained(DataLoader(X, batch_size=20))
    x, labels = next(iter(DataLoader(data, batch_size=20)))
    assert torch.equal(x, X[:20])
    assert labels.tolist() == CLASSES[:20].tolist()
    assert torch.equal(torch.stack([x for x, _ in data]), X)


@pytest.mark.parametrize(
    "collate", [np.stack, lambda rows: pd.DataFrame(np.stack(rows)), lambda rows: (np.stack(rows), 1)]
)
def test_batches_may_be_arrays(collate):
    loader = DataLoader(list(N), batch_size=20, collate_fn=collate)
    assert trained(loader) == trained(DataLoader(X, batch_size=20))
    assert torch.equal(vsc.encode(built(), loader), vsc.encode(built(), X))


class Once(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter([self.rows.pop() for _ in range(min(60, len(self.rows)))])


@pytest.mark.parametrize("num", [60, 100])
@pytest.mark.parametrize(
    "use", [vsc.evaluate, vsc.bounds, vsc.refine, lambda model, data: vsc.to_arviz(model, data, 2)]
)
def test_a_loader_that_ends_for_good_is_refused(num, use):
    rows = list(X.repeat(2, 1)[:num])
    with pytest.raises(ValueError, match=r"a DataLoader that yields the same data in every pass, got one of 60 data"):
        use(built(), DataLoader(Once(rows), batch_size=20))


def test_autocast_of_the_caller_changes_no_result():
    model = built()
    uses = [
        lambda: vsc.evaluate(model, X, num_draws=2).elbo,
        lambda: vsc.encode(model, X).sum().item(),
        lambda: vsc.refine(model, X[:5], steps=2).gain.sum().item(),
        lambda: vsc.impute(model, X[:5], np.arange(16) < 8, num_samples=2, num_steps=2).mean.sum().item(),
    ]
    expected = [use() for use in uses]
    with torch.autocast("cpu", torch.bfloat16):
        assert [use() for use in uses] == expected


def test_data_are_prepared_as_they_are_trained_on():
    expected, model = built(), built()
    expected.prepare(X)
    model.prepare(pd.DataFrame(N))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    for data in (X[:, :3], X.to_sparse(), None, X * torch.nan):
        with pytest.raises(ValueError, match="data"):
            built().prepare(data)


def test_a_loader_draws_grey_levels_afresh():
    loader = DataLoader(vsc.Dataset(X, binarize="dynamic"), batch_size=60)
    first, second = (next(iter(loader)) for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)


def test_torch_splits_data():
    parts = random_split(vsc.Dataset(X, labels=CLASSES), [40, 20], torch.Generator().manual_seed(1))
    assert [len(part) for part in parts] == [40, 20]
    both = torch.cat([x for part in parts for x, _ in DataLoader(part, 60)])
    assert torch.equal(both.sort(0).values, X.sort(0).values)
    assert trained(DataLoader(parts[0], 20))


def test_scikit_learn_splits_data():
    from sklearn.model_selection import train_test_split

    data = vsc.Dataset(X, labels=CLASSES, binarize="dynamic", name="mine")
    train, test = train_test_split(data, test_size=0.25, random_state=1, stratify=data.labels)
    assert isinstance(train, vsc.Dataset)
    assert (len(train), len(test), test.labels.bincount().tolist()) == (45, 15, [5, 5, 5])
    assert (train.name, train.binarize) == ("mine", "dynamic")
    train, labels = train_test_split(N, CLASSES, random_state=1)[::2]
    assert torch.equal(vsc.Dataset(train, labels=labels).images, torch.as_tensor(train))
