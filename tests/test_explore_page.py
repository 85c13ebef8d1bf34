"""The page that `vsc_pyro.explore` writes, used in a browser as a reader uses it: it decodes as the model does."""

import contextlib
import copy
import json
import re
import shutil
import subprocess
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import torch
from conftest import assert_mean_equals
from pyro.distributions import Normal
from sklearn.datasets import load_breast_cancer

import vsc_pyro as vsc
from vsc_pyro.distributions import get_slab
from vsc_pyro.models.decoders import CrossEntropyBernoulli, StableContinuousBernoulli
from vsc_pyro.models.networks import ACTIVATIONS
from vsc_pyro.pages.browser_decoder import ACTIVATION_SOURCES, DRAW_SOURCES, LIKELIHOODS

ARROW_RIGHT = "\ue014"


class Browser:
    """Chromium, by chromedriver and the W3C's WebDriver protocol."""

    def __init__(self, address):
        self.address = f"{address}/session"
        self.opener = build_opener(ProxyHandler({}))  # it is on this machine, whatever the environment says

    def __call__(self, path, method="POST", **body):
        request = Request(self.address + path, json.dumps(body).encode() if method == "POST" else None, method=method)
        try:
            with self.opener.open(request, timeout=60) as response:
                return json.load(response)["value"]
        except HTTPError as error:
            raise RuntimeError(f"{method} {path} {body}: {error.read().decode()}") from error

    def start(self, *arguments):
        options = {"binary": shutil.which("chromium"), "args": arguments}
        logs = {"browser": "ALL", "performance": "ALL"}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        self.address += "/" + self("", capabilities={"alwaysMatch": capabilities})["sessionId"]

    def open(self, page):
        self("/url", url=page.as_uri())

    def run(self, script, *arguments):
        return self("/execute/sync", script=script, args=arguments)

    def find(self, css):
        return "/element/" + next(iter(self("/element", using="css selector", value=css).values()))

    def click(self, css):
        self(f"{self.find(css)}/click")

    def press(self, css, keys):
        self(f"{self.find(css)}/value", text=keys)

    @contextlib.contextmanager
    def of_size(self, width, height):
        """A window of that size within, as of a telephone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)
        try:
            yield
        finally:
            self("/goog/cdp/execute", cmd="Emulation.clearDeviceMetricsOverride", params={})

    def log(self, kind):
        return self("/se/log", type=kind)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser on this machine: install Debian's packages chromium and chromium-driver")
    profile = tmp_path_factory.mktemp("profile")
    command = [shutil.which("chromedriver"), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        try:
            ports = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
            browser = Browser(f"http://127.0.0.1:{next(filter(None, ports))[1]}")
            headless = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
            browser.start(*headless, "--window-size=1300,900", f"--user-data-dir={profile}")
            yield browser
            browser("", "DELETE")
        finally:
            driver.terminate()


NAMES = tuple(load_breast_cancer().feature_names)


def build(shape, dense=False, decoder=vsc.BernoulliDecoder, slab="normal", **of_decoder):
    """An untrained model of six latents; half of its spikes are on, and which depends on the datum."""
    torch.manual_seed(1)
    if dense:
        encoder, prior = vsc.NormalEncoder(shape, 6, 20), vsc.NormalPrior(6)
    else:
        encoder = vsc.SpikeSlabEncoder(shape, 6, 20, initial_inclusion=0.5, slab=slab)
        prior = vsc.SpikeSlabPrior(6, 0.5, slab=slab)
        with torch.no_grad():
            encoder.network[-1].weight *= 8
    return vsc.VAE(encoder, decoder(6, shape, **of_decoder), prior)


def digits_of(binarize):
    return vsc.datasets.load("digits", binarize=binarize).test


def table():
    table = load_breast_cancer()
    x = torch.tensor((table.data - table.data.mean(0)) / table.data.std(0)).float()
    return vsc.Dataset(x[:60], torch.tensor(table.target[:60]))


def colours():
    return vsc.Dataset(torch.rand(20, 3, 5, 4, generator=torch.Generator().manual_seed(0)))


CASES = {
    "binary": (lambda: digits_of("dynamic"), {"activation": "silu", "hidden": 20}),
    "grey": (
        lambda: digits_of(None),
        {"decoder": vsc.ContinuousBernoulliDecoder, "slab": "cauchy", "activation": "tanh", "hidden": (20, 10)},
    ),
    "dense": (lambda: digits_of(None), {"dense": True, "activation": "gelu", "hidden": 20}),
    "table": (table, {"decoder": vsc.NormalDecoder, "hidden": (), "scale": 0.7, "variance": "per-pixel"}),
    "colours": (colours, {"decoder": vsc.NormalDecoder, "slab": "laplace", "hidden": 20}),
}


@pytest.fixture(scope="module")
def model():
    return build((1, 8, 8), hidden=20)


@pytest.fixture
def page(model, digits, tmp_path):
    return vsc.explore(model, digits.test, tmp_path / "page.html", num_data=3)


def check_decoded(browser, decoder, picture):
    """The page's code, after a check that its numbers and its picture are what `decoder`, in float64, makes of it."""
    code, decoded, painted = browser.run(
        "const canvas = document.getElementById('drawn');"
        "const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');"
        "copy.drawImage(canvas, 0, 0);"
        "const picture = copy.getImageData(0, 0, canvas.width, canvas.height).data;"
        "const painted = run.picture.width ? picture : new Set(new Uint32Array(picture.buffer));"
        "return [window.code, window.decoded, Array.from(painted)]"
    )
    code, decoded = (torch.tensor(numbers, dtype=torch.float64) for numbers in (code, decoded))
    torch.testing.assert_close(decoded, decoder(code).mean.flatten(), rtol=0, atol=1e-9)
    if "width" in picture:
        levels = torch.tensor(painted).reshape(-1, 4)[:, :3].T / 255
        expected = decoded.reshape(picture["channels"], -1).expand(3, -1).clamp(0, 1)
        assert (levels - (1 - expected if picture["ink"] else expected)).abs().max() < 0.51 / 255
    else:
        assert len(painted) > 2  # colours: of bars, of zero and of nothing
        shown = browser.run("return [...document.querySelectorAll('#values tr td:last-child')].map(d => d.textContent)")
        assert [float(text.replace("−", "-")) for text in shown] == pytest.approx(decoded.tolist(), rel=0.0051)
    return code


@pytest.mark.parametrize("case", CASES)
def test_the_page_starts_at_the_posterior_and_decodes_what_is_set(browser, tmp_path, case):
    make, parts = CASES[case]
    data = make()
    model = build(tuple(data.images.shape[1:]), **parts)
    names = NAMES if case == "table" else None
    file = vsc.explore(model, data, tmp_path / "page.html", num_data=5, names=names, seed=1)
    decoder = copy.deepcopy(model.decoder).double()
    for kind in ("browser", "performance"):  # of tests before this one
        browser.log(kind)
    browser.open(file)
    dense = case == "dense"
    assert ("every latent is always on" in browser.run("return document.body.innerText")) == dense
    if not dense:
        browser.click("#all")
    picture = browser.run("return run.picture")
    assert ("width" in picture) == (case != "table")
    assert picture.get("ink", False) == (case not in ("table", "colours"))
    ever_on = 0
    for index in (0, 3, 1):
        browser.run("document.querySelector(arguments[0]).click()", f"#data label:nth-of-type({index + 1})")
        chosen, datum, seen = browser.run("return [chosen, run.indices[chosen], rowOf(seen, chosen, numPixels)]")
        assert chosen == index
        image = data.images[datum]
        seen = torch.tensor(seen, dtype=torch.float32).reshape(1, *image.shape)
        assert ((image - seen).abs() < (1 if data.binarize else 1e-6)).all()  # never off where a pixel is 0 or 1
        with model.evaluating():
            posterior = model.encoder(seen).base_dist
        on = torch.ones(6) if dense else posterior.probs[0] > 0.5
        centre = (posterior if dense else posterior.slab).loc[0]
        start = check_decoded(browser, decoder, picture)
        torch.testing.assert_close(start.float(), on * centre)
        ever_on += int(on.sum())

        for latent in (index, 5):
            browser.run("document.querySelector(arguments[0]).click()", f"#on-{latent}")
            toggled = check_decoded(browser, decoder, picture)
            expected = start.clone()
            expected[latent] = 0 if on[latent] else centre[latent]
            torch.testing.assert_close(toggled.float(), expected.float())
            assert toggled[latent] != start[latent]
            start = toggled
        browser.press("#value-2", 3 * ARROW_RIGHT)
        moved = check_decoded(browser, decoder, picture)
        assert moved[2] > centre[2] + 0.1
        assert browser.run("return document.getElementById('on-2').checked")
        status = browser.run("return document.getElementById('status').textContent").replace("−", "-")
        likelihoods = [float(number) for number in re.findall(r"(-?\d+\.\d\d)(?: nats|\))", status)]
        codes = torch.stack([moved, (on * centre).double()])
        assert likelihoods == pytest.approx(decoder(codes).log_prob(seen.double()).tolist(), abs=0.006)

        browser.click("#redraw")
        assert (check_decoded(browser, decoder, picture) != moved).any()
        browser.click("#reset")
        torch.testing.assert_close(check_decoded(browser, decoder, picture).float(), on * centre)
    assert ever_on == 18 if dense else 0 < ever_on < 18
    assert browser.log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    fetched = {url for url in asked if not url.startswith(("data:", "chrome:"))}  # the browser's own first tab
    assert fetched == {file.as_uri()}


@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize("case", ["binary", "table"])
def test_a_page_fits_a_telephone_and_a_screen(browser, tmp_path, case, width):
    make, parts = CASES[case]
    data = make()
    names = NAMES if case == "table" else None
    file = vsc.explore(
        build(tuple(data.images.shape[1:]), **parts),
        data,
        tmp_path / "page.html",
        names=names,
        title="a_very_long_name_of_a_data_set_that_has_no_place_to_break",
        settings={"a_long_name_of_a_setting": 0.5, "another": "x" * 60},
    )
    with browser.of_size(width, 844):
        browser.open(file)
        browser.click("#facts summary")
        assert browser.run("return innerWidth") == width
        assert browser.run("return document.scrollingElement.scrollWidth") <= width
        inside = (
            "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.left, box.right]"
        )
        for css in ("#drawn", "#on-2", "#value-2", "#redraw", "#facts"):
            left, right = browser.run(inside, css)
            assert 0 <= left < right <= width, css


def test_rare_latents_are_listed_on_demand(browser, model, digits, tmp_path):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.encoder.network[-1].weight *= 4
    browser.open(vsc.explore(model, digits.test, tmp_path / "page.html"))
    visible = "return gammas.length && [...document.querySelectorAll('#latents tr')].map(row => !row.hidden)"
    likely = "return rowOf(gammas, chosen, run.latents).sort((a, b) => b - a).map(gamma => gamma > LISTED_ABOVE)"
    assert browser.run(visible) == browser.run(likely)
    assert not all(browser.run(visible))
    browser.click("#all")
    assert all(browser.run(visible))


def test_of_many_features_those_that_the_code_moves_most_are_listed(browser, tmp_path):
    model = build(100, decoder=vsc.NormalDecoder, hidden=())
    data = torch.randn(10, 100, generator=torch.Generator().manual_seed(0))
    names = [f"gene {i}" for i in range(100)]
    browser.open(vsc.explore(model, data, tmp_path / "page.html", names=names))
    listed = browser.run("return [...document.querySelectorAll('#values th')].map(name => name.textContent)")
    code = torch.tensor(browser.run("return window.code"))
    moved = (code @ model.decoder.dictionary.detach()).abs().argsort(descending=True)[:20]
    assert listed == [names[i] for i in moved.tolist()]


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        (vsc.DeltaEncoder(9, 6, 20), "This posterior is a point: there is nothing to draw from it."),
        (vsc.ThresholdEncoder(9, 6, 20, base="normal"), "Draws of the family ShiftedNormalTails are not among those"),
    ],
)
def test_what_cannot_be_drawn_from_is_said(browser, tmp_path, encoder, sentence):
    prior = vsc.FlatPrior(6) if isinstance(encoder, vsc.DeltaEncoder) else vsc.SpikeSlabPrior(6)
    model = vsc.VAE(encoder, vsc.NormalDecoder(6, 9, 20), prior)
    browser.open(vsc.explore(model, torch.randn(5, 9), tmp_path / "page.html"))
    assert sentence in browser.run("return document.body.innerText")
    assert browser.run("return getComputedStyle(document.getElementById('redraw')).display") == "none"


def test_the_page_can_do_every_activation(browser, page):
    browser.open(page)
    assert ACTIVATION_SOURCES.keys() == ACTIVATIONS.keys()
    x = torch.cat([torch.linspace(-40, 40, 801), torch.linspace(-1e-3, 1e-3, 11)]).double()
    for name, source in ACTIVATION_SOURCES.items():
        y = browser.run(f"return arguments[0].map({source})", x.tolist())
        torch.testing.assert_close(torch.tensor(y, dtype=x.dtype), ACTIVATIONS[name]()(x), rtol=1e-9, atol=1e-13)


def test_the_page_can_do_every_likelihood(browser, page):
    browser.open(page)
    y = torch.cat([torch.linspace(-40, 40, 161), torch.linspace(-1e-3, 1e-3, 11)]).double()
    kinds = {
        "CrossEntropyBernoulli": CrossEntropyBernoulli(logits=y),
        "StableContinuousBernoulli": StableContinuousBernoulli(logits=y),
        "Normal": Normal(y, 0.3),
    }
    assert kinds.keys() == LIKELIHOODS.keys()
    for name, likelihood in LIKELIHOODS.items():
        source = (
            f"[arguments[0].map({likelihood.mean}), arguments[0].map(y => ({likelihood.log_density})(0.25, y, 0.3))]"
        )
        means, densities = browser.run(f"return {source}", y.tolist())
        torch.testing.assert_close(torch.tensor(means, dtype=y.dtype), kinds[name].mean, rtol=1e-8, atol=1e-10)
        expected = kinds[name].log_prob(torch.full_like(y, 0.25))
        torch.testing.assert_close(torch.tensor(densities, dtype=y.dtype), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", DRAW_SOURCES)
def test_the_page_draws_from_every_slab(browser, page, family):
    browser.open(page)
    draws = browser.run(f"return Array.from({{length: 10000}}, {DRAW_SOURCES[family]})")
    uniform = get_slab(family.lower())(0.0, 1.0).cdf(torch.tensor(draws, dtype=torch.float32))
    assert_mean_equals(torch.stack([uniform, uniform**2, (uniform < 0.05).float()], 1), [1 / 2, 1 / 3, 0.05])


@pytest.mark.slow
def test_the_page_follows_its_seed_and_no_text_of_a_run_is_code(browser, model, digits, tmp_path):
    text = "</script><script>window.injected = true</script>{{draw}}"
    shown = []
    for seed in (1, 1, 2):
        facts = {"title": text, "settings": {"device": text}}
        page = vsc.explore(model, digits.test, tmp_path / "page.html", num_data=10, seed=seed, overwrite=True, **facts)
        browser.open(page)
        shown.append(browser.run("return [run.indices, run.seen]"))
        assert browser.run("return window.injected") is None
        assert text in browser.run("return document.getElementById('settings').textContent")
        assert text in browser.run("return document.title")
    assert shown[0] == shown[1] != shown[2]
