"""The engine: a Tensor remembers the op that made it, and `backward` walks back along these.

An op is a pair of pure array functions; `differentiable` puts the pair on the tape, and the engine
knows nothing else about it:

    noun_forward(arrays..., *, options) -> out, saved
    noun_backward(dout, saved)          -> one gradient per array argument (None for none)

Gradients accumulate in `.grad` of the leaves (tensors that no op made), as in PyTorch.
At the end of the file stand the pairs of Python's own operators: + - * / ** @ and indexing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import devices

_order = itertools.count()  # a node is always younger than the nodes of its inputs


class _Mode(threading.local):
    """Per thread: whether ops are recorded, and whether each result is checked to be finite."""

    record = True
    check = False


_mode = _Mode()


class NonFiniteError(ArithmeticError):
    """An op gave infinity or NaN; the message names the op, the place and the inputs."""


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside the block no op is recorded: results need no gradient and keep nothing alive."""
    before, _mode.record = _mode.record, False
    try:
        yield
    finally:
        _mode.record = before


@contextlib.contextmanager
def detect_nonfinite() -> Iterator[None]:
    """Inside the block every op checks its result, and raises NonFiniteError at the first bad one.

    It costs a pass over every array, so training runs without it, and repeats the step in which
    the loss went bad under it: the same seed gives the same numbers again.
    """
    before, _mode.check = _mode.check, True
    try:
        yield
    finally:
        _mode.check = before


class _Node:
    """One application of an op: where it came from, and how to go back."""

    __slots__ = ("backward", "freed", "inputs", "name", "needs", "order", "saved", "wants_needs")

    def __init__(self, name: str, inputs: tuple, backward: Callable, saved: Any, wants: bool):
        self.name, self.inputs, self.backward, self.saved = name, inputs, backward, saved
        self.needs = tuple(isinstance(a, Tensor) and a.requires_grad for a in inputs)
        self.wants_needs = wants
        self.order = next(_order)
        self.freed = False

    def gradients(self, dout: np.ndarray) -> tuple:
        """What the pair's backward says: one gradient per array; options that came by position
        stand behind the arrays and have none.
        """
        if self.wants_needs:
            gradients = self.backward(dout, self.saved, needs=self.needs)
        else:
            gradients = self.backward(dout, self.saved)
        if any(self.needs[len(gradients) :]):
            inputs = len(self.inputs)
            raise RuntimeError(f"{self.name}_backward gave {len(gradients)} of {inputs} gradients")
        return gradients

    def free(self) -> None:
        """Let go of the arrays that only this backward pass needed."""
        self.freed, self.saved, self.inputs = True, None, ()


class Tensor:
    """An array that may take part in a graph.

    data: the array, NumPy's or CuPy's.  requires_grad: whether `backward` shall fill `grad`.
    grad: None or an array of data's shape and dtype, on leaves only.
    saved: named terms that the op which made this tensor kept, if any: `elbo.saved.nll`.
    Raises TypeError if a gradient is wanted for anything but float32 or float64.
    """

    __slots__ = ("data", "grad", "node", "requires_grad", "saved")
    __array_ufunc__ = None  # so that `array * tensor` asks the tensor
    __hash__ = object.__hash__

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data: Any = data if type(data) is np.ndarray else devices.as_array(data)
        if requires_grad and self.data.dtype not in (np.float32, np.float64):
            raise TypeError(f"only float32 and float64 have gradients, got {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad: Any = None
        self.node: _Node | None = None
        self.saved: Any = None

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    def numpy(self) -> np.ndarray:
        """The array without the graph: itself, or a copy from the GPU."""
        return devices.to_host(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype) if copy else np.asarray(self.data, dtype)

    def item(self) -> float:
        """The value of a tensor of one element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array as a constant: gradients stop here."""
        return Tensor(self.data)

    def backward(self, dout: Any = None, *, retain_graph: bool = False) -> None:
        """Add d(self . dout) / d(leaf) to the `grad` of every leaf that this tensor depends on.

        dout: array of self's shape; may be left out when self is a single number (then 1).
        The graph is freed on the way, unless retain_graph.
        Raises RuntimeError if nothing here needs a gradient or the graph was freed before,
        ValueError if dout is missing or has the wrong shape.
        """
        if not self.requires_grad:
            raise RuntimeError("backward() on a tensor that needs no gradient")
        if dout is None and self.size != 1:
            raise ValueError(f"backward() on shape {self.shape} needs dout of that shape")
        if dout is None:
            dout = np.ones_like(self.data) if self.ndim or not self.node else devices.one(self.data)
        else:
            dout = np.array(dout, self.dtype, like=self.data)
        if dout.shape != self.shape:
            raise ValueError(f"dout has shape {dout.shape}, the tensor has {self.shape}")
        _backward(self, dout, retain_graph)

    def __repr__(self) -> str:
        made = f", op={self.node.name}" if self.node else ""
        wants = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data!r}{wants}{made})"

    def __len__(self) -> int:
        return len(self.data)

    # Python's operators; their pairs stand at the end of this file
    def __add__(self, other: Any) -> Tensor:
        return add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return div(other, self)

    def __pow__(self, exponent: float) -> Tensor:
        return pow(self, exponent)

    def __neg__(self) -> Tensor:
        return neg(self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(other, self)

    def __getitem__(self, index: Any) -> Tensor:
        return getitem(self, index)


# ----------------------------------------------------------------------------------- the backward
def _reachable(last: _Node) -> list[_Node]:
    """All nodes that `last` depends on, youngest first: a reverse topological order.

    Collected with a list as the stack, so that a graph of any depth works.
    """
    seen, stack = {last}, [last]
    while stack:
        node = stack.pop()
        if node.freed:
            raise RuntimeError(
                f"the graph behind op {node.name!r} was freed by an earlier backward(): run the "
                "forward again, or call the first backward with retain_graph=True"
            )
        for tensor, need in zip(node.inputs, node.needs, strict=True):
            if need and tensor.node is not None and tensor.node not in seen:
                seen.add(tensor.node)
                stack.append(tensor.node)
    return sorted(seen, key=lambda node: node.order, reverse=True)


def _backward(out: Tensor, dout: np.ndarray, retain_graph: bool) -> None:
    if out.node is None:
        _accumulate(out, dout)
        return
    pending: dict[_Node, np.ndarray] = {out.node: dout}
    for node in _reachable(out.node):
        incoming = pending.pop(node, None)
        if incoming is not None:
            gradients = node.gradients(incoming)
            for tensor, need, gradient in zip(node.inputs, node.needs, gradients):  # noqa: B905
                if not need or gradient is None:
                    continue
                if tensor.node is None:
                    # an op may hand on dout itself, a view of it, or one array for two inputs:
                    # a leaf gets its own
                    shared = gradient is incoming or devices.is_view(gradient)
                    shared = shared or sum(g is gradient for g in gradients) > 1
                    _accumulate(tensor, gradient.copy() if shared else gradient)
                elif tensor.node in pending:  # used twice: the gradients add up
                    pending[tensor.node] = devices.add(pending[tensor.node], gradient)
                else:
                    pending[tensor.node] = gradient
        if not retain_graph:
            node.free()


def _accumulate(leaf: Tensor, gradient: np.ndarray) -> None:
    if gradient.shape != leaf.shape:
        raise RuntimeError(f"a gradient of shape {gradient.shape} for a tensor of {leaf.shape}")
    total = gradient if leaf.grad is None else leaf.grad + gradient
    leaf.grad = np.asarray(total, leaf.dtype, like=leaf.data)


# -------------------------------------------------------------------------------- differentiable
def differentiable(forward: Callable, backward: Callable) -> Callable[..., Tensor]:
    """Make an op out of a pair: called with tensors or arrays, it returns a Tensor.

    forward(*arrays, **options) -> out, saved; backward(dout, saved) -> one gradient per array.
    A backward that takes a keyword `needs` is told, by one bool per array, which gradients are
    wanted, and may return None for the others (linear skips a third of its work that way).
    """
    name = forward.__name__.removesuffix("_forward")
    wants = "needs" in inspect.signature(backward).parameters

    @functools.wraps(forward)
    def op(*inputs: Any, **options: Any) -> Tensor:
        arrays = [a.data if isinstance(a, Tensor) else a for a in inputs]
        for option, value in options.items():
            if isinstance(value, Tensor):
                raise TypeError(f"{name}() takes tensors by position, got {option}=Tensor")
        try:
            array, saved = forward(*arrays, **options)
        except TypeError as error:
            _tell_devices(name, arrays, error)
            raise
        if _mode.check:
            _check_finite(name, array, arrays)
        out = Tensor(array)
        out.saved = saved if hasattr(saved, "_fields") else None
        if _mode.record and any(isinstance(a, Tensor) and a.requires_grad for a in inputs):
            out.requires_grad = True
            out.node = _Node(name, inputs, backward, saved, wants)
        return out

    op.__name__ = op.__qualname__ = name
    op.pair = (forward, backward)  # type: ignore[attr-defined]
    return op


def _tell_devices(name: str, inputs: list[Any], error: TypeError) -> None:
    """Raise a better error if some inputs lie on the CPU and some on a GPU: CuPy names neither."""
    arrays = [a for a in inputs if isinstance(a, np.ndarray) or devices.is_device_array(a)]
    places = [devices.of(a) for a in arrays]
    if len(set(places)) == 2:
        raise TypeError(f"{name}() got arrays on {', '.join(places)}: {error}") from error


def _check_finite(name: str, array: Any, inputs: list[Any]) -> None:
    if np.isfinite(array).all():
        return
    array = devices.to_host(array)
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    described = []
    for position, a in enumerate(inputs):
        if hasattr(a, "dtype") and a.size:
            largest = float(np.abs(a).max())
            described.append(f"input {position} {a.shape} has largest magnitude {largest:.3g}")
    raise NonFiniteError(
        f"op {name!r} gave {array[place]!s} at {place} of its output {array.shape}; "
        + "; ".join(described)
    )


def unbroadcast(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum a gradient over the axes along which NumPy had stretched `shape`: broadcasting undone."""
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=stretched, keepdims=True) if stretched else gradient


# ------------------------------------------------------------------------ pairs of the operators
def add_forward(a: Any, b: Any) -> Any:
    """out = a + b, with broadcasting."""
    return a + b, (np.shape(a), np.shape(b))


def add_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True)) -> tuple:
    """da = dout      db = dout."""
    a_shape, b_shape = saved
    da = unbroadcast(dout, a_shape) if needs[0] else None
    return da, unbroadcast(dout, b_shape) if needs[1] else None


def sub_forward(a: Any, b: Any) -> Any:
    """out = a - b, with broadcasting."""
    return a - b, (np.shape(a), np.shape(b))


def sub_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True)) -> tuple:
    """da = dout      db = -dout."""
    da = unbroadcast(dout, saved[0]) if needs[0] else None
    return da, unbroadcast(-dout, saved[1]) if needs[1] else None


def mul_forward(a: Any, b: Any) -> Any:
    """out = a b, with broadcasting."""
    return a * b, (a, b)


def mul_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True)) -> tuple:
    """da = dout b      db = dout a."""
    a, b = saved
    da = unbroadcast(dout * b, np.shape(a)) if needs[0] else None
    return da, unbroadcast(dout * a, np.shape(b)) if needs[1] else None


def div_forward(a: Any, b: Any) -> Any:
    """out = a / b, with broadcasting."""
    out = a / b
    return out, (np.shape(a), b, out)


def div_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True)) -> tuple:
    """da = dout / b      db = -dout (a / b) / b."""
    shape, b, out = saved
    da = unbroadcast(dout / b, shape) if needs[0] else None
    return da, unbroadcast(-dout * out / b, np.shape(b)) if needs[1] else None


def neg_forward(a: np.ndarray) -> Any:
    """out = -a."""
    return -a, ()


def neg_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """da = -dout."""
    return (-dout,)


def pow_forward(a: np.ndarray, exponent: float) -> Any:
    """out = a^exponent, for one number as the exponent.

    Raises TypeError if the exponent is not a number, ValueError if it does not suit a's sign.
    """
    if not isinstance(exponent, (int, float, np.number)):
        raise TypeError(f"the exponent must be a number, got {type(exponent).__name__}")
    if not float(exponent).is_integer() and (a < 0).any():
        raise ValueError(f"a negative number to the power {exponent} is not real")
    return a**exponent, (a, exponent)


def pow_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """da = dout exponent a^(exponent - 1), and 0 for exponent 0."""
    a, exponent = saved
    return (np.zeros_like(a) if exponent == 0 else dout * exponent * a ** (exponent - 1),)


def matmul_forward(a: np.ndarray, b: np.ndarray) -> Any:
    """out = a @ b over the last two axes, leading axes broadcast.

    a: (..., N, K), b: (..., K, M), both with at least two axes.  Returns (..., N, M), saved.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"cannot multiply matrices of shapes {a.shape} and {b.shape}")
    return a @ b, (a, b)


def matmul_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True)) -> tuple:
    """da = dout b^T      db = a^T dout."""
    a, b = saved
    da = unbroadcast(dout @ b.swapaxes(-1, -2), a.shape) if needs[0] else None
    return da, unbroadcast(a.swapaxes(-1, -2) @ dout, b.shape) if needs[1] else None


def getitem_forward(a: np.ndarray, index: Any) -> Any:
    """out = a[index], any NumPy index, whose arrays may lie on either device."""
    return a[_moved(index, devices.of(a))].copy(), (a.shape, index)


def getitem_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """da[index] += dout: an element taken twice gets both gradients."""
    shape, index = saved
    parts = index if isinstance(index, tuple) else (index,)
    if all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts):
        da = np.zeros_like(dout, shape=shape)
        da[index] = dout  # no element is taken twice
        return (da,)
    # on the CPU, wherever dout lies: CuPy adds by atomics, in another order each time
    da = np.zeros(shape, dout.dtype)
    np.add.at(da, _moved(index, "cpu"), devices.to_host(dout))
    return (devices.move(da, devices.of(dout)),)


def _moved(index: Any, device: str) -> tuple:
    """The parts of an index, its arrays on that device."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(
        devices.move(p, device) if isinstance(p, np.ndarray) or devices.is_device_array(p) else p
        for p in parts
    )


add = differentiable(add_forward, add_backward)
sub = differentiable(sub_forward, sub_backward)
mul = differentiable(mul_forward, mul_backward)
div = differentiable(div_forward, div_backward)
neg = differentiable(neg_forward, neg_backward)
pow = differentiable(pow_forward, pow_backward)
matmul = differentiable(matmul_forward, matmul_backward)
getitem = differentiable(getitem_forward, getitem_backward)
