"""The two VAEs of the benchmarks in plain JAX: one jitted step, buffers donated, optax Adam."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ._cells import CHANNELS, IMAGE, SAMPLES, Cell, Z

LAYOUT = ("NHWC", "HWIO", "NHWC")


def _layer(key: Any, *shape: int) -> dict[str, Any]:
    """Uniform weights as in PyTorch's and tinyvae's layers; shape ends in inputs, outputs."""
    a = 1 / math.sqrt(math.prod(shape[:-1]))
    weight = jax.random.uniform(key, shape, minval=-a, maxval=a)
    return {"w": weight, "b": jnp.zeros(shape[-1])}


def _linear(p: dict, x: Any) -> Any:
    return x @ p["w"] + p["b"]


def _conv(p: dict, x: Any) -> Any:
    pads = ((1, 1), (1, 1))
    return lax.conv_general_dilated(x, p["w"], (2, 2), pads, dimension_numbers=LAYOUT) + p["b"]


def _conv_transpose(p: dict, x: Any) -> Any:
    pads = ((2, 2), (2, 2))
    return lax.conv_transpose(x, p["w"], (2, 2), pads, dimension_numbers=LAYOUT) + p["b"]


def _mlp(keys: Any, hidden: int) -> tuple[dict, Callable, Callable]:
    D, relu = math.prod(IMAGE), jax.nn.relu
    shapes = {"a": (D, hidden), "b": (Z, hidden), "c": (hidden, D)}
    p = {name: _layer(next(keys), *shape) for name, shape in shapes.items()}
    return (
        p,
        lambda p, x: relu(_linear(p["a"], x)),
        lambda p, z: _linear(p["c"], relu(_linear(p["b"], z))),
    )


def _convolutional(keys: Any, hidden: int) -> tuple[dict, Callable, Callable]:
    (H, W, C), (first, second), relu = IMAGE, CHANNELS, jax.nn.relu
    small = (H // 4, W // 4, second)
    size = math.prod(small)
    shapes = {
        "a": (4, 4, C, first), "b": (4, 4, first, second), "c": (size, hidden),
        "d": (Z, hidden), "e": (hidden, size), "f": (4, 4, second, first), "g": (4, 4, first, C),
    }  # fmt: skip
    p = {name: _layer(next(keys), *shape) for name, shape in shapes.items()}

    def encode(p: dict, x: Any) -> Any:
        h = relu(_conv(p["b"], relu(_conv(p["a"], x))))
        return relu(_linear(p["c"], h.reshape(len(x), size)))

    def decode(p: dict, z: Any) -> Any:
        h = relu(_linear(p["e"], relu(_linear(p["d"], z)))).reshape(len(z), *small)
        return _conv_transpose(p["g"], relu(_conv_transpose(p["f"], h)))

    return p, encode, decode


def training_update(cell: Cell) -> tuple[Callable, list]:
    """update(parameters, state, x, key) -> these three anew, and the loss; and where they start."""
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 16))
    build = _convolutional if cell.architecture == "conv" else _mlp
    parameters, encode, decode = build(keys, cell.hidden)
    parameters |= {head: _layer(next(keys), cell.hidden, Z) for head in ("mu", "logvar")}
    optimizer = optax.adam(1e-3)

    def loss(p: dict, x: Any, key: Any) -> Any:
        h = encode(p, x)
        mu, logvar = _linear(p["mu"], h), _linear(p["logvar"], h)
        logits = decode(p, mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape))
        nll = jnp.maximum(logits, 0) - logits * x + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        kl = -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar))
        return (jnp.sum(nll) + kl) / len(x)

    def importance_weighted(p: dict, x: Any, key: Any) -> Any:
        h = encode(p, x)
        mu, logvar = _linear(p["mu"], h), _linear(p["logvar"], h)
        eps = jax.random.normal(key, (SAMPLES, *mu.shape))
        z = mu + jnp.exp(0.5 * logvar) * eps  # (K, B, Z)
        logits = decode(p, z)
        nll = jnp.maximum(logits, 0) - logits * x + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        log_w = 0.5 * jnp.sum(eps**2 + logvar - z**2, -1) - jnp.sum(nll, -1)
        return jnp.mean(math.log(SAMPLES) - jax.nn.logsumexp(log_w, axis=0))

    objective = importance_weighted if cell.architecture == "iwae" else loss

    def update(p: dict, state: Any, x: Any, key: Any) -> tuple:
        key, now = jax.random.split(key)
        value, gradients = jax.value_and_grad(objective)(p, x, now)
        changes, state = optimizer.update(gradients, state)
        return optax.apply_updates(p, changes), state, key, value

    return update, [parameters, optimizer.init(parameters), next(keys)]


def training_step(cell: Cell, x: np.ndarray) -> Callable:
    """A function that does one step and returns the loss, perhaps before it is computed."""
    data = jnp.asarray(x if cell.architecture == "conv" else x.reshape(len(x), -1))
    update, carry = training_update(cell)
    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> Any:
        p, state, key, value = compiled(carry[0], carry[1], data, carry[2])
        carry[:] = p, state, key
        return value

    return step
