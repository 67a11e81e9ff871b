"""The kernels in JAX, as its users write them: the formula, jax.vjp, one jax.jit around both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._kernel_cases import IMAGE, PATCH, Kernel

LOG_2PI = math.log(2 * math.pi)
(R, S), STRIDE, PAD, (H, W, C) = PATCH["kernel"], PATCH["stride"], PATCH["padding"], IMAGE
P = (H + 2 * PAD - R) // STRIDE + 1


# --------------------------------------------------------------------------------------- formulas
def softplus(x: Any) -> Any:
    """Half the time of jax.nn.softplus on a CPU (0.10), which is a logaddexp."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def gaussian_kl(mu: Any, logvar: Any) -> Any:
    return -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar), axis=1)


def gaussian_kl_between(mu: Any, logvar: Any, mu2: Any, logvar2: Any) -> Any:
    d = logvar - logvar2
    return 0.5 * jnp.sum(jnp.exp(d) + (mu - mu2) ** 2 * jnp.exp(-logvar2) - 1 - d, axis=1)


def gaussian_kl_total(mu: Any, logvar: Any) -> Any:
    return -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar))


def total(values: Any) -> Any:
    return jnp.sum(values)


def log_mean_exp(log_w: Any) -> Any:
    return jax.nn.logsumexp(log_w, axis=1) - math.log(log_w.shape[1])


def categorical_nll(logits: Any, labels: Any) -> Any:
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - picked, axis=1)


def logistic_mixture_nll(logit_weight: Any, x_mu: Any, log_scale: Any, x: Any) -> Any:
    """As in PixelCNN++ implementations: the difference of two sigmoids, floored."""
    x = x[..., None]
    precision = jnp.exp(-log_scale)
    a, b = (x - x_mu + 1 / 255) * precision, (x - x_mu - 1 / 255) * precision
    inside = jnp.log(jnp.maximum(jax.nn.sigmoid(a) - jax.nn.sigmoid(b), 1e-12))
    outer = jnp.where(x > 0.999, -softplus(b), inside)
    each = jnp.where(x < -0.999, -softplus(-a), outer)
    return -jnp.sum(jax.nn.logsumexp(jax.nn.log_softmax(logit_weight) + each, axis=-1), axis=1)


def beta_nll(log_alpha: Any, log_beta: Any, x: Any) -> Any:
    a, b = jnp.exp(log_alpha), jnp.exp(log_beta)
    log_b = jax.scipy.special.betaln(a, b)
    return jnp.sum(log_b - (a - 1) * jnp.log(x) - (b - 1) * jnp.log1p(-x), axis=1)


def log_normal(z: Any, mu: Any, logvar: Any) -> Any:
    """(B, K, Z)."""
    return -0.5 * (LOG_2PI + logvar + (z[:, None] - mu) ** 2 * jnp.exp(-logvar))


def mixture_log_prob(z: Any, log_weights: Any, mu: Any, logvar: Any) -> Any:
    return jax.nn.logsumexp(log_weights + log_normal(z, mu, logvar).sum(2), axis=1)


def mixture_marginal_log_prob(z: Any, log_weights: Any, mu: Any, logvar: Any) -> Any:
    return jax.nn.logsumexp(log_weights[:, None] + log_normal(z, mu, logvar), axis=1)


def nearest_code(z: Any, codebook: Any) -> Any:
    """Straight through: |e|^2 - 2 z e decides, z gets the gradient."""
    product = jnp.matmul(z, codebook.T, precision="highest")  # float32 on a GPU, too
    codes = jnp.argmin(jnp.sum(codebook**2, axis=1) - 2 * product, axis=1)
    return z + jax.lax.stop_gradient(codebook[codes] - z)


def bias_activation(x: Any, bias: Any, *, activation: str) -> Any:
    return jax.nn.relu(x + bias) if activation == "relu" else jax.nn.gelu(x + bias)


def bernoulli_nll(logits: Any, x: Any) -> Any:
    return jnp.sum(softplus(logits) - logits * x, axis=1)


def gaussian_nll(x_mu: Any, x_logvar: Any, x: Any) -> Any:
    return 0.5 * jnp.sum(LOG_2PI + x_logvar + (x - x_mu) ** 2 * jnp.exp(-x_logvar), axis=1)


def gaussian_fixed_nll(x_mu: Any, x: Any, *, variance: float) -> Any:
    constant = 0.5 * x.shape[1] * (LOG_2PI + math.log(variance))
    return jnp.sum((x - x_mu) ** 2, axis=1) / (2 * variance) + constant


def bernoulli_elbo(logits: Any, x: Any, mu: Any, logvar: Any) -> Any:
    return -bernoulli_nll(logits, x) - gaussian_kl(mu, logvar)


def gaussian_elbo(x_mu: Any, x_logvar: Any, x: Any, mu: Any, logvar: Any) -> Any:
    return -gaussian_nll(x_mu, x_logvar, x) - gaussian_kl(mu, logvar)


def gaussian_fixed_elbo(x_mu: Any, x: Any, mu: Any, logvar: Any, *, variance: float) -> Any:
    return -gaussian_fixed_nll(x_mu, x, variance=variance) - gaussian_kl(mu, logvar)


def reparameterize(mu: Any, logvar: Any, eps: Any) -> Any:
    return mu + jnp.exp(0.5 * logvar) * eps


def reparameterize_samples(mu: Any, logvar: Any, eps: Any) -> Any:
    return mu[:, None] + jnp.exp(0.5 * logvar)[:, None] * eps


def gaussian_log_ratio(z: Any, logvar: Any, eps: Any) -> Any:
    return 0.5 * jnp.sum(z**2 - eps**2 - logvar[:, None], axis=2)


def importance(nll: Any, log_ratio: Any) -> Any:
    return log_mean_exp(-nll.reshape(log_ratio.shape) - log_ratio)


def bernoulli_iwae(logits: Any, x: Any, log_ratio: Any) -> Any:
    wide = jnp.repeat(x, log_ratio.shape[1], axis=0)
    return importance(bernoulli_nll(logits, wide), log_ratio)


def gaussian_iwae(x_mu: Any, x_logvar: Any, x: Any, log_ratio: Any) -> Any:
    wide = jnp.repeat(x, log_ratio.shape[1], axis=0)
    return importance(gaussian_nll(x_mu, x_logvar, wide), log_ratio)


def gaussian_fixed_iwae(x_mu: Any, x: Any, log_ratio: Any, *, variance: float) -> Any:
    wide = jnp.repeat(x, log_ratio.shape[1], axis=0)
    return importance(gaussian_fixed_nll(x_mu, wide, variance=variance), log_ratio)


# ---------------------------------------------------------------------------------------- patches
def im2col(x: Any, **_: Any) -> Any:
    padded = jnp.pad(x, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    last = STRIDE * (P - 1) + 1
    parts = [
        padded[:, r : r + last : STRIDE, s : s + last : STRIDE] for r in range(R) for s in range(S)
    ]
    return jnp.stack(parts, axis=3).reshape(-1, R * S * C)  # (B, P, Q, R S, C) -> rows


def im2col_by_convolution(x: Any, **_: Any) -> Any:
    """Features come out as C R S."""
    patches = jax.lax.conv_general_dilated_patches(
        x, (R, S), (STRIDE, STRIDE), ((PAD, PAD), (PAD, PAD)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return patches.reshape(-1, R * S * C)


def col2im(patches: Any, **_: Any) -> Any:
    shape = jax.ShapeDtypeStruct((len(patches) // (P * P), H, W, C), patches.dtype)
    (x,) = jax.linear_transpose(im2col, shape)(patches)
    return x


FUNCTIONS: dict[str, list[Callable]] = {
    f.__name__: [f]
    for f in (
        gaussian_kl, gaussian_kl_between, bernoulli_nll, gaussian_nll, gaussian_fixed_nll,
        bernoulli_elbo, gaussian_elbo, gaussian_fixed_elbo, reparameterize, col2im,
        reparameterize_samples, gaussian_log_ratio, bernoulli_iwae, gaussian_iwae,
        gaussian_fixed_iwae,
        gaussian_kl_total, total, log_mean_exp, categorical_nll,
        logistic_mixture_nll, beta_nll, nearest_code, mixture_log_prob,
        mixture_marginal_log_prob,
        bias_activation,
    )
}  # fmt: skip
FUNCTIONS["bias_gelu"] = [bias_activation]
FUNCTIONS["im2col"] = [im2col, im2col_by_convolution]


# ------------------------------------------------------------------- what carries state from call
def adam_update(p: Any, g: Any, m: Any, v: Any, t: Any) -> tuple:
    t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    rate = 1e-3 / (1 - 0.9**t)
    return p - rate * m / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v, t


def sgd_update(p: Any, g: Any, velocity: Any, t: Any) -> tuple:
    velocity = 0.9 * velocity + g
    return p - 1e-3 * velocity, velocity, t


def _update(function: Callable, arrays: list) -> Callable:
    """An optimizer step whose parameters and state are donated."""
    p, g, *state = arrays
    step = jax.jit(
        lambda p, state, g: function(p, g, *state), donate_argnums=(0, 1)
    )  # -> p, state...
    carry = [p, (*state, jnp.float32(0))]

    def call() -> list:
        p, *state = step(carry[0], carry[1], g)
        carry[:] = p, tuple(state)
        return [p]

    return call


def _draw(name: str, shape: tuple) -> Callable:
    draw = jax.random.normal if name == "philox_normal" else jax.random.uniform
    step = jax.jit(lambda key: (jax.random.split(key)[0], draw(key, shape)))
    carry = [jax.random.key(0)]

    def call() -> list:
        carry[0], numbers = step(carry[0])
        return [numbers]

    return call


def _gaussian_sample(mode: str, arrays: list, dout: Any) -> Callable:
    def sample(mu: Any, logvar: Any, key: Any) -> Any:
        return reparameterize(mu, logvar, jax.random.normal(key, mu.shape))

    @jax.jit
    def step(mu: Any, logvar: Any, key: Any, dout: Any) -> tuple:
        key, now = jax.random.split(key)
        if mode == "forward":
            return key, sample(mu, logvar, now)
        out, pull = jax.vjp(lambda mu, logvar: sample(mu, logvar, now), mu, logvar)
        return key, out, *pull(dout)

    carry = [jax.random.key(0)]

    def call() -> list:
        carry[0], *found = step(*arrays, carry[0], dout)
        return found

    return call


# -------------------------------------------------------------------------------------- the calls
def calls(kernel: Kernel, B: int, D: int, mode: str, device: str) -> list[tuple[str, Callable]]:
    """The ways to do one row in JAX: the fastest counts."""
    arrays = [jnp.asarray(a) for a in kernel.arrays(B, D)]
    if kernel.name in ("adam_update", "sgd_update"):
        return [("", _update(globals()[kernel.name], arrays))]
    if kernel.name.startswith("philox"):
        return [("", _draw(kernel.name, (B, D)))]
    dout = jnp.asarray(kernel.dout(B, D)) if mode == "gradient" else None
    if kernel.name == "gaussian_sample":
        return [("", _gaussian_sample(mode, arrays, dout))]
    return [
        (f.__name__, _call(kernel, f, arrays, dout if mode == "gradient" else None))
        for f in FUNCTIONS[kernel.name]
    ]


def _call(kernel: Kernel, function: Callable, arrays: list, dout: Any) -> Callable:
    wanted = [i for i, a in enumerate(kernel.arguments) if not a.data]

    def forward(*arrays: Any) -> Any:
        return function(*arrays, **kernel.options)

    def value_and_gradient(dout: Any, *arrays: Any) -> tuple:
        def of(*parameters: Any) -> Any:
            full = list(arrays)
            for i, parameter in zip(wanted, parameters, strict=True):
                full[i] = parameter
            return forward(*full)

        out, pull = jax.vjp(of, *(arrays[i] for i in wanted))
        return out, *pull(dout)

    if dout is None:
        compiled = jax.jit(forward)
        return lambda: [compiled(*arrays)]
    both = jax.jit(value_and_gradient)
    return lambda: list(both(dout, *arrays))
