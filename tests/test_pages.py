"""Pages about a model, as files: what they hold, what is refused, and what is never overwritten."""

import json
import re

import pytest
import torch
from pyro.distributions import Laplace, Normal
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.pages.files import write_page


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
            "has a scale that depends on the code",
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
    with pytest.raises(ValueError, match=rf"{reason}.*linear map, or linear layers .* vsc_pyro\.report draws"):
        vsc.explore(build(shape, decoder), torch.rand(5, *shape), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_an_activation_of_other_settings_is_refused(tmp_path):
    model = build()
    model.decoder.network[1] = nn.LeakyReLU(0.5)
    with pytest.raises(ValueError, match="computes something else than its layers do"):
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
