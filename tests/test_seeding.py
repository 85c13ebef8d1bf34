import contextlib
import functools
import os
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pyro
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro import _seeding as seeding
from vsc_pyro._seeding import alone, seeded


def test_other_devices_are_not_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded every CUDA device"))
    with seeded(1, torch.device("cpu")):
        torch.rand(1)


def test_seeds_within_and_leaves_the_callers_state():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    draws = []
    for _ in range(2):
        with seeded(1, torch.device("cpu")):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.rand(2), expected)


def small():
    torch.manual_seed(0)
    return vsc.VAE(
        vsc.SpikeSlabEncoder(16, 4, hidden=(8,)), vsc.NormalDecoder(4, 16, hidden=(8,)), vsc.SpikeSlabPrior(4, 0.3)
    )


def test_threads_get_the_numbers_that_each_gets_alone():
    x = torch.rand(200, 16)
    fixed, mask = small(), torch.zeros(3, 16, dtype=torch.bool)
    fresh = [small() for _ in range(4)]  # by the caller's random numbers, which no thread may draw from meanwhile
    work = {
        "fit": lambda: vsc.fit(fresh.pop(), x, epochs=2, batch_size=50, progress=False).elbo,
        "evaluate": lambda: vsc.evaluate(fixed, x[:50], num_draws=2).elbo,
        "bounds": lambda: vsc.bounds(fixed, x[:50], num_draws=2).iwae.tolist(),
        "impute": lambda: fixed.impute(x[:3], mask, num_steps=20).codes.tolist(),
        "refine": lambda: vsc.refine(fixed, x[:5], steps=10).gain.tolist(),
    }
    expected = {name: task() for name, task in work.items()}
    with ThreadPoolExecutor(5) as pool:
        futures = [(name, pool.submit(task)) for _ in range(3) for name, task in work.items()]
        for name, future in futures:
            assert future.result(timeout=60) == expected[name], name
    assert fixed.training


def test_steps_of_another_thread_do_not_meet_ones_own():
    """Pyro's stack of handlers is one for the process: the sites of a step must not be another's."""
    first, second, x = small(), small(), torch.rand(20, 16)

    def losses(model):
        svi = vsc.SVI(model.model, model.guide, torch.optim.Adam(model.parameters(), 1e-3), vsc.AnalyticELBO())
        return [float(svi.step(x)) for _ in range(30)]

    with pyro.get_param_store().scope(), ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(losses, first), pool.submit(vsc.fit, second, x, epochs=20, progress=False)]
        assert len(futures[0].result(timeout=60)) == 30
        assert len(futures[1].result(timeout=60)) == 20


def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not():
    held, done = threading.Event(), threading.Event()

    def hold():
        with alone():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork beside other threads
            child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends a child that waits
            with alone():
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()


def test_who_waits_for_long_says_for_whom(monkeypatch):
    monkeypatch.setattr(seeding, "_PATIENCE", 0.05)
    model, x = small(), torch.rand(5, 16)
    with ThreadPoolExecutor(1) as pool, model.evaluating():  # warnings are errors here, and end the wait
        future = pool.submit(vsc.bounds, model, x, num_draws=2)
        with pytest.raises(UserWarning, match=r"waited for 0\.05 s for thread MainThread, which trains"):
            future.result(timeout=60)
    assert vsc.bounds(model, x, num_draws=2).iwae.isfinite().all()


def steps(make, model, x):
    with pyro.get_param_store().scope():
        svi = make(model.model, model.guide, torch.optim.Adam(model.parameters(), 1e-2), vsc.TraceELBO())
        for _ in range(3):
            svi.step(x)


WAYS_TO_TRAIN = {
    "fit": lambda model, x: vsc.fit(model, x, epochs=2, progress=False),
    "ensemble": lambda model, x: vsc.fit_ensemble([model], x, epochs=1, progress=False),
    "svi": functools.partial(steps, vsc.SVI),
    "compiled": functools.partial(steps, functools.partial(vsc.CompiledSVI, backend="eager")),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS_TO_TRAIN)
def test_whatever_trains_does_so_under_a_callers_no_grad(way, mode):
    x, weights = torch.rand(40, 16), []
    for context in (contextlib.nullcontext, mode):
        model = small()
        before = model.reference.clone()
        with context():
            WAYS_TO_TRAIN[way](model, x)
        assert not torch.equal(model.reference, before)
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_our_objectives_take_gradients_under_no_grad_whoever_steps():
    model, x = small(), torch.rand(40, 16)
    before = model.reference.clone()
    with torch.no_grad(), pyro.get_param_store().scope():
        svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), vsc.TraceELBO())
        svi.step(x)
    assert not torch.equal(model.reference, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_posteriors_are_refined_under_a_callers_no_grad(mode):
    model, x = small(), torch.rand(5, 16)
    gain = vsc.refine(model, x, steps=10).gain
    assert gain.mean() > 0
    with mode():
        assert torch.equal(vsc.refine(model, x.clone(), steps=10).gain, gain)
