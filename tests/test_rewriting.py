import importlib.util
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import elu, softplus

from vsc_pyro.acceleration import BACKENDS, rewriting

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
needs_passes = pytest.mark.skipif(
    importlib.util.find_spec("torch._inductor.custom_graph_pass") is None, reason="inductor before PyTorch 2.6"
)
SHAPES = {"a": (100, 300), "b": (300, 200), "at": (300, 100), "bt": (200, 300), "bias": (200,), "rows": (100, 200)}
PRODUCTS = {
    "product": lambda t: t["a"] @ t["b"],
    "of transposed": lambda t: t["at"].T @ t["bt"].T,
    "of a part": lambda t: t["a"][:, 10:] @ t["b"][10:],
    "of an expanded": lambda t: t["a"] @ t["bias"].expand(300, 200),
    "of itself": lambda t: t["a"] @ t["a"].T @ t["rows"],
    "of windows": lambda t: t["a"].flatten().unfold(0, 300, 1)[:100] @ t["b"],
    "with a bias": lambda t: torch.addmm(t["bias"], t["a"], t["bt"].T),
    "with an expanded bias": lambda t: torch.addmm(t["bias"][:1].expand(200), t["a"], t["b"]),
    "with a part as bias": lambda t: torch.addmm(t["rows"][:, 0].repeat(4)[::2], t["a"], t["b"]),
}
OTHERS = {
    "a bias of one number": lambda t: torch.addmm(t["bias"][:1], t["a"], t["b"]),
    "a bias of rows": lambda t: torch.addmm(t["rows"], t["a"], t["b"]),
    "a weighed bias": lambda t: torch.addmm(t["bias"], t["a"], t["b"], beta=0.5),
    "double": lambda t: t["a"].double() @ t["b"].double(),
    "bfloat16": lambda t: t["a"].bfloat16() @ t["b"].bfloat16(),
    "small": lambda t: t["a"][:10] @ t["b"],
    "batched": lambda t: t["a"].expand(2, 100, 300) @ t["b"].expand(2, 300, 200),
    "log1p of double": lambda t: t["a"].double().log1p(),
    "log": lambda t: t["a"].abs().log(),
}
INDUCTOR = importlib.import_module("torch._inductor.config")
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    monkeypatch.setattr(rewriting, "prefers_onednn", lambda: True)
    rewriting._patterns.cache_clear()
    yield
    rewriting._patterns.cache_clear()


def rewritten(function):
    """A recorded graph, the same rewritten, and tensors to run them on."""
    generator = torch.Generator().manual_seed(0)
    tensors = [0.1 * torch.randn(shape, generator=generator) for shape in SHAPES.values()]
    recorder = make_fx(lambda *tensors: [function(dict(zip(SHAPES, tensors, strict=True)))], tracing_mode="fake")
    before, after = recorder(*tensors), recorder(*tensors)
    rewriting._patterns().apply(after.graph)
    after.recompile()
    return before, after, tensors


def operations(graph):
    return [node.target for node in graph.graph.nodes]


@needs_passes
@needs_onednn
@pytest.mark.parametrize("name", PRODUCTS)
def test_large_products_are_rewritten(name):
    before, after, tensors = rewritten(PRODUCTS[name])
    assert operations(after).count(torch.ops.vsc_pyro.product.default) == (2 if name == "of itself" else 1)
    assert not {torch.ops.aten.mm.default, torch.ops.aten.addmm.default} & {*operations(after)}
    (expected,), (found,) = before(*tensors), after(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay(name):
    before, after, _ = rewritten(OTHERS[name])
    assert operations(after) == operations(before)


@needs_passes
@pytest.mark.slow
def test_compiled_functions_are_exact_but_for_a_few_units_in_the_last_place(compiler):
    sizes = torch.logspace(-37, 38, 40_001, dtype=torch.float64).float()
    special = torch.tensor([0.0, -1.0, -2.0, torch.inf, -torch.inf, torch.nan, 100.0, -200.0, 3e38])
    x = torch.cat([sizes, -sizes, torch.linspace(-1.5, 1.5, 40_001), special])
    functions = torch.log1p, torch.expm1
    graph = make_fx(lambda x: [function(x) for function in functions], tracing_mode="fake")(x)
    with INDUCTOR.patch(force_disable_caches=True):
        compiled = BACKENDS["inductor"](graph, [x])(x)
    for function, found in zip(functions, compiled, strict=True):
        exact = function(x.double())
        torch.testing.assert_close(found, exact.float(), rtol=4 * EPS, atol=0.0, equal_nan=True)


@needs_passes
@needs_onednn
@pytest.mark.slow
def test_compiled_networks(compiler):
    def function(t):
        return softplus(t["a"] @ t["b"]) * elu(torch.addmm(t["bias"], t["a"], t["bt"].T))

    before, _, tensors = rewritten(function)
    with INDUCTOR.patch(force_disable_caches=True):
        (found,) = BACKENDS["inductor"](before, tensors)(*tensors)
    torch.testing.assert_close(found, *before(*tensors), rtol=1e-5, atol=1e-6)


def test_the_processor_decides(monkeypatch):
    monkeypatch.undo()
    found = {}
    for vendor in ("GenuineIntel", "AuthenticAMD"):
        rewriting.prefers_onednn.cache_clear()
        monkeypatch.setattr("pathlib.Path.read_text", lambda path, vendor=vendor: f"vendor_id\t: {vendor}\n")
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
        found[vendor] = rewriting.prefers_onednn()
    rewriting.prefers_onednn.cache_clear()
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert found == {"GenuineIntel": False, "AuthenticAMD": has_both}


def test_the_package_is_imported_anew():
    first = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "vsc_pyro"}
    for name in first:
        del sys.modules[name]
    try:
        assert importlib.import_module("vsc_pyro.acceleration.rewriting") is not rewriting
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "vsc_pyro"]:
            del sys.modules[name]
        sys.modules.update(first)


@pytest.mark.slow
def test_torch_without_the_class_of_passes(compiler, monkeypatch):
    importlib.import_module("torch._inductor.compile_fx")  # which has loaded it in later versions
    monkeypatch.setitem(sys.modules, "torch._inductor.custom_graph_pass", None)
    rewriting.rewriting.cache_clear()
    x = torch.linspace(-1, 1, 100)
    try:
        (found,) = BACKENDS["inductor"](make_fx(lambda x: [x.expm1()])(x), [x])(x)
    finally:
        rewriting.rewriting.cache_clear()
    torch.testing.assert_close(found, x.expm1())
