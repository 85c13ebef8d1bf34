"""Numbers of every kind: arrays, tensors, streams and loaders are taken alike, or refused alike."""

import pytest
import torch
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro.datasets import as_dataset

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)).numpy()


def bounds(data, **settings):
    torch.manual_seed(0)
    model = vsc.VAE(vsc.NormalEncoder(4, 2, hidden=()), vsc.NormalDecoder(2, 4, hidden=()), vsc.NormalPrior(2))
    return vsc.fit(model, data, progress=False, device="cpu", **settings).elbo


def ways(data):
    yield lambda: bounds(data, epochs=1)
    yield lambda: bounds(iter([data] * 3), steps=3)


@pytest.mark.parametrize("kind", ["bool", "int8", "uint16", ">u2", "uint32", ">u4", "uint64", ">f2", ">f4", ">f8"])
def test_real_numbers_are_taken_as_they_are(kind):
    array = (20 * abs(X)).astype(kind)
    x = torch.tensor(array.tolist()).float()
    tensor = torch.as_tensor(array.astype(array.dtype.newbyteorder("=")))
    for data in (array, array[::-1], array[:, ::-1], tensor, tensor.numpy()[::-1, ::2]):
        assert torch.equal(as_dataset(data).images.float(), torch.tensor(data.tolist()).float())
    for data in (array, tensor):
        assert all(way() == other() for way, other in zip(ways(data), ways(x), strict=True))
    assert bounds(DataLoader(tensor, 50), epochs=1) == bounds(DataLoader(x, 50), epochs=1)


def test_a_stream_takes_arrays_of_constant_memory():
    constant = X.copy()
    constant.flags.writeable = False
    assert bounds(iter([constant] * 3), steps=3) == bounds(iter([X] * 3), steps=3)


ARRAYS = {"complex64": X * 1j, "<U32": X.astype(str), "object": X.astype(object), r"datetime64\[s\]": X.astype("M8[s]")}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_anything_else_are_refused(kind):
    for way in ways(ARRAYS[kind]):
        with pytest.raises(ValueError, match=rf"data must be real numbers, got an array of {kind}; pass floats"):
            way()


def test_tensors_of_complex_numbers_are_refused():
    x = torch.as_tensor(X * 1j)
    for way in (*ways(x), lambda: bounds(DataLoader(x, 50), epochs=1)):
        with pytest.raises(ValueError, match=r"data must be real numbers, got a tensor of torch\.complex64; pass"):
            way()
