import pytest
import torch

from vsc_pyro.acceleration import products
from vsc_pyro.acceleration.recorder import record

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
SHAPES = {"a": (100, 300), "b": (300, 200), "at": (300, 100), "bt": (200, 300), "bias": (200,), "rows": (100, 200)}
PRODUCTS = {
    "product": lambda t: t["a"] @ t["b"],
    "of transposed": lambda t: t["at"].T @ t["bt"].T,
    "of a part": lambda t: t["a"][:, 10:] @ t["b"][10:],
    "of an expanded": lambda t: t["a"] @ t["bias"].expand(300, 200),
    "of itself": lambda t: t["a"] @ t["a"].T @ t["rows"],
    "with a bias": lambda t: torch.addmm(t["bias"], t["a"], t["bt"].T),
}
OTHERS = {
    "a bias of rows": lambda t: torch.addmm(t["rows"], t["a"], t["b"]),
    "a weighed bias": lambda t: torch.addmm(t["bias"], t["a"], t["b"], beta=0.5),
    "double": lambda t: t["a"].double() @ t["b"].double(),
    "bfloat16": lambda t: t["a"].bfloat16() @ t["b"].bfloat16(),
    "small": lambda t: t["a"][:10] @ t["b"],
    "batched": lambda t: t["a"].expand(2, 100, 300) @ t["b"].expand(2, 300, 200),
}


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    monkeypatch.setattr(products, "_is_faster", lambda: True)


def recorded(function):
    generator = torch.Generator().manual_seed(0)
    tensors = [0.1 * torch.randn(shape, generator=generator) for shape in SHAPES.values()]
    graph, _ = record(lambda *tensors: [function(dict(zip(SHAPES, tensors, strict=True)))], tensors)
    return graph, tensors


def number_of_products(graph):
    return sum(node.target is torch.ops.vsc_pyro.product.default for node in graph.graph.nodes)


@needs_onednn
@pytest.mark.parametrize("name", PRODUCTS)
def test_large_products_are_replaced(name):
    graph, tensors = recorded(PRODUCTS[name])
    faster = products.with_fast_products(graph)
    assert number_of_products(graph) == 0
    assert number_of_products(faster) == (2 if name == "of itself" else 1)
    (found,), (expected,) = faster(*tensors), graph(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay(name):
    graph, _ = recorded(OTHERS[name])
    assert number_of_products(products.with_fast_products(graph)) == 0


@needs_onednn
@pytest.mark.slow
def test_compiled(compiler):
    from vsc_pyro.acceleration import BACKENDS

    graph, tensors = recorded(lambda t: PRODUCTS["with a bias"](t).relu() * PRODUCTS["of transposed"](t).exp())
    (found,) = BACKENDS["inductor"](graph, tensors)(*tensors)
    torch.testing.assert_close(found, *graph(*tensors), rtol=1e-4, atol=1e-4)


def test_the_processor_decides(monkeypatch):
    monkeypatch.undo()
    products._is_faster.cache_clear()
    found = {}
    for vendor in ("GenuineIntel", "AuthenticAMD"):
        monkeypatch.setattr("pathlib.Path.read_text", lambda path, vendor=vendor: f"vendor_id\t: {vendor}\n")
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
        found[vendor] = products._is_faster()
        products._is_faster.cache_clear()
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert found == {"GenuineIntel": False, "AuthenticAMD": has_both}
