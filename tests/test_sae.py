"""Sparse autoencoders: files of ours and of SAELens, and what is refused."""

import contextlib
import copy
import json
import math
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from problems.autoencoders import D, J, built, data, posterior, slab_prior

import vsc_pyro as vsc
from vsc_pyro.distributions import centre, hard_code, inclusion_of
from vsc_pyro.sae.autoencoder import SparseAutoencoder
from vsc_pyro.sae.export import ENCODERS

safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason="needs the package safetensors: pip install 'vsc-pyro[sae]'"
)

PARTS = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"]
FILES = ["cfg.json", "posterior.safetensors", "sae_weights.safetensors"]


MODELS = {
    "jump relu": ("jumprelu", lambda: built(vsc.JumpReLUEncoder(D, J))),
    "jump relu, laplace": ("jumprelu", lambda: built(vsc.JumpReLUEncoder(D, J, slab="laplace"), slab_prior("laplace"))),
    "jump relu, images": ("jumprelu", lambda: built(vsc.JumpReLUEncoder((1, 2, 3), J), shape=(1, 2, 3))),
    "jump relu, fixed scale": ("jumprelu", lambda: built(vsc.JumpReLUEncoder(D, J), scale=2.0)),
    "jump relu, float64": ("jumprelu", lambda: built(vsc.JumpReLUEncoder(D, J)).double()),
    "l1": ("standard", lambda: built(vsc.DeltaEncoder(D, J, (), rectify=True), vsc.LaplacePrior(J))),
    "l1, hidden": ("vsc_pyro", lambda: built(vsc.DeltaEncoder(D, J, (7,), rectify=True), vsc.LaplacePrior(J))),
    "three heads": ("vsc_pyro", lambda: built(vsc.SpikeSlabEncoder(D, J, ()))),
    "hidden": ("vsc_pyro", lambda: built(vsc.SpikeSlabEncoder((2, 3), J, (7, 8), "tanh"), shape=(2, 3))),
    "threshold": ("vsc_pyro", lambda: built(vsc.ThresholdEncoder(D, J, (7,), base="normal", threshold="per-latent"))),
}


def dictionary(shape=D, **options):
    """A sparse dictionary that has seen data, with random weights of the encoder, and noise and prior of its own."""
    torch.manual_seed(0)
    model = vsc.SparseDictionary(shape, J, **({"expected_active": 2, "beta": 1.2} | options))
    model.prepare(data().reshape(-1, *model.encoder.input_shape))
    with torch.no_grad():
        for parameter in (*model.encoder.own_layer.parameters(), *model.prior.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.decoder.log_amplitude.sub_(0.5)
    return model


MODELS |= {
    "dictionary": ("vsc_pyro", dictionary),
    "dictionary, float64": ("vsc_pyro", lambda: dictionary(refine_steps=2).double()),
    "dictionary, hidden": ("vsc_pyro", lambda: dictionary((2, 3), hidden=7, slab="truncated-normal")),
    "dictionary, not refined": ("vsc_pyro", lambda: dictionary(refine_steps=0)),
}
FLAT = [name for name, (architecture, _) in MODELS.items() if architecture != "vsc_pyro"]


def flat(sae):
    """Return the autoencoder of a folder without its posterior, as of a file of SAELens."""
    return SparseAutoencoder(sae.cfg, {name: getattr(sae, name) for name in PARTS})


def flat_codes(folder, x):
    """Codes by the formula of a JumpReLU from the numbers of a file, and their reconstructions."""
    w = safetensors_torch.load_file(folder / "sae_weights.safetensors")
    u = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = torch.where(u > w.get("threshold", torch.zeros(J)), u, 0).relu()
    return z, z @ w["W_dec"] + w["b_dec"]


@contextlib.contextmanager
def close(model):
    """Yield the comparison of floats of the model's type: data are near 50, codes up to about 100."""
    tolerance = 1e-10 if model.reference.dtype == torch.float64 else 2e-4

    def compare(ours, theirs):
        torch.testing.assert_close(ours, theirs, rtol=tolerance / 10, atol=tolerance)

    yield compare


# Our files


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_is_loaded_with_its_posterior(name, tmp_path):
    architecture, make = MODELS[name]
    model, folder = make(), tmp_path / "new" / "sae"
    x = data().to(model.reference)
    vsc.sae.export(model, folder)
    assert sorted(file.name for file in folder.iterdir()) == FILES
    sae = vsc.sae.load(folder)
    assert (sae.cfg.architecture, sae.cfg.d_in, sae.cfg.d_sae) == (architecture, D, J)
    q, atoms = posterior(model, x), model.decoder.dictionary.flatten(1).detach()
    norms = atoms.norm(dim=1)
    with close(model) as compare:
        compare(sae.norms, norms)
        compare(sae.W_dec, atoms / norms[:, None])
        compare(sae.encode(x), hard_code(q) * norms)
        compare(sae.encode(x, code="mean"), centre(q) * norms)
        compare(sae.inclusion(x), inclusion_of(q))
        with model.evaluating():
            compare(sae(x), model.decoder(hard_code(q)).mean.flatten(1))
    assert 0.02 < (sae.encode(x) != 0).double().mean() < 0.98
    assert sae.encode(x.reshape(4, -1, D)).shape == (4, len(x) // 4, J)
    assert sae.W_enc.shape == (D, J)
    assert not any(p.requires_grad for p in sae.parameters())


@pytest.mark.parametrize("name", FLAT)
def test_the_weights_of_a_jump_relu_are_its_hard_code(name, tmp_path):
    model = MODELS[name][1]()
    x = data().to(model.reference)
    vsc.sae.export(model, tmp_path)
    z, reconstructed = flat_codes(tmp_path, x)
    expected = hard_code(posterior(model, x))
    with close(model) as compare:
        compare(z, expected * model.decoder.dictionary.flatten(1).norm(dim=1).detach())
        with model.evaluating():
            compare(reconstructed, model.decoder(expected).mean.flatten(1))
    assert torch.equal(z > 0, expected > 0)


@pytest.mark.parametrize("name", ["three heads", "hidden"])
def test_weights_of_an_encoder_are_its_first_order_around_the_decoders_bias(name, tmp_path):
    model = MODELS[name][1]().double()
    vsc.sae.export(model, tmp_path)
    sae = vsc.sae.load(tmp_path)

    def location(x):
        return model.encoder.heads(x.reshape(1, *model.encoder.input_shape))[0][0]

    derivative = torch.autograd.functional.jacobian(location, sae.b_dec)
    torch.testing.assert_close(sae.W_enc, derivative.T * sae.norms, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sae.b_enc, location(sae.b_dec).detach() * sae.norms)


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_files_of_data_in_any_unit(unit, tmp_path):
    x = unit * data()
    torch.manual_seed(0)
    model = vsc.SparseDictionary(D, J, expected_active=2)
    vsc.fit(model, x, epochs=2, progress=False)
    vsc.sae.export(model, tmp_path)
    sae = vsc.sae.load(tmp_path)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(J))
    truth = 1e-3 * unit * torch.randn(20, D, dtype=torch.float64)
    of_model, of_file = (vsc.evaluate_dictionary(found, x, dictionary=truth) for found in (model, sae))
    unscaled = vsc.evaluate_dictionary(model, x, dictionary=truth / unit)
    for name in ("mcc", "c_dec", "hard_explained_variance"):
        assert getattr(of_file, name) == pytest.approx(getattr(of_model, name), rel=1e-4)
        assert getattr(unscaled, name) == pytest.approx(getattr(of_model, name), rel=1e-6)


def test_an_atom_of_zero_has_codes_of_zero(tmp_path):
    model = built(vsc.JumpReLUEncoder(D, J))
    with torch.no_grad():
        model.decoder.own_layer.weight[:, 2] = 0
    vsc.sae.export(model, tmp_path)
    z, _ = flat_codes(tmp_path, data())
    assert not z[:, 2].any()
    assert torch.equal(z > 0, vsc.sae.load(tmp_path).encode(data()) > 0)


def test_nothing_is_overwritten(tmp_path):
    model = built(vsc.JumpReLUEncoder(D, J))
    for name in FILES:
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(FileExistsError, match=rf"holds {name}; pass overwrite=True, or take another directory"):
            vsc.sae.export(model, folder)
        assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(name, "mine")]
    vsc.sae.export(model, folder, overwrite=True)
    assert torch.equal(vsc.sae.load(folder).inclusion(data()), vsc.codes(model, data()).inclusion)
    for place in (folder / name, folder / name / "below"):
        with pytest.raises(FileExistsError, match=rf"must be a folder, and .*{name} is a file; take another directory"):
            vsc.sae.export(model, place)


def test_training_mode_of_a_loaded_model_does_not_matter(tmp_path):
    vsc.sae.export(built(vsc.DeltaEncoder(D, J, (7,), rectify=True, corruption=0.9), vsc.LaplacePrior(J)), tmp_path)
    sae = vsc.sae.load(tmp_path)
    assert torch.equal(sae.encode(data()), sae.train().encode(data()))


def test_bad_data_and_codes(tmp_path):
    vsc.sae.export(built(vsc.JumpReLUEncoder(D, J)), tmp_path)
    sae = vsc.sae.load(tmp_path)
    for method in (sae.encode, sae.inclusion, sae):
        with pytest.raises(ValueError, match=r"x must have 6 values in its last .* shape \(2, 12\); pass data of"):
            method(np.zeros((2, 2 * D)))
        with pytest.raises(ValueError, match=r"x must be an array, tensor or data frame, .*; got a dict"):
            method({"x": 1})
    with pytest.raises(ValueError, match=r"x must have 6 values in its last .* shape \(1,\); pass"):
        sae.encode(torch.zeros(1))
    assert torch.equal(torch.vmap(flat(sae).encode)(data()), flat(sae).encode(data()))
    for values in (math.nan, math.inf, 1e300):
        assert not flat(sae).encode(np.array([[values] + [0.0] * (D - 1)])).isfinite().all()
        for method in (sae.encode, sae.inclusion, sae):
            with pytest.raises(
                ValueError, match=r"1 NaN or infinite values in the model's type, .* in datum 1; remove"
            ):
                method(np.array([[0.0] * D, [values] + [0.0] * (D - 1)]))
    assert sae.encode(torch.zeros(0, D)).shape == (0, J)
    with pytest.raises(ValueError, match=r"z must have 9 values in its last .* shape \(2, 6\); pass codes as encode"):
        sae.decode(np.zeros((2, D)))
    with pytest.raises(ValueError, match="unknown code 'soft'; known are 'hard', 'mean'"):
        sae.encode(torch.zeros(2, D), code="soft")


@pytest.mark.parametrize(
    "use", [vsc.codes, vsc.evaluate, vsc.bounds, vsc.fit, vsc.refine, vsc.impute, vsc.gibbs_posterior, vsc.sae.export]
)
def test_a_loaded_autoencoder_is_no_vae(use, tmp_path):
    vsc.sae.export(built(vsc.JumpReLUEncoder(D, J)), tmp_path)
    with pytest.raises(
        ValueError, match=r"model must be a VAE, got PosteriorAutoencoder; a sparse .* encode\(x\), and"
    ):
        use(vsc.sae.load(tmp_path), data())


class Custom(vsc.SpikeSlabEncoder):
    pass


def in_warmup():
    model = built(vsc.SpikeSlabEncoder(D, J))
    model.encoder.slab_weight.fill_(0.5)
    return model


def with_decoder(decoder):
    return vsc.VAE(vsc.SpikeSlabEncoder(decoder.output_shape, J), decoder, vsc.SpikeSlabPrior(J))


def with_trunk():
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), J, trunk=vsc.ConvTrunk((1, 8, 8), (4,), 10))
    return vsc.VAE(encoder, vsc.NormalDecoder(J, (1, 8, 8), hidden=()), vsc.SpikeSlabPrior(J))


REFUSED = {
    "hidden decoder": (lambda: with_decoder(vsc.NormalDecoder(J, D)), r"linear decoder, .* train a NormalDecoder\(hid"),
    "bernoulli": (lambda: with_decoder(vsc.BernoulliDecoder(J, D, hidden=())), "BernoulliDecoder is none, or not one"),
    "normal": (
        lambda: built(vsc.NormalEncoder(D, J), vsc.NormalPrior(J)),
        "this NormalEncoder have none; train a Jump",
    ),
    "laplace": (lambda: built(vsc.LaplaceEncoder(D, J), vsc.LaplacePrior(J)), "this LaplaceEncoder have none; train a"),
    "point": (lambda: built(vsc.DeltaEncoder(D, J), vsc.FlatPrior(J)), r"have none; .*DeltaEncoder\(rectify=True\)"),
    "trunk": (with_trunk, "encoder must be an MLP to be exported, got a trunk, ConvTrunk"),
    "custom": (lambda: built(Custom(D, J)), "encoder must be one of .*JumpReLUEncoder, .*, got Custom"),
    "refined": (lambda: built(vsc.RefinedEncoder(D, J)), "RefinedEncoder refines under its model, .*SparseDictionary"),
    "warm-up": (in_warmup, r"encoder\.slab_weight is 0\.5, left by a slab warm-up that did not end; train to its end"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_no_sparse_autoencoders(name, tmp_path):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        vsc.sae.export(make(), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_loaded_dictionary_is_copied_and_moved_as_a_whole(tmp_path):
    vsc.sae.export(dictionary(), tmp_path)
    sae = vsc.sae.load(tmp_path)
    twin = copy.deepcopy(sae)
    with torch.no_grad():
        sae.model.prior.inclusion_logits.add_(3)
    assert twin.inclusion(data()).sum() < 0.9 * sae.inclusion(data()).sum()
    assert twin.double().encode(data().double()).dtype == torch.float64


class Bound(vsc.SpikeSlabEncoder):
    """An encoder that is built from another part of the model."""

    def __init__(self, input_shape, latent_dim, *, decoder):
        super().__init__(input_shape, latent_dim)


def test_an_encoder_that_a_file_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "Bound", Bound)
    with pytest.raises(ValueError, match=r"cannot hold all arguments of Bound .*'decoder'.*; train a JumpReLUEncoder"):
        vsc.sae.export(built(Bound(D, J, decoder=None)), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_without_safetensors(tmp_path, monkeypatch):
    model = built(vsc.JumpReLUEncoder(D, J))
    vsc.sae.export(model, tmp_path / "whole")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for use in (lambda: vsc.sae.export(model, tmp_path / "new"), lambda: vsc.sae.load(tmp_path / "whole")):
        with pytest.raises(ImportError, match=r"need the package safetensors; run: pip install 'vsc-pyro\[sae\]'"):
            use()


# Files of SAELens, by their format

RANDOM = torch.Generator().manual_seed(1)
WEIGHTS = {
    name: torch.randn(shape, generator=RANDOM)
    for name, shape in {"W_enc": (D, J), "b_enc": (J,), "W_dec": (J, D), "b_dec": (D,)}.items()
}
CFG = {
    "d_in": D,
    "d_sae": J,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.3"},
}


def write(folder, weights=WEIGHTS, **cfg):
    folder.mkdir(exist_ok=True)
    safetensors_torch.save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(CFG | cfg))
    return folder


@pytest.mark.parametrize("subtracts", [True, False])
def test_standard_and_jump_relu_files(subtracts, tmp_path):
    x = torch.randn(50, D, generator=RANDOM)
    w, threshold = WEIGHTS, torch.linspace(0, 2, J)
    u = (x - subtracts * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    relu = vsc.sae.load(write(tmp_path / "relu", architecture="standard", apply_b_dec_to_input=subtracts))
    assert torch.equal(relu.encode(x), u.relu())
    assert torch.equal(relu(x), u.relu() @ w["W_dec"] + w["b_dec"])
    weights = w | {"threshold": threshold}
    jump = vsc.sae.load(write(tmp_path / "jump", weights, architecture="jumprelu", apply_b_dec_to_input=subtracts))
    assert torch.equal(jump.encode(x), torch.where(u > threshold, u, 0.0))
    assert (jump.cfg.d_in, jump.cfg.d_sae) == (D, J)
    with pytest.raises(ValueError, match="unknown code 'mean'; known are 'hard'"):
        jump.encode(x, code="mean")


@pytest.mark.parametrize("dtype", ["float16", "torch.float32", "float64", None])
def test_weights_have_the_type_that_the_file_states(dtype, tmp_path):
    sae = vsc.sae.load(write(tmp_path, architecture="standard", dtype=dtype))
    expected = getattr(torch, (dtype or "float32").removeprefix("torch."))
    for name, weight in WEIGHTS.items():
        assert torch.equal(getattr(sae, name), weight.to(expected))
    assert sae(torch.ones(2, D)).dtype == expected


@pytest.mark.parametrize("rescales", [True, False])
def test_top_k_files(rescales, tmp_path):
    x = torch.randn(50, D, generator=RANDOM)
    w, norms = WEIGHTS, WEIGHTS["W_dec"].norm(dim=1) if rescales else torch.ones(J)
    u = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    expected = torch.where(u >= u.sort(descending=True).values[:, 2:3], u, 0.0).relu()
    sae = vsc.sae.load(write(tmp_path, architecture="topk", k=3, rescale_acts_by_decoder_norm=rescales))
    torch.testing.assert_close(sae.encode(x), expected)
    torch.testing.assert_close(sae(x), expected / norms @ w["W_dec"] + w["b_dec"])
    assert ((sae.encode(x) != 0).sum(1) <= 3).all()


# Damaged and hostile files

NAN = WEIGHTS["b_enc"].clone().index_fill_(0, torch.tensor([3]), math.nan)
DAMAGED = {
    "architecture": (
        {"architecture": "gated"},
        WEIGHTS,
        "architecture is 'gated', and jumprelu, standard, topk can be",
    ),
    "ours in name": ({"architecture": "vsc_pyro"}, WEIGHTS, "architecture is 'vsc_pyro', and jumprelu, standard, topk"),
    "list": ({"architecture": [1] * 999}, WEIGHTS, r"architecture is \[1, 1, 1, 1, \.\.\.\], and"),
    "normalised": (
        {"normalize_activations": "layer_norm"},
        WEIGHTS,
        "its normalize_activations is 'layer_norm', which",
    ),
    "old": ({"activation_fn_str": "topk"}, WEIGHTS, "its activation_fn_str is 'topk', which is not read; fold it into"),
    "metadata": ({"metadata": 3}, WEIGHTS, r"cfg\.json is damaged: metadata must be an object, got 3"),
    "size": ({"d_in": "6"}, WEIGHTS, r"d_in and d_sae must be whole numbers above 0, .* got '6', 9 and True"),
    "huge": ({"d_sae": 10**30}, WEIGHTS, r"W_enc must be floating-point numbers of shape \(6, 1000000.*got a tensor"),
    "k": ({"architecture": "topk", "k": 10}, WEIGHTS, "k must lie between 1 and d_sae = 9, got 10"),
    "k's type": ({"architecture": "topk", "k": "3"}, WEIGHTS, "k must lie between 1 and d_sae = 9, got '3'"),
    "type": ({"dtype": "int8"}, WEIGHTS, "its dtype is 'int8', and float16, bfloat16, float32, float64 can be read"),
    "type's type": ({"dtype": [1]}, WEIGHTS, r"its dtype is \[1\], and float16"),
    "overflow": (
        {"dtype": "float16"},
        WEIGHTS | {"b_dec": torch.full((D,), 1e5)},
        "b_dec has entries that are NaN or infinite in torch.float16",
    ),
    "missing": (
        {},
        {"W_dec": WEIGHTS["W_dec"]},
        r"W_enc must be floating-point numbers of shape \(6, 9\), got nothing",
    ),
    "no threshold": ({"architecture": "jumprelu"}, WEIGHTS, r"threshold must be floating-point .*, got nothing"),
    "more": ({}, WEIGHTS | {"scaling_factor": torch.ones(J)}, "holds scaling_factor, which is not read"),
    "integers": (
        {},
        WEIGHTS | {"b_dec": torch.ones(D, dtype=torch.int64)},
        r"b_dec must be floating-point .*torch\.int64",
    ),
    "nan": ({}, WEIGHTS | {"b_enc": NAN}, "b_enc has entries that are NaN or infinite"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_folders_are_refused_in_one_line(name, tmp_path):
    cfg, weights, message = DAMAGED[name]
    with pytest.raises(ValueError, match=rf"the sparse autoencoder in .* was not read: .*{message}") as error:
        vsc.sae.load(write(tmp_path, weights, **({"architecture": "standard"} | cfg)))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON; export again"),
        ("[" * 100_000, "is not JSON; export again"),
        ("[1]", "must be an object with names and values, got list"),
        (" " * (9 * 2**20), r"has 9437184 bytes, more than the 8388608 of a plausible cfg\.json"),
        (b"\xff\xfe{}", "is not JSON; export again"),
    ],
)
def test_a_cfg_that_is_none(text, message, tmp_path):
    path = write(tmp_path, architecture="standard") / "cfg.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        vsc.sae.load(tmp_path)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
def test_truncated_tensors(name, keep, tmp_path):
    vsc.sae.export(built(vsc.JumpReLUEncoder(D, J)), tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"{name} is truncated or corrupt; export again"):
        vsc.sae.load(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_missing_files(name, tmp_path):
    vsc.sae.export(built(vsc.JumpReLUEncoder(D, J)), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no file .*{name}; a sparse autoencoder is a folder with cfg"):
        vsc.sae.load(tmp_path)


EDITED = {
    "format": ({"format": 2}, "must have format 1, got .*; export with this version"),
    "class": ({"encoder": "os.system"}, r"names the encoder 'os\.system'; known are CauchyEncoder, "),
    "unhashable": ({"encoder": ["x"]}, r"names the encoder \['x'\]; known are"),
    "another class": ({"encoder": "NormalEncoder"}, "NormalEncoder does not take the arguments"),
    "keyword": ({"arguments": {"input_shape": [D], "latent_dim": J, "trunks": 1}}, "does not take the arguments"),
    "wide": (
        {"arguments": {"input_shape": [D], "latent_dim": J, "hidden": [10**12]}},
        "sizes of the encoder do not fit",
    ),
    "deep": ({"arguments": {"input_shape": [D], "latent_dim": 10**9}}, "sizes of the encoder do not fit the weights"),
    "shape": ({"arguments": {"input_shape": "6", "latent_dim": J}}, "sizes of the encoder do not fit the weights"),
    "slab": ({"arguments": {"input_shape": [D], "latent_dim": J, "slab": "x"}}, "unknown slab 'x'; known are"),
    "slab's type": ({"arguments": {"input_shape": [D], "latent_dim": J, "slab": []}}, r"unknown slab \[\]; known are"),
}


@pytest.mark.parametrize("name", EDITED)
def test_edited_descriptions_of_the_encoder(name, tmp_path):
    edit, message = EDITED[name]
    vsc.sae.export(built(vsc.JumpReLUEncoder(D, J)), tmp_path)
    path = tmp_path / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"]["vsc_pyro"] |= edit
    path.write_text(json.dumps(cfg))
    with pytest.raises(ValueError, match=rf"the sparse autoencoder in .* was not read: .*{message}") as error:
        vsc.sae.load(tmp_path)
    assert "\n" not in str(error.value)


def edited(folder, **edits):
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edits))
    return folder


def test_settings_that_are_not_those_of_the_posterior(tmp_path):
    vsc.sae.export(built(vsc.SpikeSlabEncoder(D, J, ())), tmp_path)
    for edits in ({"architecture": "standard"}, {"architecture": "topk", "k": 2}, {"apply_b_dec_to_input": False}):
        cfg = {"architecture": "vsc_pyro", "apply_b_dec_to_input": True} | edits
        found = rf"are \('{cfg['architecture']}', {cfg['apply_b_dec_to_input']}\)"
        with pytest.raises(ValueError, match=rf"{found}, and a SpikeSlabEncoder .* is \('vsc_pyro', True\); restore"):
            vsc.sae.load(edited(tmp_path, **cfg))
    single, double = (
        vsc.sae.load(edited(tmp_path, apply_b_dec_to_input=True, dtype=dtype)) for dtype in ("float32", "float64")
    )
    x = data()
    torch.testing.assert_close(double.inclusion(x), single.inclusion(x).double(), rtol=1e-3, atol=1e-3)


EDITED_MODELS = {
    "class": ({"model": "VAE"}, "names the model 'VAE'; known are SparseDictionary"),
    "steps": ({"refine_steps": 10**9}, "sizes of the model do not fit the weights"),
    "wide": ({"num_features": 10**9}, "sizes of the model do not fit the weights"),
    "keyword": ({"trunk": 1}, "SparseDictionary does not take the arguments"),
    "weight": ({"beta": -1.0}, r"beta must be .*, got -1\.0"),
}


@pytest.mark.parametrize("name", EDITED_MODELS)
def test_edited_descriptions_of_a_model(name, tmp_path):
    edit, message = EDITED_MODELS[name]
    vsc.sae.export(dictionary(), tmp_path)
    path = tmp_path / "cfg.json"
    cfg = json.loads(path.read_text())
    own = cfg["metadata"]["vsc_pyro"]
    (own if "model" in edit else own["arguments"]).update(edit)
    path.write_text(json.dumps(cfg))
    with pytest.raises(ValueError, match=rf"the sparse autoencoder in .* was not read: .*{message}"):
        vsc.sae.load(tmp_path)


# Against SAELens itself


@pytest.fixture(scope="module")
def lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "sae_lens", reason="compares with SAELens: pip install 'vsc-pyro[sae-lens]', in an environment of its own"
        )


@pytest.mark.parametrize("name", FLAT)
def test_sae_lens_opens_an_exported_model(name, lens, tmp_path):
    model = MODELS[name][1]()
    x = data().to(model.reference)
    vsc.sae.export(model, tmp_path)
    theirs, ours = lens.SAE.load_from_disk(tmp_path), vsc.sae.load(tmp_path)
    assert type(theirs) is {"jumprelu": lens.JumpReLUSAE, "standard": lens.StandardSAE}[MODELS[name][0]]
    with close(model) as compare, torch.no_grad():
        compare(theirs.encode(x), ours.encode(x))
        compare(theirs.encode(x), hard_code(posterior(model, x)) * ours.norms)
        compare(theirs.decode(ours.encode(x)), ours.decode(ours.encode(x)))
        compare(theirs(x), ours(x))
    theirs.save_model(tmp_path / "again")
    assert theirs.cfg.metadata.sae_lens_version == "6.54.0"


def test_sae_lens_refuses_what_it_cannot_encode(lens, tmp_path):
    vsc.sae.export(MODELS["three heads"][1](), tmp_path)
    with pytest.raises(KeyError, match="vsc_pyro"):
        lens.SAE.load_from_disk(tmp_path)


def trained_by_sae_lens(lens, name):
    settings = {"d_in": D, "d_sae": J}
    sae = {
        "standard": lambda: lens.StandardSAE(lens.StandardSAEConfig(**settings)),
        "jumprelu": lambda: lens.JumpReLUSAE(lens.JumpReLUSAEConfig(apply_b_dec_to_input=False, **settings)),
        "topk": lambda: lens.TopKSAE(lens.TopKSAEConfig(k=3, rescale_acts_by_decoder_norm=True, **settings)),
        "batchtopk": lambda: lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(k=3, **settings)),
        "matryoshka": lambda: lens.MatryoshkaBatchTopKTrainingSAE(
            lens.MatryoshkaBatchTopKTrainingSAEConfig(k=3, matryoshka_widths=[4, J], **settings)
        ),
    }[name]()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.rand_like(parameter))
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.7)
    return sae


@pytest.mark.parametrize("name", ["standard", "jumprelu", "topk", "batchtopk", "matryoshka"])
def test_files_that_sae_lens_wrote_are_read(name, lens, tmp_path):
    sae = trained_by_sae_lens(lens, name)
    getattr(sae, "save_inference_model", sae.save_model)(tmp_path)
    theirs, ours, x = lens.SAE.load_from_disk(tmp_path), vsc.sae.load(tmp_path), torch.randn(50, D)
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(ours.encode(x)), theirs(x))
        assert torch.equal(ours.encode(x) != 0, theirs.encode(x) != 0)
    assert 0.02 < (ours.encode(x) != 0).double().mean() < 0.98


@pytest.mark.skipif(not hasattr(vsc, "evaluate_dictionary"), reason="needs vsc_pyro.evaluate_dictionary")
def test_sae_lens_measures_our_figures(lens, tmp_path):
    from sae_lens.synthetic import FeatureDictionary, eval_sae_on_synthetic_data

    world = vsc.datasets.features(12, D, expected_active=2, noise=0.0)
    sample = world.sample(2000)
    torch.manual_seed(0)
    encoder, decoder = vsc.JumpReLUEncoder(D, J), vsc.NormalDecoder(J, D, hidden=())
    model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(J, 2 / 12, learn_slab=True))
    vsc.fit(model, sample.images, objective="exact", epochs=20, lr=1e-2, progress=False)
    vsc.sae.export(model, tmp_path)
    features = FeatureDictionary(12, D, bias=True)
    with torch.no_grad():
        features.feature_vectors.copy_(world.dictionary)
        features.bias.copy_(world.bias)
    theirs = eval_sae_on_synthetic_data(
        lens.SAE.load_from_disk(tmp_path),
        features,
        types.SimpleNamespace(sample=lambda n: sample.factors.values),
        num_samples=len(sample),
    )
    ours = vsc.evaluate_dictionary(model, sample, dictionary=world.dictionary)
    loaded = vsc.evaluate_dictionary(vsc.sae.load(tmp_path), sample, dictionary=world.dictionary)
    for found in (ours, loaded):
        figures = {
            "true_l0": found.true_l0,
            "sae_l0": found.hard_l0,
            "dead_latents": found.dead,
            "shrinkage": found.hard_shrinkage,
            "explained_variance": found.hard_explained_variance,
            "mcc": found.mcc,
            "uniqueness": found.uniqueness,
        }
        assert {name: getattr(theirs, name) for name in figures} == pytest.approx(figures, rel=1e-4)
        for name in ("precision", "recall", "accuracy"):
            assert getattr(theirs.classification, name) == pytest.approx(getattr(found, name), rel=1e-4)
        assert theirs.classification.f1_score == pytest.approx(found.f1, rel=1e-4)


@pytest.mark.parametrize("beta", [0.3, 0.0])
def test_a_dictionary_is_exported_with_the_beta_it_has(beta, tmp_path):
    torch.manual_seed(0)
    model, x = vsc.SparseDictionary(6, 8, expected_active=2), torch.randn(20, 6)
    model.beta = beta
    vsc.sae.export(model, tmp_path)
    with model.evaluating():
        inclusion = model.encoder(x).base_dist.probs
    torch.testing.assert_close(vsc.sae.load(tmp_path).inclusion(x), inclusion)
