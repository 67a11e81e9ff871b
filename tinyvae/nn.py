"""Layers: a Module holds parameters (tensors that require a gradient) and other modules.

Sizes: B batch, I inputs, O outputs, H W image, C channels, R S filter; in layers for sequences
T time, H hidden units, V vocabulary, E features.
A layer is made with its sizes; `rng` decides its first weights, `dtype` their type.  Anything that
maps a tensor to a tensor may stand in a Sequential, `ops.relu` for example.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from . import devices, ops
from .tensor import Tensor

M = TypeVar("M", bound="Module")
Initialiser = Callable[[np.random.Generator, tuple[int, ...], int, int], np.ndarray]
# The activations by name; in a Sequential they stand as functions.
ACTIVATIONS: dict[str, Callable] = {
    "relu": ops.relu,
    "leaky_relu": ops.leaky_relu,
    "elu": ops.elu,
    "gelu": ops.gelu,
    "silu": ops.silu,
    "tanh": ops.tanh,
    "softplus": ops.softplus,
}


_FUSED = {function: name for name, function in ACTIVATIONS.items()}


# -------------------------------------------------------------------------------- initialisers
def fan_in_uniform(rng: np.random.Generator, shape: tuple, fan_in: int, fan_out: int) -> np.ndarray:
    """U(-a, a), a = 1 / sqrt(fan_in): PyTorch's default for linear and convolution layers."""
    a = 1 / math.sqrt(fan_in)
    return rng.uniform(-a, a, shape)


def glorot_uniform(rng: np.random.Generator, shape: tuple, fan_in: int, fan_out: int) -> np.ndarray:
    """U(-a, a), a = sqrt(6 / (fan_in + fan_out)).     Glorot and Bengio 2010, equation 16."""
    a = math.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-a, a, shape)


def he_normal(rng: np.random.Generator, shape: tuple, fan_in: int, fan_out: int) -> np.ndarray:
    """N(0, 2 / fan_in), for relu.     He, Zhang, Ren and Sun 2015, equation 10."""
    return rng.normal(0, math.sqrt(2 / fan_in), shape)


def zeros(rng: np.random.Generator, shape: tuple, fan_in: int, fan_out: int) -> np.ndarray:
    """All zero."""
    return np.zeros(shape)


def unit_normal(rng: np.random.Generator, shape: tuple, fan_in: int, fan_out: int) -> np.ndarray:
    """N(0, 1): PyTorch's default for embeddings."""
    return rng.standard_normal(shape)


# --------------------------------------------------------------------------------------- Module
class Buffer(Tensor):
    """A tensor of a module that training changes, though not by a gradient: a moving average.

    It is saved and loaded with the parameters.  Change its `data` in place: replicas of the network
    share it.
    """

    __slots__ = ()

    def __init__(self, data: Any):
        super().__init__(data)


class Module:
    """Something with parameters: they are found by walking the attributes, lists included.

    Buffers are found the same way.  Any other tensor without a gradient is a constant, which is
    made anew with the module and not saved.

    couples_rows: set it in a module whose output for a row depends on the batch's other rows, as
    batch normalisation does; training then keeps the batch in one piece.
    """

    couples_rows: bool = False

    def __call__(self, x: Any) -> Any:
        """Apply the module; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Pairs of dotted name and parameter, in the order in which they were assigned.

        A parameter that is used in two places comes once, under its first name.
        """
        return ((name, tensor) for name, tensor in self._tensors(prefix) if tensor.requires_grad)

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Pairs of dotted name and buffer, likewise."""
        pairs = self._tensors(prefix)
        return ((name, tensor) for name, tensor in pairs if isinstance(tensor, Buffer))

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters, then buffers: all that training changes."""
        yield from self.named_parameters()
        yield from self.named_buffers()

    def _tensors(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Pairs of dotted name and tensor, each tensor once."""
        seen: set[int] = set()
        for name, tensor in self._all_tensors(prefix):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def _all_tensors(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name, item in self._attributes():
            if isinstance(item, Module):
                yield from item._all_tensors(f"{prefix}{name}.")
            elif isinstance(item, Tensor):
                yield prefix + name, item

    def modules(self) -> Iterator[Module]:
        """This module and all inside it."""
        yield self
        for _, item in self._attributes():
            if isinstance(item, Module):
                yield from item.modules()

    def couples(self) -> bool:
        """Whether any module inside couples the rows of a batch."""
        return any(module.couples_rows for module in self.modules())

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        """Pairs of name and value; the items of a list are numbered."""
        for name, value in vars(self).items():
            if isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
            else:
                yield name, value

    def parameters(self) -> list[Tensor]:
        """All parameters, in order."""
        return [tensor for _, tensor in self.named_parameters()]

    def zero_grad(self) -> None:
        """Forget all gradients; the next backward starts anew."""
        for tensor in self.parameters():
            tensor.grad = None

    def astype(self: M, dtype: Any) -> M:
        """Convert all parameters and buffers of floats in place, and return the module."""
        for _, tensor in self.named_state():
            if tensor.dtype.kind == "f":
                tensor.data, tensor.grad = tensor.data.astype(dtype), None
        return self

    def to(self: M, device: str) -> M:
        """Move all tensors in place to "cpu", "cuda" or, by "auto", the better one of the two.

        Constants that a module holds as tensors go along; make the optimizer afterwards.
        Returns the module.  Raises BackendError with the reason if "cuda" cannot be used.
        """
        device = devices.resolve(device)
        for module in self.modules():
            for _, item in module._attributes():
                if isinstance(item, Tensor):
                    item.data, item.grad = devices.move(item.data, device), None
        return self

    def state_dict(self) -> dict[str, Any]:
        """Name -> array, for a checkpoint.  The arrays are the tensors' own, not copies."""
        return {name: tensor.data for name, tensor in self.named_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy arrays, from either device, into the tensors of the same names and shapes.

        Raises ValueError that names what is missing, unknown or of another shape.
        """
        own = dict(self.named_state())
        if missing := [name for name in own if name not in state]:
            raise ValueError(f"the state lacks {', '.join(missing)}")
        if unknown := [name for name in state if name not in own]:
            raise ValueError(f"the network has no {', '.join(unknown)}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {state[name].shape}, expected {tensor.shape}")
        for name, tensor in own.items():
            values = devices.to_host(state[name])
            tensor.data = np.array(values, tensor.dtype, like=tensor.data)
            tensor.grad = None


@contextlib.contextmanager
def frozen(module: Module) -> Iterator[None]:
    """Inside the block the module's parameters are constants: what is computed leaves them alone.

    The gradient still passes through to the module's input, as a generator needs it from its
    discriminator:

        with frozen(discriminator):
            loss = ops.mean(-discriminator(picture))   # trains what made the picture, alone

    The op decides when it is applied, so `backward` may be called outside.
    """
    tensors = module.parameters()
    for tensor in tensors:
        tensor.requires_grad = False
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad = True


def _parameter(values: np.ndarray, dtype: Any) -> Tensor:
    return Tensor(np.ascontiguousarray(values, dtype), requires_grad=True)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {size!r}")


class Linear(Module):
    """y = x W + b, for x (..., I).  weight: (I, O), bias: (O,)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        initialiser: Initialiser = fan_in_uniform,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        _check_sizes(inputs=inputs, outputs=outputs)
        rng = rng or np.random.default_rng()
        self.weight = _parameter(initialiser(rng, (inputs, outputs), inputs, outputs), dtype)
        self.bias = None
        if bias:
            self.bias = _parameter(fan_in_uniform(rng, (outputs,), inputs, outputs), dtype)

    def __call__(self, x: Any, activation: str = "identity") -> Tensor:
        """(..., I) -> (..., O)."""
        return ops.linear(x, self.weight, self.bias, activation=activation)


class MaskedLinear(Linear):
    """y = x (W * mask) + b: output o does not see input i where mask[i, o] is 0.

    mask: (I, O) of 0 and 1; options: Linear's.
    """

    def __init__(self, mask: np.ndarray, *, dtype: Any = np.float32, **options: Any):
        super().__init__(*mask.shape, dtype=dtype, **options)
        self.mask = Tensor(np.ascontiguousarray(mask, dtype))

    def __call__(self, x: Any, activation: str = "identity") -> Tensor:
        """(..., I) -> (..., O)."""
        return ops.linear(x, self.weight * self.mask, self.bias, activation=activation)


class MADE(Module):
    """An autoregressive network: what it says of x_d depends on x_1 .. x_{d-1} alone.

    Every unit has a degree, inputs and outputs 1 .. D; a weight is kept where the degrees rise:
    m(input) <= m(hidden) <= m(next hidden) < m(output)     Germain et al. 2015, section 4
    Hidden degrees are dealt in turn, not drawn, so that no dimension goes short.

    inputs: D; hidden: units of each hidden layer; outputs: K numbers for each dimension;
    features: size of a context that all outputs may depend on (hidden units of degree 0 carry
    it to the first).  The last layer starts at zero.
    """

    def __init__(
        self,
        inputs: int,
        hidden: tuple[int, ...] = (64,),
        *,
        outputs: int = 2,
        features: int | None = None,
        activation: str = "relu",
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        _check_sizes(inputs=inputs, outputs=outputs)
        if not hidden:
            raise ValueError("hidden must name the size of one layer at least, got ()")
        rng, lowest = rng or np.random.default_rng(), 0 if features else 1
        degrees = [np.arange(inputs) + 1]
        for size in hidden:
            degrees.append(lowest + np.arange(size) % max(1, inputs - lowest))
        self.layers = [
            MaskedLinear(below[:, None] <= above, rng=rng, dtype=dtype)
            for below, above in itertools.pairwise(degrees)
        ]
        self.context = None
        if features:
            self.context = Linear(features, hidden[0], bias=False, rng=rng, dtype=dtype)
        seen = degrees[-1][:, None] < np.tile(degrees[0], outputs)
        self.last = MaskedLinear(seen, initialiser=zeros, rng=rng, dtype=dtype)
        self.last.bias.data[:] = 0  # type: ignore[union-attr]
        self.activation, self.outputs = ACTIVATIONS[activation], outputs

    def __call__(self, x: Any, context: Any = None) -> list[Tensor]:
        """x (N, D), context (N, features) -> K tensors (N, D).

        Raises ValueError if it was made with features and there is no context.
        """
        first, *others = self.layers
        h = first(x)
        if self.context is not None:
            if context is None:
                raise ValueError("MADE was made with features: it needs a context")
            h = h + self.context(context)
        for layer in others:
            h = layer(self.activation(h))
        y, D = self.last(self.activation(h)), x.shape[-1]
        return [y[:, k * D : (k + 1) * D] for k in range(self.outputs)]


class Conv2d(Module):
    """Convolution of (B, H, W, C).  weight: (R, S, C, O), bias: (O,)."""

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
        initialiser: Initialiser = fan_in_uniform,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        R, S = (kernel, kernel) if isinstance(kernel, int) else kernel
        _check_sizes(channels=channels, filters=filters, kernel=min(R, S), stride=stride)
        rng = rng or np.random.default_rng()
        fan_in, fan_out = self._fans(channels, filters, R * S)
        shape = (R, S, channels, filters)
        self.weight = _parameter(initialiser(rng, shape, fan_in, fan_out), dtype)
        self.bias = None
        if bias:
            self.bias = _parameter(fan_in_uniform(rng, (filters,), fan_in, fan_out), dtype)
        self.options = {"stride": stride, "padding": padding, "dilation": dilation}

    @staticmethod
    def _fans(channels: int, filters: int, size: int) -> tuple[int, int]:
        return channels * size, filters * size

    def __call__(self, x: Any, activation: str = "identity") -> Tensor:
        """(B, H, W, C) -> (B, P, Q, O)."""
        return ops.conv2d(x, self.weight, self.bias, activation=activation, **self.options)


class ConvTranspose2d(Conv2d):
    """The adjoint of Conv2d: (B, H, W, C) -> (B, P, Q, O).  weight: (R, S, C, O), bias: (O,).

    output_size: (P, Q) where several fit; the smallest by default (see ops.conv_transpose2d).
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: int | tuple[int, int],
        *,
        output_size: tuple[int, int] | None = None,
        **options: Any,
    ):
        super().__init__(channels, filters, kernel, **options)
        self.output_size = output_size

    @staticmethod
    def _fans(channels: int, filters: int, size: int) -> tuple[int, int]:
        # PyTorch counts a transposed filter's fan-in over its output channels: kept, so that a
        # run here and there starts from the same distribution
        return filters * size, channels * size

    def __call__(self, x: Any, activation: str = "identity") -> Tensor:
        """(B, H, W, C) -> (B, P, Q, O)."""
        return ops.conv_transpose2d(
            x, self.weight, self.bias, output_size=self.output_size, activation=activation,
            **self.options,
        )  # fmt: skip


class Reshape(Module):
    """Give each row another shape: (B, ...) -> (B, *shape).  Reshape(-1) flattens."""

    def __init__(self, *shape: int):
        self.shape = shape

    def __call__(self, x: Any) -> Tensor:
        """(B, ...) -> (B, *shape)."""
        if self.shape == (-1,):  # counted here, for NumPy cannot where there are no rows
            return ops.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
        return ops.reshape(x, (x.shape[0], *self.shape))


class Sequential(Module):
    """One layer after the other; plain functions of a tensor are layers too.

    A linear layer or a convolution and an activation of ACTIVATIONS behind it run as one op.
    """

    def __init__(self, *layers: Callable[[Any], Tensor]):
        self.layers = list(layers)

    def __call__(self, x: Any, *more: Any) -> Tensor:
        """Apply all layers in order; more: what else the first one takes."""
        waiting = iter([*self.layers, None])
        layer = next(waiting)
        while layer is not None:
            following = next(waiting)
            if isinstance(layer, (Linear, Conv2d)) and following in _FUSED:
                x, following = layer(x, _FUSED[following]), next(waiting)
            else:
                x = layer(x, *more)
            layer, more = following, ()
        return x


# ------------------------------------------------------------------------------------- sequences
class Embedding(Module):
    """Whole numbers in [0, V) as rows of a table.  weight: (V, E)."""

    def __init__(
        self,
        count: int,
        features: int,
        *,
        initialiser: Initialiser = unit_normal,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        _check_sizes(count=count, features=features)
        rng = rng or np.random.default_rng()
        self.weight = _parameter(initialiser(rng, (count, features), count, features), dtype)

    def __call__(self, index: Any) -> Tensor:
        """(...) whole numbers -> (..., E)."""
        return ops.embedding(self.weight, index)


class LayerNorm(Module):
    """Each row to mean 0 and variance 1, then scaled and shifted.     Ba, Kiros and Hinton 2016.

    weight, bias: (E,), at first 1 and 0.
    """

    def __init__(self, features: int, *, dtype: Any = np.float32):
        _check_sizes(features=features)
        self.weight = _parameter(np.ones(features), dtype)
        self.bias = _parameter(np.zeros(features), dtype)

    def __call__(self, x: Any) -> Tensor:
        """(..., E) -> (..., E)."""
        return ops.layer_norm(x, self.weight, self.bias)


class GRU(Module):
    """Gated recurrent unit (Cho et al. 2014): see ops.gru for the formula.

    weight_ih: (I, 3H), weight_hh: (H, 3H), bias_ih, bias_hh: (3H,), gates r, u, n side by side:
    the weights are the transposes of those of PyTorch's GRU, the biases are the same.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        _check_sizes(inputs=inputs, hidden=hidden)
        rng = rng or np.random.default_rng()
        self.hidden = hidden
        shapes = ((inputs, 3 * hidden), (hidden, 3 * hidden), (3 * hidden,), (3 * hidden,))
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = (
            _parameter(fan_in_uniform(rng, shape, hidden, hidden), dtype) for shape in shapes
        )

    def __call__(self, x: Any, mask: Any = None, state: Any = None) -> Tensor:
        """States after each step: (B, T, I) -> (B, T, H).

        mask: (B, T), nonzero where a step counts; at the others the state stays, so that the last
        column is each row's last state, however long the row.  state: (B, H) to begin with, or 0.
        """
        if state is None:
            like = self.weight_hh.data
            state = np.zeros((len(x), self.hidden), like.dtype, like=like)
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        return ops.gru(x, state, *weights, mask)


class CausalSelfAttention(Module):
    """Each step looks at itself and at those before it, with several heads side by side.

    softmax(Q K^T / sqrt(E / heads)) V                     Vaswani et al. 2017, section 3.2
    qkv: the three projections in one layer, E -> 3E, in this order; out: E -> E.
    """

    def __init__(self, features: int, heads: int, **options: Any):
        _check_sizes(features=features, heads=heads)
        if features % heads:
            raise ValueError(f"{features} features cannot be shared by {heads} heads")
        self.heads = heads
        self.qkv = Linear(features, 3 * features, **options)
        self.out = Linear(features, features, **options)

    def __call__(self, x: Any, mask: Any = None) -> Tensor:
        """(B, T, E) -> (B, T, E).  mask: (B, T), nonzero where a step may be looked at."""
        B, T, E = x.shape
        split = ops.reshape(self.qkv(x), (B, T, 3, self.heads, E // self.heads))
        q, k, v = (ops.transpose(split[:, :, i], (0, 2, 1, 3)) for i in range(3))
        scores = q @ ops.transpose(k, (0, 1, 3, 2)) * (E // self.heads) ** -0.5  # (B, heads, T, T)
        seen = devices.move(np.tri(T, dtype=bool), devices.of(self.out.weight.data))
        if mask is not None:
            seen = seen & (devices.as_array(mask) != 0)[:, None, None, :]
        mixed = ops.transpose(ops.softmax(scores, seen) @ v, (0, 2, 1, 3))
        return self.out(ops.reshape(mixed, (B, T, E)))


class TransformerBlock(Module):
    """Causal self-attention, then two dense layers, each added to what went in, normed before.

    x + attention(norm(x)), then x + dense(norm(x))        Xiong et al. 2020, figure 1 (b)
    hidden: units between the dense layers, 4 E by default.
    """

    def __init__(self, features: int, heads: int, hidden: int | None = None, **options: Any):
        hidden, dtype = hidden or 4 * features, options.get("dtype", np.float32)
        self.norms = [LayerNorm(features, dtype=dtype), LayerNorm(features, dtype=dtype)]
        self.attention = CausalSelfAttention(features, heads, **options)
        self.dense = Sequential(
            Linear(features, hidden, **options), ops.gelu, Linear(hidden, features, **options)
        )

    def __call__(self, x: Any, mask: Any = None) -> Tensor:
        """(B, T, E) -> (B, T, E).  mask: (B, T), nonzero where a step may be looked at."""
        x = x + self.attention(self.norms[0](x), mask)
        return x + self.dense(self.norms[1](x))


def word_dropout(x: Any, u: Any, *, rate: float, unknown: int = 0) -> Any:
    """Some steps hidden from a decoder, so that it has to ask z.     Bowman et al. 2016, 3.1.1.

    x: (B, T) whole numbers, of which `unknown` takes the place, or (B, T, ...) floats, which become
    0; u: (B, T) uniform noise: a step is hidden where u < rate.
    Raises ValueError if rate is not in [0, 1], or the shapes differ.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    if x.shape[:2] != u.shape:
        raise ValueError(f"u has shape {u.shape}, expected {x.shape[:2]}")
    hidden = (u < rate).reshape(u.shape + (1,) * (x.ndim - 2))
    return np.where(hidden, x.dtype.type(unknown if x.dtype.kind in "iu" else 0), x)
