"""Folders of files, memory-mapped."""

import itertools
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vsc_pyro as vsc


def numbered(sizes, dim=3):
    """Arrays of these numbers of rows, of which each begins with its number."""
    rows = np.arange(sum(sizes), dtype=np.float32)[:, None] + np.linspace(0, 0.5, dim, dtype=np.float32)
    return np.split(rows, np.cumsum(sizes)[:-1])


@pytest.fixture
def folder(tmp_path):
    for number, rows in enumerate(numbered((500, 37, 1200))):
        np.save(tmp_path / f"{number}.npy", rows)
    return tmp_path


def one_pass(data, number=0):
    start = number * data.batches_per_pass
    return list(itertools.islice(data.start_at(start), data.batches_per_pass))


def test_rows_are_in_the_order_of_the_files_without_shuffling(folder):
    data = vsc.datasets.shards(folder, 100, shuffle=False)
    assert (len(data), data.num_data, data.dim, data.batches_per_pass) == (1737, 1737, 3, 18)
    batches = one_pass(data)
    assert [len(batch) for batch in batches] == [100] * 17 + [37]
    assert torch.equal(torch.cat(batches), torch.as_tensor(np.concatenate(numbered((500, 37, 1200)))))
    assert torch.equal(
        torch.stack([data[row] for row in (0, 499, 500, 537, 1736)]), torch.cat(batches)[[0, 499, 500, 537, 1736]]
    )
    with pytest.raises(IndexError, match="row 1737 of 1737"):
        data[1737]


@pytest.mark.parametrize("size", [7, 64, 100, 5000])
def test_a_pass_yields_every_row_once_in_an_order_of_its_own(folder, size):
    data = vsc.datasets.shards(folder, size, seed=4)
    orders = [torch.cat(one_pass(data, number))[:, 0].long() for number in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1737))
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(torch.cat(one_pass(vsc.datasets.shards(folder, size, seed=4)))[:, 0].long(), orders[0])
    assert not torch.equal(torch.cat(one_pass(vsc.datasets.shards(folder, size, seed=5)))[:, 0].long(), orders[0])


def test_rows_are_mixed_over_the_files(folder):
    # A batch of 100 rows in random order has 69 of the last file, give or take 4.6; five deviations are 24.
    first = one_pass(vsc.datasets.shards(folder, 100))[0][:, 0]
    assert 30 < int((first >= 537).sum()) < 100
    assert (first.diff() == 1).float().mean() < 0.1


def test_any_step_can_be_jumped_to(folder):
    data = vsc.datasets.shards(folder, 20)
    whole = list(itertools.islice(data, 200))
    for step in (0, 1, 15, 16, 17, 86, 87, 88, 190):
        for got, expected in zip(data.start_at(step), whole[step : step + 5], strict=False):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8", "bool", "i1", ">i8", ">u2", "<u4", "u8"])
def test_arrays_are_read_in_any_byte_order_and_whole_numbers_as_they_are(tmp_path, kind):
    rows = np.arange(60).reshape(30, 2).astype(kind)
    np.save(tmp_path / "0.npy", rows)
    (batch,) = one_pass(vsc.datasets.shards(tmp_path, 30, shuffle=False))
    assert batch.dtype == (torch.float64 if kind == ">f8" else torch.float32)
    assert batch.tolist() == rows.astype(float).tolist()


TYPES = ("float16", "bfloat16", "float32", "float64", "bool", "uint8", "int16", "uint16", "int64")


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in TYPES])
def test_safetensors_are_read_as_arrays_are(tmp_path, dtype):
    save_file = pytest.importorskip("safetensors.torch").save_file
    rows = (100 * torch.rand(150, 4)).to(dtype)
    for number, part in enumerate(rows.split(80)):
        save_file({"activations": part.clone()}, tmp_path / f"{number}.safetensors")
    batches = one_pass(vsc.datasets.shards(tmp_path, 64, shuffle=False))
    assert {batch.dtype for batch in batches} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert torch.equal(torch.cat(batches), rows.to(batches[0].dtype))


def test_a_loader_reads_rows(folder):
    data = vsc.datasets.shards(folder)
    loader = DataLoader(data, batch_size=500)
    assert torch.equal(torch.cat(list(loader))[:, 0].long(), torch.arange(1737))
    again = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 1000
    assert torch.equal(next(iter(again)), next(iter(data)))


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_files_larger_than_memory_are_read_by_the_row(tmp_path, suffix):
    num_rows, dim = 2**20, 2**14  # 64 GiB of zeros in a sparse file
    path = tmp_path / f"0.{suffix}"
    if suffix == "npy":
        np.lib.format.open_memmap(path, "w+", np.float32, (num_rows, dim))
    else:
        pytest.importorskip("safetensors")
        end = 4 * num_rows * dim
        header = f'{{"x":{{"dtype":"F32","shape":[{num_rows},{dim}],"data_offsets":[0,{end}]}}}}'.ljust(128).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with open(path, "r+b") as file:
            file.truncate(8 + len(header) + end)
    tracemalloc.start()
    try:
        data = vsc.datasets.shards(tmp_path, batch_size=32)
        batches = list(itertools.islice(data, 3))
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert [batch.shape for batch in batches] == [(32, dim)] * 3
    assert all((batch == 0).all() for batch in batches)


def test_a_run_on_shards_is_resumed_exactly(folder, tmp_path):
    def fitted(steps, seed=0, **settings):
        torch.manual_seed(0)
        model = vsc.VAE(vsc.NormalEncoder(3, 2, hidden=()), vsc.NormalDecoder(2, 3, hidden=(4,)), vsc.NormalPrior(2))
        data = vsc.datasets.shards(folder, 100, seed=seed)
        vsc.fit(model, data, steps=steps, cooldown=0, progress=False, device="cpu", **settings)
        assert model.num_data == 1737
        return model.state_dict()

    path = tmp_path / "run.pt"
    fitted(20, checkpoint=path)
    resumed, whole = fitted(40, checkpoint=path, resume=True), fitted(40)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    with pytest.raises(ValueError, match=r"seed 0'* \(now .*seed 5'*\); resume with the same settings"):
        fitted(50, seed=5, checkpoint=path, resume=True)


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; pass a folder of .npy or .safetensors files"):
        vsc.datasets.shards(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no .npy or .safetensors file"):
        vsc.datasets.shards(tmp_path)
    (tmp_path / "0.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(ValueError, match=r"0\.npy was not read .*; write it again"):
        vsc.datasets.shards(tmp_path)
    for bad in (np.zeros(5, np.float32), np.zeros((5, 3), complex), np.zeros((0, 3), np.float32)):
        np.save(tmp_path / "0.npy", bad)
        with pytest.raises(ValueError, match=r"0\.npy must hold real numbers of shape \(n, d\), got"):
            vsc.datasets.shards(tmp_path)
    np.save(tmp_path / "0.npy", np.zeros((5, 3), np.float32))
    (tmp_path / ".hidden.npy").write_bytes(b"being written")
    assert len(vsc.datasets.shards(tmp_path)) == 5
    for other in (np.zeros((5, 4), np.float32), np.zeros((5, 3), np.float16)):
        np.save(tmp_path / "1.npy", other)
        with pytest.raises(
            ValueError, match=r"must be alike, got rows of 3 values of torch.float32 in .*0\.npy and rows of"
        ):
            vsc.datasets.shards(tmp_path)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        vsc.datasets.shards(tmp_path, 0)
    with pytest.raises(ValueError, match="shuffle must be True or False, got 'no'"):
        vsc.datasets.shards(tmp_path, shuffle="no")
    (tmp_path / "0.npy").rename(tmp_path / "0.safetensors")
    if "safetensors" in sys.modules:
        with pytest.raises(ValueError, match=r"0\.safetensors was not read"):
            vsc.datasets.shards(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"needs the package safetensors: pip install safetensors, or write .npy"):
        vsc.datasets.shards(tmp_path)


def test_an_archive_under_the_name_of_an_array(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, a=np.ones((3, 2)))
    with pytest.raises(ValueError, match="was not read"):
        vsc.datasets.shards(tmp_path)
