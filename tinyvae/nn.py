"""Layers: a Module holds parameters (tensors that require a gradient) and other modules.

Sizes: B batch, I inputs, O outputs, H W image, C channels, R S filter.
A layer is made with its sizes; `rng` decides its first weights, `dtype` their type.  Anything that
maps a tensor to a tensor may stand in a Sequential, `ops.relu` for example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

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


# --------------------------------------------------------------------------------------- Module
class Module:
    """Something with parameters: they are found by walking the attributes, lists included.

    couples_rows: set it in a module whose output for a row depends on the batch's other rows, as
    batch normalisation does; training then keeps the batch in one piece.
    """

    couples_rows: ClassVar[bool] = False

    def __call__(self, x: Any) -> Any:
        """Apply the module; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Pairs of dotted name and parameter, in the order in which they were assigned.

        A parameter that is used in two places comes once, under its first name.
        """
        seen: set[int] = set()
        for name, tensor in self._all_parameters(prefix):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def _all_parameters(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name, item in self._attributes():
            if isinstance(item, Module):
                yield from item._all_parameters(f"{prefix}{name}.")
            elif isinstance(item, Tensor) and item.requires_grad:
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
        """Convert all parameters in place, and return the module."""
        for tensor in self.parameters():
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
        """Name -> array, for a checkpoint.  The arrays are the parameters' own, not copies."""
        return {name: tensor.data for name, tensor in self.named_parameters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy arrays, from either device, into the parameters, of the same names and shapes.

        Raises ValueError that names what is missing, unknown or of another shape.
        """
        own = dict(self.named_parameters())
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
        return ops.reshape(x, (x.shape[0], *self.shape))


class Sequential(Module):
    """One layer after the other; plain functions of a tensor are layers too.

    A linear layer or a convolution and an activation of ACTIVATIONS behind it run as one op.
    """

    def __init__(self, *layers: Callable[[Any], Tensor]):
        self.layers = list(layers)

    def __call__(self, x: Any) -> Tensor:
        """Apply all layers in order."""
        waiting = iter([*self.layers, None])
        layer = next(waiting)
        while layer is not None:
            following = next(waiting)
            if isinstance(layer, (Linear, Conv2d)) and following in _FUSED:
                x, following = layer(x, _FUSED[following]), next(waiting)
            else:
                x = layer(x)
            layer = following
        return x
