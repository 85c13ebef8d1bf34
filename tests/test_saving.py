"""A model is kept in a folder and comes back from the path alone, equal to the last bit; hostile files are refused."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems.pairs import ADMISSIBLE, SHAPE, J, build, covering
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.gates import GATES
from vsc_pyro.models.networks import MLP


def outputs(model, x):
    """The numbers of posterior, prior and likelihood, to the last bit."""
    codes = torch.ones(2, model.decoder.latent_dim).to(x)
    return [numbers(distribution) for distribution in (model.encoder(x), model.prior(x), model.decoder(codes))]


def numbers(distribution):
    found = [type(distribution).__name__]
    for name, value in sorted(vars(distribution).items()):
        if isinstance(value, torch.Tensor):
            found.append((name, value.detach().numpy().tobytes()))
        elif isinstance(value, torch.distributions.Distribution):
            found.append((name, numbers(value)))
    return found


def settings(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = [(path, type(module), module.training, module.extra_repr()) for path, module in model.named_modules()]
    return {name: (t.dtype, t.requires_grad, t.detach().numpy().tobytes()) for name, t in tensors.items()}, modules


def assert_equal(model, again, x):
    assert settings(again) == settings(model)
    assert outputs(again, x) == outputs(model, x)
    assert again.num_data == model.num_data


def moved(model):
    """The model with weights that no constructor draws."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def dense(decoder, **options):
    return vsc.VAE(vsc.NormalEncoder(SHAPE, J, (8,)), decoder(J, SHAPE, **options), vsc.NormalPrior(J))


def convolutional():
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, trunk=vsc.ConvTrunk(SHAPE, (4,), 8), scale="per-latent")
    decoder = vsc.ContinuousBernoulliDecoder(J, SHAPE, trunk=vsc.DeconvTrunk(SHAPE, (4,), 8))
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(J, torch.linspace(0.1, 0.3, J), slab_loc=torch.arange(J)))


MODELS = {
    "normal decoder": lambda: dense(vsc.NormalDecoder, variance="per-pixel"),
    "linear decoder": lambda: dense(vsc.NormalDecoder, hidden=(), scale=0.3),
    "dictionary decoder": lambda: dense(vsc.DictionaryDecoder, noise=0.3),
    "convolutional": convolutional,
    "jump-relu": lambda: vsc.VAE(
        vsc.JumpReLUEncoder(SHAPE, J), vsc.NormalDecoder(J, SHAPE, ()), vsc.SpikeSlabPrior(J, learn_slab=True)
    ),
    "VSC": lambda: vsc.VSC(SHAPE, J, 0.2, 4, hidden=(8,), gate=vsc.gates.ShiftedSigmoid(70.0)),
    "SparseDictionary": lambda: vsc.SparseDictionary(SHAPE, 80, expected_active=3, beta=1.5),
    "missing": lambda: vsc.VAE(
        vsc.NormalEncoder(SHAPE, J), vsc.BernoulliDecoder(J, SHAPE), vsc.NormalPrior(J), missing=True
    ),
    **{gate: lambda gate=gate: dense_gate(gate) for gate in GATES},
    **{f"{e} {p}": lambda e=e, p=p: build(e, p) for e, p in covering(ADMISSIBLE)},
}


def dense_gate(gate):
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, (8,), gate=gate)
    return vsc.VAE(encoder, vsc.BernoulliDecoder(J, SHAPE, (8,)), vsc.SpikeSlabPrior(J))


@pytest.mark.filterwarnings("ignore:.*is sampled")
@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_equal(name, digits, tmp_path):
    model = MODELS[name]()
    model.prepare(digits.train.images)
    moved(model)
    model.check_data(digits.test.images)
    state = torch.get_rng_state()
    again = vsc.load(model.save(tmp_path / "kept"))
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(model, again, digits.test.images[:5])


@pytest.mark.filterwarnings("ignore:.*is sampled")
def test_evaluation_is_equal(tmp_path, digits, trained):
    again = vsc.load(trained.save(tmp_path / "kept"))
    ours, its = (vsc.evaluate(model, digits.test, num_draws=5).as_dict() for model in (trained, again))
    assert ours == its


def test_settings_of_a_model_come_back(tmp_path):
    model = dense_gate("concrete")
    x = torch.rand(3, 64).round()  # a flat datum, which the encoder takes too
    model.check_data(x)
    model.beta = 0.3
    model.encoder.gate = vsc.gates.ShiftedSigmoid(60.0, hard=True)
    model.encoder.gate.c = 90.0
    model.encoder.slab_weight.fill_(0.25)
    model.decoder.requires_grad_(False)
    model.num_data = 321
    model.decoder.eval()
    model.double()
    again = vsc.load(model.save(tmp_path / "kept"))
    assert_equal(model, again, x.double())
    assert again._datum_shape == (64,)
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert config["data"]["shape"] == [64]


PROGRAM = """
import sys, torch, vsc_pyro as vsc
sys.path.insert(0, sys.argv[3])
from test_saving import outputs
model = vsc.load(sys.argv[1])
torch.manual_seed(3)
draw = model.train().encoder(torch.load(sys.argv[2])).rsample()
torch.save((outputs(model, torch.load(sys.argv[2])), draw.detach()), sys.argv[2])
"""


def test_a_fresh_process_needs_the_path_alone(tmp_path, trained, digits):
    folder, x = trained.save(tmp_path / "kept"), digits.test.images[:20]
    torch.save(x, tmp_path / "x.pt")
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", PROGRAM, folder, tmp_path / "x.pt", Path(__file__).parent]
    root = str(Path(__file__).parent.parent)
    subprocess.run(command, check=True, cwd=tmp_path / "elsewhere", env={**os.environ, "PYTHONPATH": root})
    found, draw = torch.load(tmp_path / "x.pt", weights_only=False)
    assert found == outputs(trained, x)
    torch.manual_seed(3)
    assert torch.equal(draw, trained.train().encoder(x).rsample())


# Folders


def test_a_folder_of_a_model_is_replaced_only_on_demand(tmp_path, small_vae):
    first, second = small_vae(seed=0), small_vae(seed=1)
    folder = first.save(tmp_path / "new" / "kept")
    with pytest.raises(FileExistsError, match="holds a model; pass overwrite=True"):
        second.save(folder)
    assert second.save(folder, overwrite=True) == folder
    assert_equal(second, vsc.load(folder), torch.zeros(1, 64))
    assert [file.name for file in folder.parent.iterdir()] == ["kept"]
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "weights.pt"]


def test_folders_of_other_things_are_left_alone(tmp_path, small_vae):
    for name in ("config.json", "weights.pt", "thesis.tex"):
        (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex, and a model has a folder of its own"):
        small_vae().save(tmp_path, overwrite=True)
    for path, name in ((tmp_path / "thesis.tex", "a file"), (tmp_path / "other", "config.json")):
        if name == "config.json":
            path.mkdir()
            (path / name).write_text("{}")
        with pytest.raises(FileExistsError, match=f"holds {name}"):
            small_vae().save(path, overwrite=True)
    (tmp_path / "empty").mkdir()
    small_vae().save(tmp_path / "empty")


def test_a_save_that_fails_leaves_the_old_model(tmp_path, small_vae, monkeypatch):
    folder = small_vae().save(tmp_path / "kept")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    for where in ("vsc_pyro.training.saving.save_checkpoint", "vsc_pyro._files.os.fsync", "vsc_pyro._files.os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(OSError, match=r"No space left on device.*kept"):
                small_vae(seed=1).save(folder, overwrite=True)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_the_card_states_bounds_sparsity_and_protocol(tmp_path, trained, digits):
    evaluation = vsc.evaluate(trained, digits.test, num_draws=7)
    folder = trained.save(tmp_path / "kept", data=digits.train, evaluation=evaluation)
    card, config = (folder / "README.md").read_text(), json.loads((folder / "config.json").read_text())
    assert str(evaluation) in card
    assert "bound of 7 draws" in card
    assert "`SpikeSlabEncoder`" in card
    assert f"Binarisation: {digits.train.binarize}." in card
    assert config["data"] == {"name": "digits", "shape": [1, 8, 8], "binarize": digits.train.binarize}
    assert "Not evaluated." in (trained.save(tmp_path / "other") / "README.md").read_text()
    array = trained.save(tmp_path / "array", data=digits.train.images.numpy())
    assert json.loads((array / "config.json").read_text())["data"]["shape"] == [1, 8, 8]
    with pytest.raises(ValueError, match="the encoder does not take data of shape"):
        trained.save(tmp_path / "third", data=vsc.Dataset(torch.zeros(2, 9)))


# Classes of the user's own


class Trunk(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out_features, self.network = width, MLP(64, width)

    def forward(self, x):
        return self.network(x.flatten(1))


class Mine(vsc.VAE):
    def __init__(self, latents, function=None):
        encoder = vsc.NormalEncoder(SHAPE, latents, trunk=Trunk(7))
        super().__init__(encoder, vsc.BernoulliDecoder(latents, SHAPE), vsc.NormalPrior(latents))


def test_classes_of_ones_own(tmp_path, monkeypatch, digits):
    monkeypatch.setattr("vsc_pyro._recorded._classes", known := dict(vsc._recorded._classes))
    with pytest.raises(ValueError, match=r"model is a Mine, .* call vsc_pyro\.register\(Mine\)"):
        Mine(3).save(tmp_path / "kept")
    vsc.register(Mine)
    model = moved(Mine(3))
    folder = model.save(tmp_path / "kept")
    assert_equal(model, vsc.load(folder), digits.test.images[:2])
    with pytest.raises(ValueError, match=r"model\.function is a function, which a file cannot hold"):
        Mine(3, lambda: 0).save(tmp_path / "other")
    del known["Mine"]
    with pytest.raises(ValueError, match=r"unknown class Mine; if it is yours, import it and call vsc_pyro\.register"):
        vsc.load(folder)


def test_a_model_that_was_changed_beyond_description_is_refused(tmp_path):
    model = vsc.VSC(SHAPE, J, num_pseudo_inputs=4)
    model.prior = vsc.SpikeSlabPrior(J)
    with pytest.raises(ValueError, match="changed after it was built"):
        model.save(tmp_path / "kept")
    model = dense(vsc.NormalDecoder)
    model.encoder.network[2] = nn.Tanh()
    with pytest.raises(ValueError, match=r"after it was built: encoder\.network\.2 is a Tanh, and .* SiLU; build"):
        model.save(tmp_path / "kept")
    assert not [*tmp_path.iterdir()]


# Checkpoints


def test_checkpoints_of_fit_contain_the_model(tmp_path, digits, small_vae):
    model = small_vae(learn_inclusion=True)
    options = {"gate": "shifted-sigmoid", "schedules": {"encoder.gate.c": vsc.Ramp(50, 90, length=20)}, "device": "cpu"}
    vsc.fit(model, digits.train, epochs=5, warmup=0.9, checkpoint=tmp_path / "run.pt", progress=False, **options)
    assert_equal(model, vsc.load(tmp_path / "run.pt"), digits.test.images[:5])
    model.save(tmp_path / "kept")
    assert_equal(model, vsc.load(tmp_path / "kept"), digits.test.images[:5])


def test_checkpoints_of_models_that_cannot_be_described_say_so(tmp_path, digits):
    model = Mine(3)
    vsc.fit(model, digits.train, epochs=1, checkpoint=tmp_path / "run.pt", progress=False, device="cpu")
    with pytest.raises(ValueError, match=r"run\.pt does not describe its model.*model\.save.*load_weights"):
        vsc.load(tmp_path / "run.pt")
    vsc.fit(model, digits.train, epochs=2, checkpoint=tmp_path / "run.pt", resume=True, progress=False, device="cpu")


def test_a_copy_is_saved_as_the_model_is(tmp_path, trained):
    x = torch.rand(2, 64)
    for number, copied in enumerate((copy.deepcopy(trained), pickle.loads(pickle.dumps(trained)))):
        assert_equal(trained, vsc.load(copied.save(tmp_path / str(number))), x)


# Damaged and hostile files


class Malicious:
    def __reduce__(self):
        return (print, ("this ran on loading",))


@pytest.fixture
def kept(tmp_path, small_vae):
    return small_vae(learn_inclusion=True).save(tmp_path / "kept")


def edited(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


HUGE = 10**9
EDITS = {
    "another format": (lambda c: c.update(format=2), "must have format 1, got 2"),
    "a number too large": (lambda c: c["model"]["arguments"].update(beta=10**400), "cannot be built"),
    "wide": (lambda c: c["model"]["arguments"]["decoder"]["arguments"].update(hidden=[HUGE]), "far more numbers"),
    "deep": (lambda c: c["model"]["arguments"]["decoder"]["arguments"].update(hidden=[4000] * 999), "far more numbers"),
    "many latents": (lambda c: c["model"]["arguments"]["prior"]["arguments"].update(latent_dim=HUGE), "far more numb"),
    "large data": (lambda c: c["data"].update(shape=[HUGE, HUGE]), "data.shape .* does not fit"),
    "other data": (lambda c: c["data"].update(shape=["x"]), "data.shape must be sizes"),
    "another width": (
        lambda c: c["model"]["arguments"]["decoder"]["arguments"].update(hidden=[33]),
        r"decoder\.network\.0\.bias is \(32,\) there and \(33,\) in this model",
    ),
    "no VAE": (lambda c: c.update(model=c["model"]["arguments"]["prior"]), "must be a VAE, got SpikeSlabPrior"),
    "no gates": (lambda c: c.update(gates={}), r"gates must describe encoder\.gate, got"),
    "no gate": (
        lambda c: c["gates"].update({"encoder.gate": {"class": "NormalPrior", "arguments": {"latent_dim": 1}}}),
        "must be a gate, got a NormalPrior",
    ),
    "no modes": (lambda c: c.pop("training"), "training must be true, false or names"),
}


@pytest.mark.parametrize("name", EDITS)
def test_hostile_configs_are_refused(kept, name):
    change, message = EDITS[name]
    edited(kept, change)
    with pytest.raises(ValueError, match=f"^the model in {kept} was not read: .*{message}"):
        vsc.load(kept)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": NaN}', "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900])
def test_configs_that_are_none_are_refused(kept, text):
    (kept / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config"):
        vsc.load(kept)


def test_other_files(kept, tmp_path):
    weights = kept / "weights.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"weights\.pt is no checkpoint, or is truncated or corrupt"):
        vsc.load(kept)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights\.pt in"):
        vsc.load(kept)
    with pytest.raises(FileNotFoundError, match=r"nothing at .*nothing; model\.save writes a folder"):
        vsc.load(tmp_path / "nothing")
    (kept / "config.json").write_bytes(b"\xff")
    weights.write_bytes(whole)
    with pytest.raises(ValueError, match="is damaged: no text"):
        vsc.load(kept)


def test_hostile_weights_do_not_run(kept, capsys):
    torch.save({"format": 2, "model": Malicious()}, kept / "weights.pt")
    with pytest.raises(ValueError, match="could run code"):
        vsc.load(kept)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["model"].pop("encoder.offset", None) or state["model"].popitem(), "is absent there"),
        (lambda state: state["model"].update({"decoder.network.0.bias": torch.full((32,), torch.nan)}), "not finite"),
        (lambda state: state["buffers"].pop("beta"), "beta is absent there"),
        (lambda state: state["buffers"].update(beta=torch.tensor([1.0])), r"beta is \(1,\) there"),
        (lambda state: state["model"].update(w=torch.zeros(1).expand(HUGE)), "w has fewer numbers than entries"),
        (lambda state: state.pop("arguments"), "arguments must be tensors by name"),
        (lambda state: state.update(model=[1]), "model must be tensors by name"),
    ],
)
def test_weights_that_do_not_fit_are_refused(kept, change, message):
    state = vsc.load_checkpoint(kept / "weights.pt")
    change(state)
    vsc.save_checkpoint(kept / "weights.pt", state)
    with pytest.raises(ValueError, match=message):
        vsc.load(kept)


def test_a_checkpoint_of_a_model_that_was_changed_does_not_describe_it(small_vae, tmp_path, digits):
    changed, hooked = small_vae(), small_vae()
    changed.decoder.network[1] = torch.nn.Tanh()
    for name, model in {"changed": changed, "hooked": hooked}.items():
        if model is hooked:
            vsc.fit(model, digits.train[:50], epochs=1, progress=False)
            model.encoder.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
        path = tmp_path / f"{name}.pt"
        vsc.fit(model, digits.train[:50], epochs=1, progress=False, checkpoint=path)
        with pytest.raises(ValueError, match="does not describe its model"):
            vsc.load(path)
        with pytest.raises(ValueError, match="files would not describe this model"):
            model.save(tmp_path / name)


def test_numbers_of_numpy_are_numbers(tmp_path):
    decoder = vsc.NormalDecoder(4, np.array([1, 4, 4]), hidden=np.array([8]), scale=np.float32(0.2), variance="fixed")
    prior = vsc.SpikeSlabPrior(4, np.float64(0.3), learn_inclusion=np.bool_(True), slab=np.str_("normal"))
    model = vsc.VAE(vsc.SpikeSlabEncoder((1, 4, 4), 4, hidden=np.int64(8)), decoder, prior)
    again = vsc.load(model.save(tmp_path / "kept"))
    assert torch.equal(again.decoder(torch.ones(1, 4)).mean, model.decoder(torch.ones(1, 4)).mean)


def test_folders_keep_their_mode_and_the_working_directory_stays(small_vae, tmp_path, monkeypatch):
    (tmp_path / "private").mkdir(0o700)
    assert small_vae().save(tmp_path / "private").stat().st_mode & 0o777 == 0o700
    monkeypatch.chdir(tmp_path / "private")
    for directory in (".", "", tmp_path):
        with pytest.raises(ValueError, match=r"directory must be a folder of its own, got .* the working directory"):
            small_vae().save(directory, overwrite=True)
    with pytest.raises(ValueError, match="evaluation must be what evaluate or evaluate_dictionary returned, got a str"):
        small_vae().save(tmp_path / "other", evaluation="good")


@vsc.register
class Holding(torch.nn.Module):
    def __init__(self, held, out_features=4):
        super().__init__()
        self.map, self.held, self.out_features = torch.nn.Linear(6, out_features), held, out_features

    def forward(self, x):
        return self.map(x)


@vsc.register
class WithState(Holding):
    def get_extra_state(self):
        return {"count": 3}

    def set_extra_state(self, state):
        pass


def holding(held, cls=Holding):
    return vsc.VAE(vsc.NormalEncoder(6, 2, trunk=cls(held)), vsc.NormalDecoder(2, 6), vsc.NormalPrior(2))


def test_sparse_arguments_and_extra_state_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"trunk\.held is a tensor .*sparse.*, and files hold dense tensors"):
        holding(torch.eye(3).to_sparse()).save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"_extra_state is \{'count': 3\}, and files hold dense tensors"):
        holding(1, WithState).save(tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held", [torch.arange(4000.0), np.arange(4000)])
def test_no_change_of_an_attribute_is_too_small_or_too_far_inside_to_be_seen(held, tmp_path):
    model = holding(held)
    model.save(tmp_path / "a")
    model.encoder.network[0].held[2000] += 1
    with pytest.raises(ValueError, match=r"changed after it was built: .*held is .* delete an attribute"):
        model.save(tmp_path / "b")


def test_a_shape_of_a_tensor_is_a_tuple_of_sizes(tmp_path):
    assert vsc.load(holding(torch.ones(2, 3).shape).save(tmp_path / "a")).encoder.network[0].held == (2, 3)
