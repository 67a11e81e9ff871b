"""The kernels as differentiable PyTorch functions: eager and compiled, on a CPU and on CUDA.

    from tinyvae_kernels.adapters.pytorch import bernoulli_elbo, reparameterize

    z = reparameterize(mu, logvar, torch.randn_like(mu))
    loss = -bernoulli_elbo(decoder(z), x, mu, logvar, beta=4.0).mean()
    loss.backward()

One function for each pair of `tinyvae_kernels.PAIRS` for which PyTorch has no equal, with the
pair's arguments, shapes and errors.  Tensors on a CPU are read in place; those on a GPU, too, which
takes CuPy: its kernels run on PyTorch's current stream, in memory of PyTorch's allocator.

- Gradients are of the first order and by reverse mode.  Second derivatives and forward mode raise,
  and so does a gradient with respect to data (`x`, `eps`, `labels`): there is none.
- Each function is also an operator, torch.ops.tinyvae.<name>, which returns the gradients for a
  `dout` of one beside the value: torch.compile and torch.export see that one.
- torch.func works, too: rows are independent, so that vmap adds rows to one call.
- Under autocast half-precision tensors are widened to float32, as PyTorch's own losses do.
- On a CPU the kernels use torch.get_num_threads() threads, unless `tinyvae_kernels.threads` is set.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

from .. import PAIRS, BackendError, _cuda, _threads, cuda_problem, philox
from .._dispatch import HALVES, arithmetic, contiguous, kl_floor, rows
from ..activation import ACTIVATIONS, SILU
from ..likelihood import scale_rows

__all__ = [
    "bernoulli_elbo",
    "bernoulli_nll",
    "beta_nll",
    "bias_activation",
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


# ------------------------------------------------------------------------ tensors as GPU arrays
class _Bfloat16:
    """The dtype that NumPy lacks; there is one instance."""

    name, kind, itemsize = "bfloat16", "f", 2

    def __repr__(self) -> str:
        return self.name


_DTYPES: dict[torch.dtype, Any] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: _Bfloat16(),
    torch.int64: np.dtype(np.int64),
    torch.int32: np.dtype(np.int32),
    torch.int16: np.dtype(np.int16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
    torch.bool: np.dtype(np.bool_),
}
_HALVES = (torch.float16, torch.bfloat16)
_TORCH_DTYPES = {dtype: torch_dtype for torch_dtype, dtype in _DTYPES.items()}
_TORCH_DTYPES |= {d.type: t for t, d in _DTYPES.items() if isinstance(d, np.dtype)}


class TorchArray:
    """A tensor on a GPU as the kernels see an array: shape, NumPy's dtype, address."""

    __slots__ = ("dtype", "shape", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), _DTYPES[tensor.dtype]

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: self.tensor.numel())
    data = flags = property(lambda self: self)  # array.data.ptr, array.flags.c_contiguous
    ptr = property(lambda self: self.tensor.data_ptr())
    c_contiguous = property(lambda self: self.tensor.is_contiguous())

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: Any) -> TorchArray:
        """A view; RuntimeError where that would take a copy."""
        return type(self)(self.tensor.view(*shape))

    def astype(self, dtype: Any, copy: bool = True) -> TorchArray:
        """The numbers in another type, as NumPy's astype."""
        return type(self)(self.tensor.to(_TORCH_DTYPES[dtype], copy=copy))

    def fill(self, value: float) -> None:
        """One number everywhere."""
        self.tensor.fill_(value)


class TorchDevice:
    """The Device of _cuda.py for `TorchArray`: CuPy's kernels on PyTorch's memory and streams."""

    array: type[TorchArray] = TorchArray

    def __init__(self) -> None:
        self.xp = SimpleNamespace(empty=self._empty, ascontiguousarray=self._contiguous)

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> TorchArray:
        tensor = torch.empty(shape, dtype=_TORCH_DTYPES[dtype], device=self._device())
        return self.array(tensor)

    def _contiguous(self, array: TorchArray) -> TorchArray:
        return self.array(array.tensor.contiguous())

    def _device(self) -> Any:
        return torch.device("cuda", torch.cuda.current_device())

    @functools.cached_property
    def _cupy(self) -> Any:
        if problem := cuda_problem():
            raise BackendError(f"the tensors lie on a GPU, and CUDA cannot be used: {problem}")
        return _cuda.cupy_device()

    def function(self, file: str, kernel: str) -> Callable[..., None]:
        """A kernel that is launched on the current stream of PyTorch, not on CuPy's."""
        # of a stream the launch reads `ptr` alone; CuPy's own class for foreign streams is on its
        # way out, and its `with` would change CuPy's current stream
        stream = SimpleNamespace(ptr=torch.cuda.current_stream().cuda_stream)
        return functools.partial(self._cupy.function(file, kernel), stream=stream)

    def place(self, array: TorchArray) -> str:
        """cuda:0, cuda:1 ..."""
        return str(array.tensor.device)

    def active(self, array: TorchArray) -> contextlib.AbstractContextManager:
        """PyTorch's device context, and CuPy's: each keeps its own account of what is current."""
        index = array.tensor.get_device()
        runtime = self._cupy.xp.cuda.runtime
        if torch.cuda.current_device() == index == runtime.getDevice():
            return contextlib.nullcontext()
        return self._on(index)

    @contextlib.contextmanager
    def _on(self, index: int) -> Iterator[None]:
        with torch.cuda.device(index), self._cupy.xp.cuda.Device(index):
            yield

    def blocks(self) -> int:
        """Eight blocks of 256 threads fill a multiprocessor."""
        return self._cupy.blocks()


_cuda._devices[TorchArray] = TorchDevice()


def _gpu_array(tensor: Tensor) -> TorchArray:
    """The tensor's own memory, unless a negative bit asks for a copy."""
    return TorchArray(tensor.detach().resolve_neg())


def _array(name: str, tensor: Tensor) -> Any:
    """The tensor's own memory: a NumPy array or a TorchArray.  TypeError for a half on a CPU."""
    if not tensor.is_cpu:
        return _gpu_array(tensor)
    if tensor.dtype in _HALVES:
        found = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(
            f"{name} must be float32 or float64, got {found} ({' and '.join(HALVES)} on a GPU only)"
        )
    return tensor.numpy(force=True)  # without a copy on a CPU


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array.tensor


def _in_pytorch_threads(function: Callable, *args: Any, **options: Any) -> Any:
    """function(...) in as many threads as PyTorch uses, which its workers and launchers limit."""
    if _threads._limit.get() is not None:
        return function(*args, **options)
    token = _threads._limit.set(torch.get_num_threads())  # `with threads(n)` costs 5 us more (EPYC)
    try:
        return function(*args, **options)
    finally:
        _threads._limit.reset(token)


# ----------------------------------------------------------------------------- the operators
_library = torch.library.Library("tinyvae", "DEF")
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_PLAIN = (Tensor, torch.nn.Parameter)
_SCHEMA = {"float": "float", "int": "SymInt", "str": "str"}


def _more_rows(operator: Callable, info: Any, in_dims: tuple, *args: Any) -> tuple:
    """vmap: the mapped axis becomes rows, (V, B, ...) -> (V*B, ...), and is split off again."""
    V, B, merged = info.batch_size, 0, []
    for arg, axis in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            each = arg.expand(V, *arg.shape) if axis is None else arg.movedim(axis, 0)
            if each.ndim < 2:
                raise ValueError("inside vmap, too, the kernels need a batch axis")
            B, arg = each.shape[1], each.flatten(0, 1)
        merged.append(arg)
    results = operator(*merged)
    if isinstance(results, Tensor):
        return results.reshape(V, B, *results.shape[1:]), 0
    return tuple(r.reshape(V, B, *r.shape[1:]) for r in results), (0,) * len(results)


def _refuse(ctx: Any, *_: Any) -> None:
    """The backward of a gradient."""
    raise NotImplementedError("the kernels of tinyvae have no second derivatives")


def _nothing(ctx: Any, inputs: tuple, output: Any) -> None:
    """What the refusal needs to remember."""


def _function(name: str, **methods: Callable) -> Any:
    """A torch.autograd.Function."""
    static = {method: staticmethod(body) for method, body in methods.items()}
    return type(name, (torch.autograd.Function,), static)


class _Operator:
    """torch.ops.tinyvae.<name> for CPU and CUDA tensors, and the same for torch.func.

    run: on real tensors; fake: shapes and dtypes; backward and setup: as in
    torch.autograd.Function; vmap: what torch.func.vmap does, called with the operator first.
    """

    def __init__(
        self,
        name: str,
        parameters: list[str],
        results: list[str],
        run: Callable,
        fake: Callable,
        *,
        backward: Callable = _refuse,
        setup: Callable = _nothing,
        vmap: Callable = _more_rows,
    ):
        returned = ", ".join(f"Tensor {result}" for result in results)
        schema = f"{name}({', '.join(parameters)}) -> ({returned})"
        _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        for key in _KEYS.values():
            _library.impl(name, run, key)
        rule = functools.partial(vmap, self)
        self.overload = getattr(torch.ops.tinyvae, name).default
        torch.library.register_fake(self.overload, fake, lib=_library)
        torch.library.register_vmap(self.overload, rule, lib=_library)
        torch.library.register_autograd(self.overload, backward, setup_context=setup, lib=_library)
        # torch.func differentiates no operator whose backward is registered from Python
        self.function = _function(
            name, forward=run, setup_context=setup, backward=backward, vmap=rule
        )

    def __call__(self, *args: Any) -> Any:
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return self.function.apply(*args)
        return self.overload(*args)


def _one_or_all(results: tuple) -> Any:
    """What an operator returns: a single tensor not in a tuple."""
    return results[0] if len(results) == 1 else results


def _no_vmap(operator: Callable, info: Any, in_dims: tuple, *args: Any) -> None:
    raise NotImplementedError(
        "this kernel of tinyvae has no rule for vmap: call it once, outside, for all rows"
    )


def _run_scale(dout: Tensor, *gradients: Tensor) -> list[Tensor]:
    """dout[i] gradient[i] of each gradient, in its own dtype."""
    rate = _array("dout", dout)
    arrays = [_array("gradient", gradient) for gradient in gradients]
    return _in_pytorch_threads(lambda: [_tensor(scale_rows(rate, array)) for array in arrays])


# `out` leads autograd from the gradient back to the arguments, so that what differentiates the
# gradient meets the refusal rather than something that seems constant.
_scale = _Operator(
    "scale_rows", ["Tensor dout", "Tensor gradient", "Tensor out"], ["scaled"],
    lambda dout, gradient, out: _run_scale(dout, gradient)[0],
    lambda dout, gradient, out: gradient.new_empty(gradient.shape),
)  # fmt: skip


def _scaled(dout: Tensor, gradients: tuple[Tensor, ...], out: Tensor) -> list[Tensor]:
    """The same on the tape, if it is recorded, or for a compiler, which can fuse it."""
    if torch.is_grad_enabled():  # it is by create_graph
        return [_scale(dout, gradient, out) for gradient in gradients]
    if _is_plain((dout, *gradients)):
        return _run_scale(dout, *gradients)
    columns = (dout.view(dout.shape + (1,) * (g.ndim - 1)) for g in gradients)  # (B, 1, ...)
    return [(column * g).to(g.dtype) for column, g in zip(columns, gradients, strict=True)]


class _Pair:
    """A pair of PAIRS as an operator and as a torch.autograd.Function, which run the same.

    The gradients of all pairs are linear in `dout`.  Where the forward saves the gradients for a
    dout of one, they are outputs of the operator, and the backward scales their rows.  Else `kept`
    names the arguments that the backward needs, and a second operator runs the pair's backward on
    resaved(kept arguments..., **options), which is what the forward saved.

    keep: (inputs, out) -> what is kept, where that is not the arguments themselves;
    data: arguments without a gradient; unit: those whose gradient is dout itself;
    also: further results, int64 (B,), with which the pair's `saved` begins;
    rowwise: one value a row, else of the first argument's shape; vmap: what torch.func.vmap does.
    """

    def __init__(
        self,
        name: str,
        *,
        data: tuple[str, ...] = (),
        unit: tuple[str, ...] = (),
        kept: tuple[str, ...] | None = None,
        keep: Callable[[tuple, Any], tuple] | None = None,
        resaved: Callable[..., tuple] | None = None,
        forward: Callable | None = None,
        also: tuple[str, ...] = (),
        rowwise: bool = True,
        vmap: Callable = _more_rows,
    ):
        self.name, self.also, self.rowwise = name, also, rowwise
        self.keep, self.resaved = keep or self.kept_arguments, resaved
        self.run_pair = forward or PAIRS[name][0]
        parameters = inspect.signature(self.run_pair).parameters.values()
        self.arrays = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        types = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.options = tuple(o for o, annotation in types.items() if annotation in _SCHEMA)
        self.data = tuple(self.arrays.index(a) for a in data)
        self.unit = tuple(self.arrays.index(a) for a in unit)
        others = (i for i, a in enumerate(self.arrays) if a not in data and a not in unit)
        self.computed = tuple(others)  # the positions whose gradient a kernel computes
        self.saves_gradients = kept is None
        self.kept = tuple(self.arrays.index(a) for a in kept or ())
        self._define([f"{_SCHEMA[types[o]]} {o}" for o in self.options], vmap)

    def _define(self, options: list[str], vmap: Callable) -> None:
        gradients = [f"d{self.arrays[i]}" for i in self.computed]
        self.operator = _Operator(
            self.name, [f"Tensor {a}" for a in self.arrays] + options,
            ["out", *self.also, *(gradients if self.saves_gradients else [])],
            self.run, self.fake, backward=self.backward, setup=self.setup_context, vmap=vmap,
        )  # fmt: skip
        if self.kept:
            kept = [f"Tensor {self.arrays[i]}" for i in self.kept]
            self.backward_operator = _Operator(
                f"{self.name}_backward", ["Tensor dout", *kept, *options], gradients,
                self.run_backward, self.fake_backward, vmap=vmap,
            )  # fmt: skip
        self.function = _function(self.name, forward=self.forward, backward=self.backward)

    def value(self, results: Any) -> Any:
        """What the caller gets of the operator's results."""
        if not self.also:
            return results[0] if self.saves_gradients else results
        return results[: 1 + len(self.also)]

    # ---------------------------------------------------------------------------------- forward
    def run(self, *args: Any) -> Any:
        """The operator on real tensors."""
        n = len(self.arrays)
        arrays = [_array(name, t) for name, t in zip(self.arrays, args, strict=False)]
        options = dict(zip(self.options, args[n:], strict=True))
        out, saved = _in_pytorch_threads(self.run_pair, *arrays, **options)
        results = [out]
        if self.also or self.saves_gradients:
            found = _arrays_in(saved)
            results += found[: len(self.also)]
            results += found[-len(self.computed) :] if self.saves_gradients else []
        return _one_or_all(tuple([_tensor(array) for array in results]))

    def fake(self, *args: Any) -> Any:
        """Shapes and dtypes of what `run` returns."""
        first = args[0]
        if self.rowwise:
            dtype = torch.float32 if first.dtype in _HALVES else first.dtype
            out = first.new_empty(first.shape[:1], dtype=dtype)
        else:
            out = first.new_empty(first.shape)
        also = (first.new_empty(first.shape[:1], dtype=torch.int64) for _ in self.also)
        gradients = self.computed if self.saves_gradients else ()
        return _one_or_all((out, *also, *(args[i].new_empty(args[i].shape) for i in gradients)))

    def forward(self, ctx: Any, *args: Any) -> Any:
        """The same without the dispatcher, in eager mode: 45 us less a step on an EPYC."""
        results = self.run(*args)
        self.save(ctx, args, results)
        return self.value(results)

    def setup_context(self, ctx: Any, inputs: tuple, output: Any) -> None:
        """The operator's outputs but the first are no function of its inputs to autograd."""
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[1:])
        self.save(ctx, inputs, output)

    def save(self, ctx: Any, inputs: tuple, output: Any) -> None:
        """Keep what the gradients that will be asked for need."""
        ctx.set_materialize_grads(False)
        ctx.options = inputs[len(self.arrays) :]
        needed = ctx.needs_input_grad
        if self.saves_gradients:
            gradients = output[1 + len(self.also) :]
            wanted = (g for i, g in zip(self.computed, gradients, strict=True) if needed[i])
            ctx.save_for_backward(output[0], *wanted)
        elif any(needed[i] for i in self.computed):
            ctx.save_for_backward(*self.keep(inputs, output))

    def kept_arguments(self, inputs: tuple, out: Any) -> tuple:
        """What the second operator needs, as a rule."""
        return tuple(inputs[i] for i in self.kept)

    # --------------------------------------------------------------------------------- backward
    def backward(self, ctx: Any, dout: Tensor | None, *_: None) -> tuple:
        """One gradient, or None, for each argument and option."""
        needed = ctx.needs_input_grad
        for i in self.data:
            if needed[i]:
                raise ValueError(
                    f"{self.name} has no gradient with respect to {self.arrays[i]}, which is data: "
                    f"pass {self.arrays[i]}.detach()"
                )
        gradients: list[Tensor | None] = [None] * (len(self.arrays) + len(self.options))
        if dout is None:
            return tuple(gradients)
        for i in self.unit:
            gradients[i] = dout if needed[i] else None
        computed = [i for i in self.computed if needed[i]]
        if self.saves_gradients:
            out, *saved = ctx.saved_tensors
            for i, gradient in zip(computed, _scaled(dout, tuple(saved), out), strict=True):
                gradients[i] = gradient
        elif computed:
            results = self._results(dout, ctx)
            for i in computed:
                gradients[i] = results[self.computed.index(i)]
        return tuple(gradients)

    def _results(self, dout: Tensor, ctx: Any) -> tuple:
        """All gradients that the pair's backward computes."""
        arguments = (dout, *ctx.saved_tensors)
        plain = _is_plain(arguments) and not torch.is_grad_enabled()  # it is by create_graph
        run = self.run_backward if plain else self.backward_operator
        results = run(*arguments, *ctx.options)
        return results if isinstance(results, tuple) else (results,)

    def run_backward(self, *args: Any) -> Any:
        """The backward operator on real tensors."""
        assert self.resaved is not None
        names = ("dout", *(self.arrays[i] for i in self.kept))
        dout, *kept = (_array(name, t) for name, t in zip(names, args, strict=False))
        options = dict(zip(self.options, args[len(names) :], strict=True))
        backward, saved = PAIRS[self.name][1], self.resaved(*kept, **options)
        gradients = _in_pytorch_threads(backward, dout, saved)
        return _one_or_all(tuple(_tensor(gradients[i]) for i in self.computed))

    def fake_backward(self, dout: Any, *args: Any) -> Any:
        """Shapes and dtypes of what `run_backward` returns: gradients of kept arguments."""
        kept = (args[self.kept.index(i)] for i in self.computed)
        return _one_or_all(tuple(k.new_empty(k.shape) for k in kept))


# -------------------------------------------------------------------------------------- the call
def _arrays_in(saved: Any) -> list[Any]:
    """All arrays in nested tuples.  Gradients come last, in the arguments' order."""
    if not isinstance(saved, tuple):
        return [saved]
    return [array for part in saved for array in _arrays_in(part)]


def _is_plain(tensors: tuple) -> bool:
    """Whether autograd alone has to know of a call: no compiler, tracer, transform or mode."""
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) not in _PLAIN or not (t.is_cpu or t.is_cuda):
            return False
    return not (
        torch._C._are_functorch_transforms_active()
        or _python_dispatch.is_in_torch_dispatch_mode()
        or torch.jit.is_tracing()
    )


def _widened(tensor: Any) -> Any:
    """As autocast gives tensors to PyTorch's losses: halves as float32."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in _HALVES:
        return tensor
    return tensor.float() if torch.is_autocast_enabled(tensor.device.type) else tensor


def _call(name: str, tensors: tuple, *options: Any) -> Any:
    """The pair's value, on the tape, and what else it gives the caller."""
    pair = _PAIRS[name]
    for value in options:
        if isinstance(value, Tensor):  # its gradient would be lost, and reading it halts a GPU
            option = next(o for o, v in zip(pair.options, options, strict=True) if v is value)
            raise TypeError(f"{option} must be a number, got a tensor")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        tensors = tuple(_widened(t) for t in tensors)
    if _is_plain(tensors):
        return pair.function.apply(*tensors, *options)
    for array, tensor in zip(pair.arrays, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{array} must be a tensor, got {type(tensor).__name__}")
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name} has no forward-mode derivative")
    return pair.value(pair.operator(*tensors, *options))


# --------------------------------------------------------------------------------- the functions
def _sample(mu: Any, logvar: Any, *, seed: int, stream: int, step: int, offset: int) -> Any:
    """gaussian_sample_forward with the seed as an operator can take it, in [-2^63, 2^63)."""
    forward = PAIRS["gaussian_sample"][0]
    return forward(mu, logvar, seed=seed % 2**64, stream=stream, step=step, offset=offset)


def _resaved_sample(logvar: Any, *, seed: int, stream: int, step: int, offset: int) -> tuple:
    numbers = philox.numbers(logvar.size, seed % 2**64, stream, step, offset)
    return rows(logvar), numbers, logvar.shape


def _resaved_kl(mu: Any, logvar: Any, *, free_bits: float) -> tuple:
    return rows(mu), rows(logvar), kl_floor(free_bits, arithmetic(mu.dtype)), mu.shape


def _resaved_mixture(pair: str) -> Callable[..., tuple]:
    """By another forward: its result and its shares are not among the arguments."""
    return lambda *arrays: PAIRS[pair][0](*arrays)[1]


def _kept_activation(inputs: tuple, out: Any) -> tuple:
    """The result in place of x where the derivative is a function of it."""
    x, bias, activation = inputs
    return x if ACTIVATIONS.index(activation) >= SILU else out, bias


_PAIRS = {
    pair.name: pair
    for pair in (
        _Pair(
            "reparameterize", data=("eps",), unit=("mu",), rowwise=False, kept=("logvar", "eps"),
            resaved=lambda logvar, eps: (rows(logvar), rows(eps), logvar.shape),
        ),
        _Pair(
            "gaussian_sample", unit=("mu",), rowwise=False, kept=("logvar",),
            resaved=_resaved_sample, forward=_sample, vmap=_no_vmap,
        ),
        _Pair("gaussian_kl", kept=("mu", "logvar"), resaved=_resaved_kl),
        _Pair(
            "gaussian_kl_between", kept=("mu", "logvar", "mu2", "logvar2"),
            resaved=lambda *arrays: (tuple(rows(a) for a in arrays), arrays[0].shape),
        ),
        _Pair("bernoulli_nll", data=("x",)),
        _Pair("gaussian_nll", data=("x",)),
        _Pair("gaussian_fixed_nll", data=("x",)),
        _Pair("categorical_nll", data=("labels",)),
        _Pair("beta_nll", data=("x",)),
        _Pair("logistic_mixture_nll", data=("x",)),
        _Pair("bernoulli_elbo", data=("x",)),
        _Pair("gaussian_elbo", data=("x",)),
        _Pair("gaussian_fixed_elbo", data=("x",)),
        _Pair("log_mean_exp"),
        _Pair(
            "mixture_log_prob", kept=("z", "log_weights", "mu", "logvar"),
            resaved=_resaved_mixture("mixture_log_prob"), vmap=_no_vmap,
        ),
        _Pair(
            "mixture_marginal_log_prob", rowwise=False, kept=("z", "log_weights", "mu", "logvar"),
            resaved=_resaved_mixture("mixture_marginal_log_prob"), vmap=_no_vmap,
        ),
        _Pair(
            "nearest_code", data=("codebook",), unit=("z",), kept=(), also=("codes",),
            rowwise=False, vmap=_no_vmap,
        ),
        _Pair(
            "bias_activation", rowwise=False, kept=("x", "bias"), keep=_kept_activation,
            resaved=lambda x, bias, activation: (
                contiguous(x), contiguous(bias), ACTIVATIONS.index(activation)
            ),
            vmap=_no_vmap,
        ),
    )
}  # fmt: skip


def reparameterize(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """A sample z = mu + exp(logvar / 2) eps of N(mu, sigma^2), (B, Z), for given noise."""
    return _call("reparameterize", (mu, logvar, eps))


def gaussian_sample(
    mu: Tensor, logvar: Tensor, *, seed: int, stream: int = 0, step: int = 0, offset: int = 0
) -> Tensor:
    """A sample of N(mu, sigma^2), (B, Z), whose noise is drawn in the kernel and never stored.

    The noise is `philox_normal`'s: the same on every device for the same four numbers, and nothing
    to do with PyTorch's generators.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    signed = seed if seed < 2**63 else seed - 2**64
    return _call("gaussian_sample", (mu, logvar), signed, stream, step, offset)


def gaussian_kl(mu: Tensor, logvar: Tensor, *, free_bits: float = 0.0) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, I)) of each row, (B,), in nats; each latent costs >= free_bits."""
    return _call("gaussian_kl", (mu, logvar), free_bits)


def gaussian_kl_between(mu: Tensor, logvar: Tensor, mu2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(mu2, sigma2^2)) of each row, (B,), in nats."""
    return _call("gaussian_kl_between", (mu, logvar, mu2, logvar2))


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x | logits) of each row under independent Bernoulli variables, (B,), in nats."""
    return _call("bernoulli_nll", (logits, x))


def gaussian_nll(x_mu: Tensor, x_logvar: Tensor, x: Tensor) -> Tensor:
    """-log N(x; x_mu, exp(x_logvar)) of each row, (B,), in nats."""
    return _call("gaussian_nll", (x_mu, x_logvar, x))


def gaussian_fixed_nll(x_mu: Tensor, x: Tensor, *, variance: float = 1.0) -> Tensor:
    """-log N(x; x_mu, variance) of each row, (B,), in nats."""
    return _call("gaussian_fixed_nll", (x_mu, x), variance)


def categorical_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(labels | logits) of each row, (B,), in nats; logits (B, ..., C), labels integers."""
    return _call("categorical_nll", (logits, labels))


def beta_nll(log_alpha: Tensor, log_beta: Tensor, x: Tensor) -> Tensor:
    """-log Beta(x; alpha, beta) of each row, (B,), in nats; x between 0 and 1."""
    return _call("beta_nll", (log_alpha, log_beta, x))


def logistic_mixture_nll(
    logit_weight: Tensor, x_mu: Tensor, log_scale: Tensor, x: Tensor, *, levels: int = 256
) -> Tensor:
    """-log p(x) of each row under a discretized mixture of logistics, (B,), in nats.

    logit_weight, x_mu, log_scale: (B, ..., K); x: (B, ...) in [-1, 1].
    """
    return _call("logistic_mixture_nll", (logit_weight, x_mu, log_scale, x), levels)


def bernoulli_elbo(
    logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor,
    *, beta: float | Tensor = 1.0, free_bits: float = 0.0,
) -> Tensor:  # fmt: skip
    """ELBO of each row under a Bernoulli likelihood, (B,), in nats: value and gradients fused.

    beta: a number is fused in, too, and compiled in by torch.compile; a tensor, for a schedule or
    a gradient, costs a second kernel.
    """
    if isinstance(beta, Tensor):
        return -bernoulli_nll(logits, x) - beta * gaussian_kl(mu, logvar, free_bits=free_bits)
    return _call("bernoulli_elbo", (logits, x, mu, logvar), beta, free_bits)


def gaussian_elbo(
    x_mu: Tensor, x_logvar: Tensor, x: Tensor, mu: Tensor, logvar: Tensor,
    *, beta: float | Tensor = 1.0, free_bits: float = 0.0,
) -> Tensor:  # fmt: skip
    """ELBO of each row under a Gaussian likelihood with learned variance, (B,), in nats."""
    if isinstance(beta, Tensor):
        nll = gaussian_nll(x_mu, x_logvar, x)
        return -nll - beta * gaussian_kl(mu, logvar, free_bits=free_bits)
    return _call("gaussian_elbo", (x_mu, x_logvar, x, mu, logvar), beta, free_bits)


def gaussian_fixed_elbo(
    x_mu: Tensor, x: Tensor, mu: Tensor, logvar: Tensor,
    *, variance: float = 1.0, beta: float | Tensor = 1.0, free_bits: float = 0.0,
) -> Tensor:  # fmt: skip
    """ELBO of each row under a Gaussian likelihood with one fixed variance, (B,), in nats."""
    if isinstance(beta, Tensor):
        nll = gaussian_fixed_nll(x_mu, x, variance=variance)
        return -nll - beta * gaussian_kl(mu, logvar, free_bits=free_bits)
    return _call("gaussian_fixed_elbo", (x_mu, x, mu, logvar), variance, beta, free_bits)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log 1/K sum_k exp(log_w_k) of each row, (B,): the bound of importance-weighted VAEs."""
    return _call("log_mean_exp", (log_w,))


def mixture_log_prob(z: Tensor, log_weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log sum_k exp(log_weights_k) N(z; mu_k, diag exp(logvar_k)) of each row, (B,), in nats.

    z: (B, Z); log_weights: (K,) or (B, K); mu, logvar: (K, Z).
    """
    return _call("mixture_log_prob", (z, log_weights, mu, logvar))


def mixture_marginal_log_prob(z: Tensor, log_weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The same of every number of z on its own, under the mixture's marginals, (B, Z)."""
    return _call("mixture_marginal_log_prob", (z, log_weights, mu, logvar))


def nearest_code(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The code nearest to each vector, (N, Z), and which it is, (N,) int64.

    The gradient goes straight through to z; the codebook has none: pass codebook.detach().
    """
    return _call("nearest_code", (z, codebook))


def bias_activation(x: Tensor, bias: Tensor, *, activation: str = "relu") -> Tensor:
    """activation(x + bias), bias over the last axis; activation: one of ACTIVATIONS."""
    return _call("bias_activation", (x, bias), activation)
