"""Pages about a model, as files: what they hold, what is refused, and what is never overwritten."""

import base64
import json
import re

import arviz
import pytest
import torch
from matplotlib.image import imread
from pyro.distributions import Laplace, Normal
from sklearn.datasets import load_breast_cancer
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.pages.files import write_page
from vsc_pyro.pages.sections import features, single_codes


def build(shape=9, decoder=None, latents=4):
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder(shape, latents, 10, initial_inclusion=0.5)
    decoder = decoder or vsc.NormalDecoder(latents, shape, 10)
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(latents, 0.5))


def held_by(page):
    return json.loads(re.search(r'<script id="run" type="application/json">(.*)</script>', page.read_text())[1])


class Custom(nn.Module):
    """A decoder that changes what another one gives."""

    def __init__(self, change, decoder=None):
        super().__init__()
        self.decoder = decoder or vsc.NormalDecoder(4, 9, 10)
        self.network, self.change = self.decoder.network, change

    def forward(self, z):
        return self.change(self.decoder, z)


# explore --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "picture"),
    [
        ((36,), {}, {"size": 36}),
        ((1, 36), {}, {"size": 36}),
        ((36,), {"image_shape": (4, 9)}, {"size": 36, "channels": 1, "height": 4, "width": 9}),
        ((36,), {"image_shape": (3, 4, 3)}, {"size": 36, "channels": 3, "height": 4, "width": 3}),
        ((4, 9), {}, {"size": 36, "channels": 1, "height": 4, "width": 9}),
        ((3, 4, 3), {}, {"size": 36, "channels": 3, "height": 4, "width": 3}),
        ((4, 9), {"names": [*map(str, range(36))]}, {"size": 36}),
        ((4, 3, 3), {}, {"size": 36}),
    ],
)
def test_images_are_pictures_and_all_else_are_vectors(tmp_path, shape, options, picture):
    page = vsc.explore(build(shape), torch.randn(5, *shape), tmp_path / "page.html", **options)
    found = held_by(page)["picture"]
    assert {name: found[name] for name in picture} == picture
    assert ("width" in found) == ("width" in picture)


def test_ink_is_dark_and_photographs_are_bright(tmp_path, digits):
    model, page = build((1, 8, 8)), tmp_path / "page.html"
    grey = 0.2 + 0.6 * digits.test.images
    for data, options, dark in (
        (digits.test.images, {}, True),
        (grey, {}, False),
        (grey, {"ink": True}, True),
        (digits.test.images, {"ink": False}, False),
        (3 * digits.test.images, {}, False),
    ):
        assert held_by(vsc.explore(model, data, page, overwrite=True, **options))["picture"]["ink"] == dark


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (
            lambda: vsc.BernoulliDecoder(4, (1, 8, 8), trunk=vsc.DeconvTrunk((1, 8, 8), 4, 8)),
            "decoder is not one that a browser can run, got DeconvTrunk",
        ),
        (lambda: Custom(lambda decoder, z: decoder(2 * z)), "computes something else than its layers"),
        (
            lambda: Custom(lambda decoder, z: Normal(decoder(z).mean, z.exp().sum(-1, True)).to_event(1)),
            "returns a scale that depends on the code",
        ),
        (
            lambda: Custom(lambda decoder, z: Laplace(decoder(z).mean, 1.0).to_event(1)),
            "a likelihood, Laplace, that the page does",
        ),
    ],
    ids=["trunk", "changed", "scale", "likelihood"],
)
def test_a_decoder_that_no_browser_can_run_is_refused_with_what_does(tmp_path, decoder, reason):
    decoder = decoder()
    shape = getattr(decoder, "output_shape", (9,))
    with pytest.raises(ValueError, match=rf"{reason}.*linear map, or linear layers .* vsc_pyro\.report supports"):
        vsc.explore(build(shape, decoder), torch.rand(5, *shape), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_an_activation_of_other_settings_is_refused(tmp_path):
    model = build()
    model.decoder.network[1] = nn.LeakyReLU(0.5)
    with pytest.raises(ValueError, match="computes something else than its layers in sequence"):
        vsc.explore(model, torch.randn(5, 9), tmp_path / "page.html")
    model.decoder.network[1] = nn.Sigmoid()
    with pytest.raises(ValueError, match=r"got Sigmoid: vsc_pyro\.explore runs the decoder in the page"):
        vsc.explore(model, torch.randn(5, 9), tmp_path / "page.html")


def test_what_does_not_fit_is_named(tmp_path):
    model, data, page = build(), torch.randn(5, 9), tmp_path / "page.html"
    with pytest.raises(ValueError, match="names must hold one name for each of 9 features, got 2; pass 9"):
        vsc.explore(model, data, page, names=["a", "b"])
    with pytest.raises(ValueError, match=r"image_shape must be the height and width, .* of 9 pixels, got \(2, 2\)"):
        vsc.explore(model, data, page, image_shape=(2, 2))
    with pytest.raises(ValueError, match="num_data must be a whole number of at least 1, got 0"):
        vsc.explore(model, data, page, num_data=0)
    assert not list(tmp_path.iterdir())


def test_a_page_is_replaced_only_on_demand(tmp_path):
    model, data, page = build(), torch.randn(5, 9), tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(FileExistsError, match=r"page\.html' exists; pass overwrite=True to replace it, or another"):
        vsc.explore(model, data, page)
    with pytest.raises(ValueError, match="names must hold"):
        vsc.explore(model, data, page, names=[], overwrite=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    assert vsc.explore(model, data, page, overwrite=True) == page
    assert "<!DOCTYPE html>" in page.read_text()


def test_pieces_of_a_page_are_never_taken_for_its_template(tmp_path):
    page = write_page(tmp_path / "page.html", "report.html", {"title": "{{body}}", "heading": "x", "body": "{{title}}"})
    assert page.read_text().count("{{body}}") == page.read_text().count("{{title}}") == 1


# report ---------------------------------------------------------------------------------------------------------------

# ArviZ 0.23 with matplotlib 3.11, and with pandas 3.1.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values"),
]


def table(num=40):
    table = load_breast_cancer()
    x = torch.tensor((table.data - table.data.mean(0)) / table.data.std(0)).float()
    return vsc.Dataset(x[:num], torch.tensor(table.target[:num]), name="tissue"), list(table.feature_names)


def sentences(page):
    return re.findall("<(?:p|h2)[^>]*>(.*?)</", re.sub('src="[^"]*"', "", page.read_text()))


@pytest.mark.slow
def test_a_report_on_a_table_is_whole(tmp_path, unpainted):
    data, names = table()
    model = build(30, vsc.NormalDecoder(4, 30, hidden=()))
    other = build(30, vsc.NormalDecoder(4, 30, hidden=()))
    page, folder = tmp_path / "report.html", tmp_path / "files"
    options = {
        "names": names,
        "files": folder,
        "num_samples": 20,
        "num_data": 3,
        "unseen": {"noise": torch.randn(9, 30)},
    }
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert vsc.report(model, data, page, settings={"made": "by hand"}, compare={"other": other}, **options) == page
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    text = page.read_text()
    figures = sorted(folder.glob("*.png"))
    assert text.count('<img src="data:image/png;base64,') == text.count("<img") == len(figures) > 15
    for figure in figures:
        assert base64.b64encode(figure.read_bytes()).decode() in text
    assert {file.name for file in folder.iterdir()} <= {*vsc.pages.REPORT_FILES}
    assert not [sentence for sentence in sentences(page) if "left out" in sentence]
    assert "://" not in text
    assert "{{" not in text
    shown = re.sub('src="[^"]*"', "", text)
    assert all(f"<td>{name}</td>" in shown for name in names)
    assert all(words in shown for words in ("tissue, 4 latents", "by hand", "noise", "other", "ELBO"))
    loaded = arviz.from_netcdf(folder / "posterior.nc")
    assert loaded["posterior"]["active"].shape == (1, 20, 3, 4)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    with pytest.raises(FileExistsError, match=r"report\.html' exists; pass overwrite=True"):
        vsc.report(model, data, page)
    with pytest.raises(FileExistsError, match=r"contains files of a report \(posterior\.nc\); pass overwrite=True"):
        vsc.report(model, data, tmp_path / "new.html", files=folder)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_figures_are_painted(tmp_path, monkeypatch):
    monkeypatch.setattr("vsc_pyro.pages.sections.SECTIONS", (single_codes,))
    vsc.report(build((1, 8, 8)), torch.rand(5, 1, 8, 8), tmp_path / "report.html", files=tmp_path, num_data=2)
    figures = list(tmp_path.glob("*.png"))
    assert figures
    assert all(imread(figure).std() > 0.01 for figure in figures)


def test_the_share_of_a_feature_that_is_explained_is_computed_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("vsc_pyro.pages.sections.SECTIONS", (features,))
    x = torch.randn(30, 9)
    model = build()
    page = vsc.report(model, x, tmp_path / "report.html")
    with model.evaluating():
        decoded = model.decoder(vsc.codes(model, x).hard).mean
    share = 1 - (x - decoded).square().sum(0) / (x - x.mean(0)).square().sum(0)
    shown = re.search(r"<th>R2</th>.*?</table>", page.read_text(), flags=re.DOTALL)[0]
    rows = [re.findall("<td>(.*?)</td>", row) for row in shown.split("<tr>")[1:]]
    assert [int(row[0]) for row in rows] == share.argsort(descending=True).tolist()
    assert [float(row[3]) for row in rows] == pytest.approx(share.sort(descending=True).values.tolist(), rel=1e-4)


def pseudo_inputs(shape):
    encoder = vsc.SpikeSlabEncoder(shape, 1, 10)
    prior = vsc.PseudoInputPrior(encoder, 3)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(1, shape, 10), prior)
    model.prepare(torch.rand(20, *shape))
    return model


CASES = {
    "colour images, dense, two latents": (
        lambda: vsc.VAE(vsc.NormalEncoder((3, 4, 4), 2), vsc.NormalDecoder(2, (3, 4, 4)), vsc.NormalPrior(2)),
        (3, 4, 4),
        ["has no spikes", "Decoded codes of the two latents"],
    ),
    "points": (
        lambda: vsc.VAE(vsc.DeltaEncoder(9, 3), vsc.NormalDecoder(3, 9), vsc.FlatPrior(3)),
        (9,),
        ["The traversal and .* left out: the prior is flat", "Calibration is left out", "Bounds are left out"],
    ),
    "pseudo-inputs, one latent": (lambda: pseudo_inputs((1, 4, 4)), (1, 4, 4), ["Pseudo-inputs"]),
    "trunk": (
        lambda: build((1, 8, 8), vsc.BernoulliDecoder(4, (1, 8, 8), trunk=vsc.DeconvTrunk((1, 8, 8), 4, 8))),
        (1, 8, 8),
        ["How much each latent is used"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_model_is_reported_on_and_what_it_has_not_is_said(tmp_path, unpainted, case):
    make, shape, expected = CASES[case]
    torch.manual_seed(0)
    page = vsc.report(make(), torch.rand(12, *shape), tmp_path / "report.html", num_samples=5)
    said = sentences(page) + re.findall("<figcaption>(.*?)</", page.read_text())
    for pattern in expected:
        assert any(re.search(pattern, sentence) for sentence in said), (pattern, said)
    left_out = [sentence for sentence in said if "left out" in sentence]
    assert len(left_out) == sum("left out" in pattern for pattern in expected) or case == "points", left_out
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_report_that_fails_leaves_the_one_it_was_to_replace(tmp_path, unpainted, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    page = tmp_path / "report.html"
    page.write_text("mine")
    monkeypatch.setattr("vsc_pyro.pages.sections.SECTIONS", (full,))
    with pytest.raises(OSError, match="No space"):
        vsc.report(build(), torch.randn(5, 9), page, overwrite=True)
    with pytest.raises(ValueError, match="names must hold one name for each of 9 features, got 1"):
        vsc.report(build(), torch.randn(5, 9), page, overwrite=True, names=["a"])
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
