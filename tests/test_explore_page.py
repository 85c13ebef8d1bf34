"""The page that examples/explore.py writes, used in a browser as a reader uses it: it decodes as the model does."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import torch
from conftest import assert_mean_equals

from vsc_pyro.distributions import get_slab
from vsc_pyro.networks import ACTIVATIONS

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import explore
import mnist_vsc

SMALL = "--dataset digits --epochs 2 --hidden 20 --iwae-draws 2 --device cpu --quiet --latent-dim".split()
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


def train(folder, latent_dim, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_vsc, "FIGURES", ())  # which take longer than all else
        mnist_vsc.main([*SMALL, str(latent_dim), "--output", str(folder), *arguments])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"), 4)


@pytest.fixture
def page(trained, tmp_path):
    explore.main([str(trained), "--num-data", "3", "--output", str(tmp_path / "page.html")])
    return tmp_path / "page.html"


def check_decoded(browser, decoder):
    """The page's code, after a check that its numbers and its picture are what `decoder`, in float64, makes of it."""
    code, decoded, painted = browser.run(
        "const canvas = document.getElementById('drawn');"
        "const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');"
        "copy.drawImage(canvas, 0, 0);"
        "const picture = copy.getImageData(0, 0, canvas.width, canvas.height).data;"
        "return [window.code, window.decoded, Array.from(picture)]"
    )
    code, decoded = (torch.tensor(numbers, dtype=torch.float64) for numbers in (code, decoded))
    torch.testing.assert_close(decoded, decoder(code).mean.flatten(), rtol=0, atol=1e-9)
    ink = 1 - torch.tensor(painted).reshape(-1, 4)[:, :3] / 255
    assert (ink - decoded[:, None]).abs().max() < 0.51 / 255
    return code


@pytest.mark.parametrize(
    "arguments",
    [
        ("--inclusion", "0.4", "--epochs", "30", "--decoder-activation", "silu"),
        ("--prior", "pseudo-input", "--hidden", "20", "10", "--slab", "cauchy"),
        ("--prior", "normal", "--decoder-activation", "gelu", "--binarize", "none"),
    ],
    ids=["spike-slab", "pseudo-input", "normal"],
)
def test_the_page_starts_at_the_posterior_and_decodes_what_is_set(browser, tmp_path, arguments):
    run = train(tmp_path / "run", 6, *arguments)
    explore.main([str(run), "--num-data", "5", "--seed", "1"])
    model, _, _, _, test = mnist_vsc.load_run(run)
    decoder = copy.deepcopy(model.decoder).double()
    for kind in ("browser", "performance"):  # of tests before this one
        browser.log(kind)
    browser.open(run / "explore.html")
    dense = "normal" in arguments
    assert ("every latent is always on" in browser.run("return document.body.innerText")) == dense
    if not dense:
        browser.click("#all")
    ever_on = 0
    for index in (0, 3, 1):
        browser.click(f"#data label:nth-of-type({index + 1})")
        chosen, datum, seen = browser.run("return [chosen, run.indices[chosen], rowOf(seen, chosen, numPixels)]")
        assert chosen == index
        image, seen = test.images[datum], torch.tensor(seen, dtype=torch.float32).reshape(1, 1, 8, 8)
        assert ((image - seen).abs() < (1 if test.binarize else 1e-6)).all()  # never off where a pixel is 0 or 1
        with model.evaluating():
            posterior = model.encoder(seen).base_dist
        on = torch.ones(6) if dense else posterior.probs[0] > 0.5
        centre = (posterior if dense else posterior.slab).loc[0]
        start = check_decoded(browser, decoder)
        torch.testing.assert_close(start.float(), on * centre)
        ever_on += int(on.sum())

        for latent in (index, 5):
            browser.click(f"#on-{latent}")
            toggled = check_decoded(browser, decoder)
            expected = start.clone()
            expected[latent] = 0 if on[latent] else centre[latent]
            torch.testing.assert_close(toggled, expected)
            assert toggled[latent] != start[latent]
            start = toggled
        browser.press("#value-2", 3 * ARROW_RIGHT)
        moved = check_decoded(browser, decoder)
        assert moved[2] > centre[2] + 0.1
        assert browser.run("return document.getElementById('on-2').checked")
        status = browser.run("return document.getElementById('status').textContent").replace("−", "-")
        likelihoods = [float(number) for number in re.findall(r"(-\d+\.\d\d)(?: nats|\))", status)]
        codes = torch.stack([moved, (on * centre).double()])
        assert likelihoods == pytest.approx(decoder(codes).log_prob(seen.double()).tolist(), abs=0.006)

        browser.click("#redraw")
        assert (check_decoded(browser, decoder) != moved).any()
        browser.click("#reset")
        torch.testing.assert_close(check_decoded(browser, decoder).float(), on * centre)
    assert ever_on == 18 if dense else ever_on < 18
    assert ever_on > 0 or "pseudo-input" in arguments
    assert browser.log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    fetched = {url for url in asked if not url.startswith(("data:", "chrome:"))}  # the browser's own first tab
    assert fetched == {(run / "explore.html").as_uri()}


def test_rare_latents_are_listed_on_demand(browser, page):
    browser.open(page)
    visible = "return gammas.length && [...document.querySelectorAll('#latents tr')].map(row => !row.hidden)"
    likely = "return rowOf(gammas, chosen, run.latents).sort((a, b) => b - a).map(gamma => gamma > LISTED_ABOVE)"
    assert browser.run(visible) == browser.run(likely)
    assert not all(browser.run(visible))
    browser.click("#all")
    assert all(browser.run(visible))


def test_the_page_can_do_every_activation(browser, page):
    browser.open(page)
    assert explore.ACTIVATIONS.keys() == ACTIVATIONS.keys()
    x = torch.cat([torch.linspace(-40, 40, 801), torch.linspace(-1e-3, 1e-3, 11)]).double()
    for name, source in explore.ACTIVATIONS.items():
        y = browser.run(f"return arguments[0].map({source})", x.tolist())
        torch.testing.assert_close(torch.tensor(y, dtype=x.dtype), ACTIVATIONS[name]()(x), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("family", explore.DRAWS)
def test_the_page_draws_from_every_slab(browser, page, family):
    browser.open(page)
    draws = browser.run(f"return Array.from({{length: 10000}}, {explore.DRAWS[family]})")
    uniform = get_slab(family.lower())(0.0, 1.0).cdf(torch.tensor(draws, dtype=torch.float32))
    assert_mean_equals(torch.stack([uniform, uniform**2, (uniform < 0.05).float()], 1), [1 / 2, 1 / 3, 0.05])


def test_the_page_follows_its_seed_and_no_text_of_a_run_is_code(browser, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    device = "</script><script>window.injected = true</script>{{draw}}"
    (run / "metrics.json").write_text(json.dumps(metrics | {"device": device}))
    shown = []
    for seed in "112":
        explore.main([str(run), "--num-data", "10", "--seed", seed, "--overwrite"])
        browser.open(run / "explore.html")
        shown.append(browser.run("return [run.indices, run.seen]"))
        assert browser.run("return window.injected") is None
        assert device in browser.run("return document.getElementById('settings').textContent")
    assert shown[0] == shown[1] != shown[2]


def test_a_page_is_replaced_only_on_demand(trained, tmp_path):
    output = tmp_path / "page.html"
    output.write_text("mine")
    arguments = [str(trained), "--output", str(output)]
    with pytest.raises(SystemExit, match=r"page\.html exists; pass --overwrite to replace it, or another --output"):
        explore.main(arguments)
    with pytest.raises(ValueError, match="--num-data must be at most 360, the number of test images, got 361"):
        explore.main([*arguments, "--overwrite", "--num-data", "361"])
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    explore.main([*arguments, "--overwrite"])
    assert "<!DOCTYPE html>" in output.read_text()


def test_an_activation_that_the_page_cannot_do_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.delitem(explore.ACTIVATIONS, "relu")
    with pytest.raises(ValueError, match="unknown activation of the page's decoder 'relu'; known are 'elu', 'gelu'"):
        explore.main([str(trained), "--output", str(tmp_path / "page.html")])
    assert not list(tmp_path.iterdir())
