"""The kernels as differentiable JAX functions: under jit, grad, vmap and scan, on CPU and GPU.

    from tinyvae_kernels.adapters.jax import bernoulli_elbo

    loss = -bernoulli_elbo(logits, x, mu, logvar, beta=beta).mean()

One function for each pair of `tinyvae_kernels.PAIRS` for which JAX has no equal, with the pair's
arguments, shapes and errors.  XLA calls the kernels on its own buffers, so that nothing is copied
(`jax.experimental.buffer_callback`: JAX 0.6.1 or later); on a GPU that takes CuPy, whose kernels
are launched on XLA's stream.

- Gradients are of the first order and by reverse mode (`jax.custom_vjp`).  Second derivatives and
  forward mode raise, and so does a gradient with respect to data (`x`, `eps`, `labels`): there is
  none.
- Rows are independent, so that vmap adds rows to one call.
- Options are Python numbers, compiled in.  `beta` may be traced (a schedule, a parameter), and so
  may the numbers that `gaussian_sample` draws its noise from.
- `tinyvae_kernels.backend` and `threads` count as they are where the function is traced.
- A program that holds Python functions is compiled once a process: JAX keeps it in no cache on
  disk, and `jax.export` refuses it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental.buffer_callback import buffer_callback

from .. import PAIRS, BackendError, _dispatch, _threads, cuda_problem, gaussian_kl_forward
from .._cuda import cupy_device
from .._dispatch import arithmetic, check_weight, empty, plain_empty
from ..philox import LOW, numbers

__all__ = [
    "bernoulli_elbo",
    "bernoulli_nll",
    "beta_nll",
    "categorical_nll",
    "gaussian_elbo",
    "gaussian_fixed_elbo",
    "gaussian_fixed_nll",
    "gaussian_kl",
    "gaussian_kl_between",
    "gaussian_nll",
    "gaussian_sample",
    "log_mean_exp",
    "logistic_mixture_nll",
    "mixture_log_prob",
    "mixture_marginal_log_prob",
    "nearest_code",
    "reparameterize",
]

Array = Any  # jax.Array, a tracer, or what jnp.asarray takes


# ----------------------------------------------------------------------------------- the kernels
class _Kernel(NamedTuple):
    """How a pair becomes a function of JAX's.

    The gradient of an argument is `dout` times a factor, elementwise or row by row, and the
    factor does not depend on `dout`: JAX keeps the factors, and does the product.  Not so where
    gradients are sums over rows (`summed`): JAX keeps the arguments, and a second call runs the
    forward and the backward.

    arguments: the arrays' names; data: those without a gradient; unit: those whose factor is 1.
    latent: those of an ELBO whose gradient is the second output's, the KL's.
    values(pair, arrays, options) -> the outputs, and what `factors` needs.
    factors(pair, outputs, saved) -> one for each argument but data and those of `unit`.
    shapes(first argument) -> those of the outputs, with their types.
    """

    arguments: tuple[str, ...]
    values: Callable[[str, list, dict], tuple[tuple, Any]]
    factors: Callable[[str, tuple, Any], tuple]
    shapes: Callable[[Array], tuple]
    data: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    latent: tuple[str, ...] = ()
    host: tuple[str, ...] = ()  # arguments that NumPy reads
    vmap: str = "broadcast_all"  # more axes are more rows; "sequential" where that is not so
    summed: bool = False

    def factored(self) -> list[int]:
        """The positions of the arguments that have a factor."""
        without = {*self.data, *self.unit}
        return [i for i, name in enumerate(self.arguments) if name not in without]


def _pair_values(pair: str, arrays: list, options: dict) -> tuple[tuple, Any]:
    out, saved = PAIRS[pair][0](*arrays, **options)
    return (out,), saved


def _sample_values(pair: str, arrays: list, options: dict) -> tuple[tuple, Any]:
    """The last array holds the noise's numbers, as _counter packs them."""
    *gaussian, counter = arrays
    seed, seed2, stream, step, offset, offset2 = (int(n) for n in counter)
    key = {"seed": seed + (seed2 << 32), "stream": stream, "step": step}
    return _pair_values(pair, gaussian, key | {"offset": offset + (offset2 << 32)})


def _code_values(pair: str, arrays: list, options: dict) -> tuple[tuple, Any]:
    quantized, saved = PAIRS[pair][0](*arrays, **options)
    return (quantized, saved.codes), saved


def _elbo_values(pair: str, arrays: list, options: dict) -> tuple[tuple, Any]:
    """nll and the KL that is charged, so that beta can be JAX's."""
    _, saved = PAIRS[pair][0](*arrays, **options)
    kl, free_bits = saved.kl, options["free_bits"]
    if free_bits > 0:  # saved.kl is without them
        kl, _ = gaussian_kl_forward(*arrays[-2:], free_bits=free_bits)
    return (saved.nll, kl), saved


def _saved_factors(pair: str, outputs: tuple, saved: Any) -> tuple:
    """The forward saved the gradients themselves."""
    return saved


def _elbo_factors(pair: str, outputs: tuple, saved: Any) -> tuple:
    """The gradients of elbo = -nll - kl."""
    return tuple(g for g in saved.gradients() if g is not None)


def _backward_factors(pair: str, outputs: tuple, saved: Any) -> tuple:
    """The gradients for a dout of ones."""
    ones = empty(outputs[0].shape, outputs[0])
    ones.fill(1)
    gradients = [g for g in PAIRS[pair][1](ones, saved) if g is not None]
    return tuple(gradients[len(_KERNELS[pair].unit) :])


def _no_factors(pair: str, outputs: tuple, saved: Any) -> tuple:
    return ()


def _row(first: Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    """One number a row, of the arithmetic's type."""
    return (jax.ShapeDtypeStruct(first.shape[:1], arithmetic(first.dtype)),)


def _element(first: Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct(first.shape, first.dtype),)


def _code(first: Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Codes are of JAX's default integer type."""
    return *_element(first), jax.ShapeDtypeStruct(first.shape[:1], jnp.result_type(int))


def _nll(*parameters: str, data: str = "x") -> _Kernel:
    return _Kernel((*parameters, data), _pair_values, _saved_factors, _row, data=(data,))


def _elbo_of(*parameters: str) -> _Kernel:
    latent, shapes = ("mu", "logvar"), lambda first: _row(first) * 2
    arguments = (*parameters, "x", *latent)
    return _Kernel(arguments, _elbo_values, _elbo_factors, shapes, data=("x",), latent=latent)


def _mixture(shapes: Callable) -> _Kernel:
    arguments = ("z", "log_weights", "mu", "logvar")
    return _Kernel(arguments, _pair_values, _no_factors, shapes, vmap="sequential", summed=True)


_KERNELS = {
    "reparameterize": _Kernel(
        ("mu", "logvar", "eps"), _pair_values, _backward_factors, _element,
        data=("eps",), unit=("mu",),
    ),
    "gaussian_sample": _Kernel(
        ("mu", "logvar", "counter"), _sample_values, _backward_factors, _element,
        data=("counter",), unit=("mu",), host=("counter",), vmap="sequential",
    ),
    "gaussian_kl": _Kernel(("mu", "logvar"), _pair_values, _backward_factors, _row),
    "gaussian_kl_between": _Kernel(
        ("mu", "logvar", "mu2", "logvar2"), _pair_values, _backward_factors, _row
    ),
    "bernoulli_nll": _nll("logits"),
    "gaussian_nll": _nll("x_mu", "x_logvar"),
    "gaussian_fixed_nll": _nll("x_mu"),
    "categorical_nll": _nll("logits", data="labels"),
    "beta_nll": _nll("log_alpha", "log_beta"),
    "logistic_mixture_nll": _nll("logit_weight", "x_mu", "log_scale"),
    "bernoulli_elbo": _elbo_of("logits"),
    "gaussian_elbo": _elbo_of("x_mu", "x_logvar"),
    "gaussian_fixed_elbo": _elbo_of("x_mu"),
    "log_mean_exp": _Kernel(("log_w",), _pair_values, _saved_factors, _row),
    "mixture_log_prob": _mixture(_row),
    "mixture_marginal_log_prob": _mixture(_element),
    "nearest_code": _Kernel(
        ("z", "codebook"), _code_values, _no_factors, _code,
        data=("codebook",), unit=("z",), vmap="sequential",
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------ what XLA runs
class _Call(NamedTuple):
    """A pair, its options, and whether the factors follow the outputs; hashable, for JAX.

    backward: the arguments follow `dout`, and the results are their gradients.
    """

    pair: str
    options: tuple[tuple[str, Any], ...] = ()
    factors: bool = False
    backward: bool = False


class _Host:
    """Buffers on the CPU are NumPy arrays."""

    def active(self, context: Any) -> contextlib.AbstractContextManager:
        """There are no streams."""
        return contextlib.nullcontext()

    def array(self, buffer: Any) -> np.ndarray:
        """XLA's memory; writeable, for arguments too."""
        array = np.asarray(buffer)
        return array.view(buffer.dtype) if array.dtype.kind == "V" else array  # bfloat16

    def numbers(self, array: Any) -> np.ndarray:
        """The array itself."""
        return array


class _Cuda:
    """Buffers on a GPU are CuPy's arrays."""

    def __init__(self, device: int):
        if problem := cuda_problem():
            raise BackendError(f"JAX's arrays lie on a GPU, and CUDA cannot be used: {problem}")
        self.xp, self.device = cupy_device().xp, device

    @contextlib.contextmanager
    def active(self, context: Any) -> Any:
        """Kernels, and what CuPy allocates, are in the order of XLA's stream."""
        stream = self.xp.cuda.ExternalStream(context.stream, self.device)
        with self.xp.cuda.Device(self.device), stream:
            yield

    def array(self, buffer: Any) -> Any:
        """XLA's memory; __cuda_array_interface__ has no name for bfloat16."""
        if np.dtype(buffer.dtype).name == "bfloat16":
            return self.xp.from_dlpack(buffer)
        return self.xp.asarray(buffer)

    def numbers(self, array: Any) -> np.ndarray:
        """One copy, for which the stream is waited for."""
        return self.xp.asnumpy(array)


def _memory(buffer: Any) -> _Host | _Cuda:
    """What makes arrays of XLA's buffers, where this one lies."""
    kind, device = buffer.__dlpack_device__()
    return _cuda(device) if kind == 2 else _Host()  # kDLCUDA


@functools.cache
def _cuda(device: int) -> _Cuda:
    return _Cuda(device)


class _Run(NamedTuple):
    """One call site: what it calls, the rank of its first argument, and the settings there."""

    call: _Call
    rank: int
    backend: str
    threads: int | None

    def __call__(self, context: Any, results: list, *arguments: Any) -> None:
        """Called by XLA, in any thread, whose own settings do not count."""
        memory = _memory(arguments[0])
        with memory.active(context):
            contextvars.Context().run(
                self.fill, memory, *([memory.array(b) for b in bs] for bs in (arguments, results))
            )

    def fill(self, memory: _Host | _Cuda, arguments: list, results: list) -> None:
        """Compute the results, in their own memory where they can be."""
        pair, options, factors, backward = self.call
        kernel, more = _KERNELS[pair], arguments[0].ndim - self.rank
        arguments, results = ([_merged(a, more) for a in arrays] for arrays in (arguments, results))
        for i, argument in enumerate(kernel.arguments):
            if argument in kernel.host:
                arguments[i] = memory.numbers(arguments[i])
        _dispatch._requested.set(self.backend)
        _threads._limit.set(self.threads)
        lent = [result for result in results if result.ndim > 1]
        _dispatch._allocate.set(functools.partial(_lend, lent))
        dout, arguments = arguments[:backward], arguments[backward:]
        found, saved = kernel.values(pair, arguments, dict(options))
        if backward:
            found = PAIRS[pair][1](*dout, saved)
        if factors:
            found = (*found, *kernel.factors(pair, found, saved))
        # what lies elsewhere is small, or rare: the copy is for one that lies in another's place
        pairs = zip(results, found, strict=True)
        for result, value in [(r, v.copy() if v.ndim > 1 else v) for r, v in pairs if v is not r]:
            result[...] = value


def _lend(lent: list, shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """What the kernels allocate: the results' own memory, in their order, then new memory.

    Copying the gradient of 8192 x 3072 Bernoulli losses to its place instead doubles the call.
    """
    for k, result in enumerate(lent):
        if result.shape == shape and result.dtype == dtype and type(result) is type(like):
            return lent.pop(k)
    return plain_empty(shape, dtype, like)


def _merged(array: Any, more: int) -> Any:
    """(V, W, B, ...) -> (V*W*B, ...): the axes that vmap put in front become rows."""
    if more == 0:
        return array
    rows = int(np.prod(array.shape[: more + 1], dtype=np.int64))
    return array.reshape(rows, *array.shape[more + 1 :])


# ------------------------------------------------------------------------ what JAX differentiates
@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _xla_call(call: _Call, results: tuple[jax.ShapeDtypeStruct, ...], *arrays: Array) -> tuple:
    """The call that XLA makes."""
    run = _Run(call, arrays[0].ndim, _dispatch._requested.get(), _threads._limit.get())
    return buffer_callback(run, results, vmap_method=_KERNELS[call.pair].vmap)(*arrays)


@_xla_call.defjvp
def _no_second_derivative(call: _Call, results: tuple, primals: tuple, tangents: tuple) -> Any:
    raise NotImplementedError(
        f"{call.pair} has first derivatives only: its gradient cannot be differentiated"
    )


def _results(call: _Call, arrays: tuple) -> tuple[jax.ShapeDtypeStruct, ...]:
    kernel = _KERNELS[call.pair]
    like = [arrays[i] for i in kernel.factored()] if call.factors else []
    return *kernel.shapes(arrays[0]), *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in like)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _outputs(call: _Call, *arrays: Array) -> tuple:
    return _xla_call(call, _results(call, arrays), *arrays)


def _outputs_forward(call: _Call, *primals: Any) -> tuple[tuple, tuple]:
    kernel, arrays = _KERNELS[call.pair], tuple(p.value for p in primals)
    for name, primal in zip(kernel.arguments, primals, strict=True):
        if name in kernel.data and primal.perturbed:
            raise TypeError(
                f"{call.pair} has no gradient for {name}, which is data: "
                f"differentiate the others alone, or pass jax.lax.stop_gradient({name})"
            )
    if kernel.summed:
        return _xla_call(call, _results(call, arrays), *arrays), arrays
    call = call._replace(factors=True)
    found = _xla_call(call, _results(call, arrays), *arrays)
    outputs = len(found) - len(kernel.factored())
    return tuple(found[:outputs]), tuple(found[outputs:])


def _outputs_backward(call: _Call, factors: tuple, douts: tuple) -> tuple:
    """dargument = dout factor, row by row or elementwise; by the pair's backward if `summed`."""
    kernel, remaining = _KERNELS[call.pair], list(factors)
    if kernel.summed:
        results = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in factors)
        return _xla_call(call._replace(backward=True), results, douts[0], *factors)
    gradients: list[jax.Array | None] = []
    for name in kernel.arguments:
        dout = douts[-1 if name in kernel.latent else 0]
        factor = None if name in {*kernel.data, *kernel.unit} else remaining.pop(0)
        if name in kernel.data or isinstance(dout, SymbolicZero):
            gradients.append(None)
        elif factor is None:
            gradients.append(dout)
        else:
            sign = -1 if kernel.latent else 1  # an ELBO's outputs are nll and kl
            rate = (sign * dout).reshape(dout.shape + (1,) * (factor.ndim - dout.ndim))
            gradients.append((rate * factor).astype(factor.dtype))
    return tuple(gradients)


_outputs.defvjp(_outputs_forward, _outputs_backward, symbolic_zeros=True)


# ----------------------------------------------------------------------------------------- checks
def _checked(pair: str, arrays: tuple, options: dict[str, Any]) -> tuple[jax.Array, ...]:
    """The arrays as JAX has them; the pair's own errors, at tracing rather than in the kernel."""
    named = dict(zip(_KERNELS[pair].arguments, arrays, strict=True))
    for name, array in named.items():
        if not isinstance(array, (jax.Array, np.ndarray)):
            raise TypeError(f"{name} must be an array, got {type(array).__name__}")
    for name, value in options.items():
        if isinstance(value, jax.Array):
            raise TypeError(f"{name} must be a Python number: it is compiled in, not traced")
    found = {name: jnp.asarray(array) for name, array in named.items()}
    contextvars.copy_context().run(_check, pair, _dummies(list(found.values())), options)
    return tuple(found.values())


class _Checked(Exception):
    """A pair has made its checks and asks for memory."""


def _no_memory(*request: Any) -> None:
    raise _Checked


def _check(pair: str, arrays: list, options: dict[str, Any]) -> None:
    """Run the pair's forward until it allocates, which it does when all is checked."""
    _dispatch._allocate.set(_no_memory)
    with contextlib.suppress(_Checked):
        _KERNELS[pair].values(pair, arrays, options)


def _dummies(arrays: list[jax.Array]) -> list[np.ndarray]:
    """NumPy arrays of those shapes and types, without memory of their own, to be checked.

    Half precision runs on a GPU alone, which is not known yet: it is checked as float32.
    """
    floats = {a.dtype.name for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)}
    half = floats in ({"float16"}, {"bfloat16"})
    types = [np.float32 if half and a.dtype.name in floats else a.dtype for a in arrays]
    return [
        np.broadcast_to(np.full((), 0.5).astype(t), array.shape)  # in the range of every kernel
        for t, array in zip(types, arrays, strict=True)
    ]


def _call(pair: str, *arrays: Array, **options: Any) -> Any:
    """The outputs of a pair, the only one or all: those of an ELBO are nll and the charged kl."""
    found = _outputs(_Call(pair, tuple(options.items())), *_checked(pair, arrays, options))
    return found if len(found) > 1 else found[0]


def _elbo(pair: str, *arrays: Array, beta: Array, free_bits: float, **options: Any) -> jax.Array:
    """-nll - beta kl, where beta is JAX's: it may be traced, and has a gradient."""
    if not isinstance(beta, jax.Array):
        check_weight(beta=beta)
    nll, kl = _call(pair, *arrays, free_bits=free_bits, **options)
    beta = jnp.asarray(beta, nll.dtype)
    if beta.shape not in ((), nll.shape):
        raise ValueError(f"beta must be a number or {nll.shape}, got shape {beta.shape}")
    return -nll - beta * kl


# ------------------------------------------------------------------------------------ sample, KL
def reparameterize(mu: Array, logvar: Array, eps: Array) -> jax.Array:
    """z = mu + exp(logvar / 2) eps; mu, logvar, eps: (B, Z)."""
    return _call("reparameterize", mu, logvar, eps)


def gaussian_sample(
    mu: Array, logvar: Array, *, seed: Any, stream: Any = 0, step: Any = 0, offset: Any = 0
) -> jax.Array:
    """reparameterize with eps = philox_normal(mu.shape, seed=seed, ...); mu, logvar: (B, Z).

    seed, stream, step, offset: Python numbers, or integers that are traced (in JAX's default
    mode those have 32 bits).  On a GPU the kernel's launch waits for them.
    """
    counter = _counter(seed=seed, stream=stream, step=step, offset=offset)
    return _call("gaussian_sample", mu, logvar, counter)


def _counter(**key: Any) -> jax.Array:
    """(6,) uint32: seed low, seed high, stream, step, offset low, offset high."""
    numbers(0, **{n: 0 if isinstance(k, jax.Array) else k for n, k in key.items()})  # their ranges
    (seed, seed2), (stream, _), (step, _), (offset, offset2) = (_words(*k) for k in key.items())
    words = (seed, seed2, stream, step, offset, offset2)
    return jnp.stack([jnp.asarray(word, jnp.uint32) for word in words])


def _words(name: str, value: Any) -> tuple[Any, Any]:
    """The low and the high 32 bits."""
    if not isinstance(value, jax.Array):
        return np.uint32(int(value) & LOW), np.uint32(int(value) >> 32)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be an integer, got {value.dtype}")
    return value, value >> 32 if value.dtype.itemsize == 8 else np.uint32(0)


def gaussian_kl(mu: Array, logvar: Array, *, free_bits: float = 0.0) -> jax.Array:
    """KL(N(mu, sigma^2) || N(0, I)) of each row, (B,), in nats; mu, logvar: (B, Z)."""
    return _call("gaussian_kl", mu, logvar, free_bits=free_bits)


def gaussian_kl_between(mu: Array, logvar: Array, mu2: Array, logvar2: Array) -> jax.Array:
    """KL(N(mu, sigma^2) || N(mu2, sigma2^2)) of each row, (B,), in nats; all (B, Z)."""
    return _call("gaussian_kl_between", mu, logvar, mu2, logvar2)


# ----------------------------------------------------------------------------------- likelihoods
def bernoulli_nll(logits: Array, x: Array) -> jax.Array:
    """-log p(x | logits) of each row, (B,), in nats; logits, x: (B, ...)."""
    return _call("bernoulli_nll", logits, x)


def gaussian_nll(x_mu: Array, x_logvar: Array, x: Array) -> jax.Array:
    """-log N(x; x_mu, exp(x_logvar)) of each row, (B,), in nats; all (B, ...)."""
    return _call("gaussian_nll", x_mu, x_logvar, x)


def gaussian_fixed_nll(x_mu: Array, x: Array, *, variance: float = 1.0) -> jax.Array:
    """-log N(x; x_mu, variance) of each row, (B,), in nats; x_mu, x: (B, ...)."""
    return _call("gaussian_fixed_nll", x_mu, x, variance=variance)


def categorical_nll(logits: Array, labels: Array) -> jax.Array:
    """-log p(labels | logits) of each row, (B,), in nats; logits (B, ..., C), labels (B, ...)."""
    return _call("categorical_nll", logits, labels)


def beta_nll(log_alpha: Array, log_beta: Array, x: Array) -> jax.Array:
    """-log Beta(x; alpha, beta) of each row, (B,), in nats; all (B, ...), x between 0 and 1."""
    return _call("beta_nll", log_alpha, log_beta, x)


def logistic_mixture_nll(
    logit_weight: Array, x_mu: Array, log_scale: Array, x: Array, *, levels: int = 256
) -> jax.Array:
    """-log p(x) of each row under a discretized mixture of logistics, (B,), in nats.

    logit_weight, x_mu, log_scale: (B, ..., K); x: (B, ...) in [-1, 1], of so many levels.
    """
    return _call("logistic_mixture_nll", logit_weight, x_mu, log_scale, x, levels=levels)


# ------------------------------------------------------------------------------------------- ELBO
def bernoulli_elbo(
    logits: Array, x: Array, mu: Array, logvar: Array, *, beta: Array = 1.0, free_bits: float = 0.0
) -> jax.Array:
    """The ELBO of each row, (B,), in nats; logits, x: (B, ...), mu, logvar: (B, Z).

    beta: one number, or one for each row, also traced.
    """
    return _elbo("bernoulli_elbo", logits, x, mu, logvar, beta=beta, free_bits=free_bits)


def gaussian_elbo(
    x_mu: Array, x_logvar: Array, x: Array, mu: Array, logvar: Array, *,
    beta: Array = 1.0, free_bits: float = 0.0,
) -> jax.Array:  # fmt: skip
    """The ELBO of each row, (B,), in nats; x_mu, x_logvar, x: (B, ...), mu, logvar: (B, Z).

    beta: one number, or one for each row, also traced.
    """
    return _elbo("gaussian_elbo", x_mu, x_logvar, x, mu, logvar, beta=beta, free_bits=free_bits)


def gaussian_fixed_elbo(
    x_mu: Array, x: Array, mu: Array, logvar: Array, *,
    variance: float = 1.0, beta: Array = 1.0, free_bits: float = 0.0,
) -> jax.Array:  # fmt: skip
    """The ELBO of each row, (B,), in nats; x_mu, x: (B, ...), mu, logvar: (B, Z).

    beta: one number, or one for each row, also traced.
    """
    options = {"variance": variance, "beta": beta, "free_bits": free_bits}
    return _elbo("gaussian_fixed_elbo", x_mu, x, mu, logvar, **options)


# ------------------------------------------------------------------------- importance, codebook
def log_mean_exp(log_w: Array) -> jax.Array:
    """log 1/K sum_k exp(log_w_k) of each row, (B,); log_w: (B, K)."""
    return _call("log_mean_exp", log_w)


def mixture_log_prob(z: Array, log_weights: Array, mu: Array, logvar: Array) -> jax.Array:
    """log sum_k exp(log_weights_k) N(z; mu_k, diag exp(logvar_k)) of each row, (B,), in nats.

    z: (B, Z); log_weights: (K,) or (B, K); mu, logvar: (K, Z).
    """
    return _call("mixture_log_prob", z, log_weights, mu, logvar)


def mixture_marginal_log_prob(z: Array, log_weights: Array, mu: Array, logvar: Array) -> jax.Array:
    """The same of every number of z on its own, under the mixture's marginals, (B, Z)."""
    return _call("mixture_marginal_log_prob", z, log_weights, mu, logvar)


def nearest_code(z: Array, codebook: Array) -> tuple[jax.Array, jax.Array]:
    """The code nearest to each vector, (N, Z), and which it is, (N,); z (N, Z), codebook (K, Z).

    The gradient goes straight through to z; the codebook has none: pass stop_gradient(codebook).
    """
    return _call("nearest_code", z, codebook)
