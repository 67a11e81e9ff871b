"""Optimizers: they update parameters in place, one fused pass over each (tinyvae_kernels).

A learning rate belongs to a step, not to the optimizer's state: set `learning_rate` at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvae_kernels import adam_numbers, adam_update, sgd_update

from . import devices
from .tensor import Tensor


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean norm of all gradients together; float64 sums of float32 dot products."""
    gradients = (t.grad.reshape(-1) for t in parameters if t.grad is not None)
    return math.sqrt(sum(np.dot(g, g).astype(np.float64) for g in gradients))  # one wait for a GPU


class _Optimizer:
    """What all optimizers share: the parameters, their state arrays, and the count of steps."""

    slots: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("the optimizer got no parameters")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {learning_rate}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.steps = 0
        self.state = {slot: [np.zeros_like(t.data) for t in self.parameters] for slot in self.slots}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for tensor in self.parameters:
            tensor.grad = None

    def step(self, *, scale: float = 1.0, each: Callable | None = None) -> None:
        """Update every parameter that has a gradient; `scale` multiplies the gradients.

        each: how to call a function with the number of every parameter; Shards.each does it on
        all threads.
        """
        self.steps += 1
        self._prepare(scale)

        def update(i: int) -> None:
            if self.parameters[i].grad is not None:
                self._update(self.parameters[i], i, scale)

        if each is None:
            for i in range(len(self.parameters)):
                update(i)
        else:
            each(update)

    def _prepare(self, scale: float) -> None:
        """What is the same for all parameters of a step."""

    def _update(self, tensor: Tensor, i: int, scale: float) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state as named arrays: `m.0`, `m.1`, ..., and the count of steps."""
        arrays = {f"{slot}.{i}": a for slot in self.slots for i, a in enumerate(self.state[slot])}
        return arrays | {"steps": np.array(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, from either device; ValueError if it belongs to other parameters."""
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise ValueError("the optimizer's state belongs to other parameters")
        self.steps = int(state["steps"])
        for slot in self.slots:
            for i, array in enumerate(self.state[slot]):
                values = devices.to_host(state[f"{slot}.{i}"])
                array[...] = np.asarray(values, array.dtype, like=array)


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that Adam updates with a learning rate and betas of their own.

    For a network that is trained beside another, on a loss of its own: a discriminator.  It has no
    weight decay, and clipping of the gradients leaves it alone.
    """

    parameters: Sequence[Tensor]
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


NUMBERS = len(adam_numbers(step=1))  # of one group


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015); AdamW (Loshchilov and Hutter 2019) with weight_decay > 0.

    parameters: tensors; learning_rate > 0; betas: decay of the two moments; eps: added to the
    root of the second; groups: those of the parameters for which other numbers hold; main: the
    parameters of no group.
    Raises ValueError for an option out of range, and for a group of other parameters.
    """

    slots = ("m", "v")

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
    ):
        super().__init__(parameters, learning_rate, weight_decay)
        self.betas, self.eps, self.groups = betas, eps, tuple(groups)
        for rates in (betas, *(group.betas for group in self.groups)):
            if not all(0 <= beta < 1 for beta in rates) or eps <= 0:
                raise ValueError(f"betas must be in [0, 1) and eps > 0, got {rates} and {eps}")
        number = {id(tensor): i for i, tensor in enumerate(self.parameters)}
        self._group = [0] * len(number)  # of each parameter: 0, or 1 + its place in groups
        for place, group in enumerate(self.groups, 1):
            if not group.learning_rate > 0:
                raise ValueError(f"learning_rate must be positive, got {group.learning_rate}")
            for tensor in group.parameters:
                if id(tensor) not in number:
                    raise ValueError(f"group {place} has a parameter that the optimizer lacks")
                self._group[number[id(tensor)]] = place
        self.main = [t for t, g in zip(self.parameters, self._group, strict=True) if g == 0]

    def numbers(self, scale: float, step: int | None = None) -> tuple[float, ...]:
        """The numbers of Adam's formula, group after group.

        scale: of the gradients of `main`; step: counted from 1, by default the present one.
        """
        step = self.steps if step is None else step
        numbers = adam_numbers(
            step=step, learning_rate=self.learning_rate, beta1=self.betas[0],
            beta2=self.betas[1], eps=self.eps, weight_decay=self.weight_decay, scale=scale,
        )  # fmt: skip
        for group in self.groups:
            numbers += adam_numbers(
                step=step, learning_rate=group.learning_rate, beta1=group.betas[0],
                beta2=group.betas[1], eps=self.eps,
            )  # fmt: skip
        return numbers

    def _prepare(self, scale: float) -> None:
        self._numbers = self.numbers(scale)

    def _update(self, tensor: Tensor, i: int, scale: float) -> None:
        self.update(i, self._numbers)

    def update(
        self, i: int, numbers: Any, *, gradient: Any = None, other: Any = None, part: Any = ...,
        loss: Any = None,
    ) -> None:  # fmt: skip
        """Update parameter i, with the step's numbers, or cells or an array that hold them.

        gradient: by default the tensor's; other: a second share of it, to be added; part: which
        rows of the parameter these are the gradients of, by default all; loss: see adam_update.
        """
        tensor = self.parameters[i]
        gradient = tensor.grad if gradient is None else gradient
        if self.groups:
            first = self._group[i] * NUMBERS
            numbers = numbers[first : first + NUMBERS]
        m, v = self.state["m"][i], self.state["v"][i]
        adam_update(
            tensor.data[part], gradient, m[part], v[part], numbers, other=other, loss=loss
        )  # fmt: skip


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964).

    parameters: tensors; learning_rate > 0; 0 <= momentum < 1; weight_decay adds to the gradient.
    """

    slots = ("velocity",)

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float = 1e-2,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, learning_rate, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum

    def _update(self, tensor: Tensor, i: int, scale: float) -> None:
        assert tensor.grad is not None
        sgd_update(
            tensor.data, tensor.grad, self.state["velocity"][i], learning_rate=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay, scale=scale,
        )  # fmt: skip
