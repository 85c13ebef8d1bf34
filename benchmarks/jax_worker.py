"""A process that trains the VAE of `contestants.py` in JAX, and answers requests; `jax_contestants.py` starts it.

    PYTHON jax_worker.py START.npz

PYTHON has jax, numpyro, optax and NumPy, and need not have PyTorch. The file holds weights by name, as PyTorch lays
them out, images, and the settings. Requests come as lines of JSON, and each answer is a line of JSON.

"NumPyro" is its `SVI` with `TraceMeanField_ELBO`, whose KL divergence is in closed form, and its Adam. "JAX" is the
loss of `contestants.HandWritten` and Adam of optax. Steps are jitted. An epoch, with shuffling and binarisation, is one
jitted loop.
"""

import json
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax, random
from jax.nn import elu, log_sigmoid, relu, sigmoid, silu

START = np.load(sys.argv[1])
SETTING = json.loads(str(START["setting"]))
LATENTS, DENSE, LR = SETTING["latent_dim"], SETTING["dense"], SETTING["lr"]
WEIGHTS = {
    key: jnp.asarray(START[key].T if START[key].ndim == 2 else START[key])
    for key in START.files
    if key.startswith(("encoder", "decoder"))
}
IMAGES = jnp.asarray(START["images"])


def posterior(w, x):
    """Return location and scale of the slab, and with spikes the log-odds of inclusion."""
    hidden = silu(x @ w["encoder.1.weight"] + w["encoder.1.bias"])
    loc, log_squared_scale, *logits = jnp.split(
        hidden @ w["encoder.3.weight"] + w["encoder.3.bias"], 2 if DENSE else 3, axis=-1
    )
    return loc, 1 + elu(0.5 * log_squared_scale) + 1e-4, *logits


def decoded(w, z):
    return relu(z @ w["decoder.0.weight"] + w["decoder.0.bias"]) @ w["decoder.2.weight"] + w["decoder.2.bias"]


def loss(w, key, x):
    """Return minus the ELBO of binary images, summed over data."""
    normal, uniform = random.split(key)
    loc, scale, *logits = posterior(w, x)
    slab_kl = 0.5 * (scale**2 + loc**2 - 1) - jnp.log(scale)
    slab = loc + random.normal(normal, loc.shape) * scale
    if DENSE:
        z, kl = slab, slab_kl
    else:
        (logits,) = logits
        perturbed = logits + random.logistic(uniform, logits.shape)
        soft = sigmoid(perturbed / SETTING["temperature"])
        z = slab * (soft + lax.stop_gradient((perturbed > 0) - soft))
        on = log_sigmoid(logits) - np.log(SETTING["inclusion"])
        off = log_sigmoid(-logits) - np.log1p(-SETTING["inclusion"])
        kl = sigmoid(logits) * (slab_kl + on) + sigmoid(-logits) * off
    pixels = decoded(w, z)
    return jnp.sum(jnp.maximum(pixels, 0) - pixels * x + jnp.log1p(jnp.exp(-jnp.abs(pixels)))) + kl.sum()


def by_hand():
    """Return the state of a training, and a function of state and minibatch that returns a new state and the loss."""
    adam = optax.adam(LR)

    def step(state, x):
        key, w, moments = state
        key, own = random.split(key)
        value, gradients = jax.value_and_grad(loss)(w, own, x)
        updates, moments = adam.update(gradients, moments)
        return (key, optax.apply_updates(w, updates), moments), value

    return (random.key(0), WEIGHTS, adam.init(WEIGHTS)), step, loss


def by_numpyro():
    """Return the same of NumPyro's SVI."""

    def weights():
        return {name: numpyro.param(name, value) for name, value in WEIGHTS.items()}

    def model(x):
        w = weights()
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), LATENTS)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoded(w, z)).to_event(1), obs=x)

    def guide(x):
        loc, scale = posterior(weights(), x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    elbo = numpyro.infer.TraceMeanField_ELBO()
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(LR), elbo)
    return svi.init(random.key(0), IMAGES[:2]), svi.update, lambda w, key, x: elbo.loss(key, w, model, guide, x)


class Worker:
    """A contestant and its state."""

    def __init__(self, name):
        self.state, step, self.loss = {"NumPyro": by_numpyro, "JAX": by_hand}[name]()
        self.step = jax.jit(step)
        self.epochs = jax.jit(partial(self._epoch, step))
        size = SETTING["batch_size"]
        count = len(IMAGES) // size
        # The minibatches of a turn are the first images, rounded.
        self.batches = list(jnp.round(IMAGES[: min(count, 8) * size]).reshape(-1, size, IMAGES.shape[1]))

    @staticmethod
    def _epoch(step, state, key, images):
        size, (order_key, key) = SETTING["batch_size"], random.split(key)
        order = random.permutation(order_key, len(images))

        def body(index, carry):
            state, total = carry
            chosen = images[lax.dynamic_slice(order, (index * size,), (size,))]
            x = random.bernoulli(random.fold_in(key, index), chosen).astype(chosen.dtype)
            state, value = step(state, x)
            return state, total + value

        return lax.fori_loop(0, len(images) // size, body, (state, 0.0))

    def steps(self, repeats):
        for index in range(repeats):
            self.state, value = self.step(self.state, self.batches[index % len(self.batches)])
        return value

    def epoch(self, seed):
        self.state, total = self.epochs(self.state, random.key(seed), IMAGES)
        return total

    def losses(self, draws):
        """Return the loss of the first minibatch before training, for as many keys."""
        keys = random.split(random.key(1), draws)
        return np.asarray(lax.map(lambda key: self.loss(WEIGHTS, key, self.batches[0]), keys)).tolist()


def versions():
    return {module.__name__: module.__version__ for module in (jax, numpyro, optax)}


def main():
    workers, count = {}, 0
    for line in sys.stdin:
        request = json.loads(line)
        work, value = request["work"], request["value"]
        if work == "versions":
            print(json.dumps(versions()), flush=True)
            continue
        worker = workers.setdefault(name := request["name"], workers.get(name) or Worker(name))
        if work == "losses":
            print(json.dumps(worker.losses(value)), flush=True)
            continue
        count += 1
        start, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(worker.steps(value) if work == "steps" else worker.epoch(count))
        print(json.dumps([time.perf_counter() - start, time.process_time() - processor]), flush=True)


if __name__ == "__main__":
    main()
