"""What models of sequences are made of: embedding, layer normalisation, gated recurrent unit.

Sizes: B batch, T time, I inputs, H hidden units, V vocabulary, E features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import devices
from ..tensor import differentiable


def embedding_forward(weight: Any, index: Any) -> Any:
    """out = weight[index]: row number `index` of a table.

    weight: (V, E); index: whole numbers in [0, V), of any shape.  Returns (..., E), saved.
    Raises TypeError if the index is not whole, ValueError if it is outside the table.
    """
    index = devices.as_array(index)
    if index.dtype.kind not in "iu":
        raise TypeError(f"the index of an embedding must be whole numbers, got {index.dtype}")
    V = len(weight)
    if index.size and not (index.min() >= 0 and index.max() < V):
        raise ValueError(f"the index must lie in [0, {V}), got {index.min()} to {index.max()}")
    return weight[index], (weight.shape, index)


def embedding_backward(dout: Any, saved: tuple) -> tuple:
    """dweight[v] = sum of dout over the places where index = v      dindex: None.

    dout: (..., E).  Sorted first, so that each row's terms are summed side by side: np.add.at
    takes nearly three times as long (4096 places, V = 1000, E = 64).
    """
    shape, index = saved
    flat = devices.to_host(index).reshape(-1)
    rows = devices.to_host(dout).reshape(len(flat), shape[1])
    order = np.argsort(flat, kind="stable")
    present, first = np.unique(flat[order], return_index=True)
    dweight = np.zeros(shape, dout.dtype)
    if len(first):
        dweight[present] = np.add.reduceat(rows[order], first, axis=0)
    return devices.move(dweight, devices.of(dout)), None


def layer_norm_forward(x: Any, weight: Any, bias: Any, *, epsilon: float = 1e-5) -> Any:
    """out = weight n + bias, n = (x - mean) / sqrt(variance + epsilon), over the last axis.

    Ba, Kiros and Hinton 2016, equation 4.     x: (..., E); weight, bias: (E,).
    Returns out (..., E), saved.  Raises ValueError if the sizes differ.
    """
    if not weight.shape == bias.shape == x.shape[-1:]:
        raise ValueError(f"weight has shape {weight.shape}, bias {bias.shape}, x {x.shape}: the "
                         "last axes must be the same")  # fmt: skip
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt(variance + x.dtype.type(epsilon))
    n = centred * scale
    return n * weight + bias, (n, scale, weight)


def layer_norm_backward(dout: Any, saved: tuple) -> tuple:
    """With g = dout weight:   dx = (g - mean(g) - n mean(g n)) / sqrt(variance + epsilon).

    dweight = sum dout n      dbias = sum dout, over all axes but the last.
    """
    n, scale, weight = saved
    g = dout * weight
    means = g.mean(axis=-1, keepdims=True), (g * n).mean(axis=-1, keepdims=True)
    leading = tuple(range(dout.ndim - 1))
    return scale * (g - means[0] - n * means[1]), (dout * n).sum(leading), dout.sum(leading)


def gru_forward(
    x: Any, h: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, mask: Any = None
) -> Any:
    """A gated recurrent unit over all steps; at a masked step the state stays as it is.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)             Cho et al. 2014, section 2.3, with the
    u = sigmoid(W_iu x + b_iu + W_hu h + b_hu)             reset after the product, as in cuDNN
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))            and PyTorch
    h' = (1 - u) n + u h
    x: (B, T, I); h: (B, H) before the first step; weight_ih (I, 3H), weight_hh (H, 3H), bias_ih
    and bias_hh (3H,): the blocks r, u, n side by side.  mask: (B, T), nonzero where a step counts.
    Returns the state after each step (B, T, H), the last of which is the last that counts, saved.
    Raises ValueError if the sizes do not fit.
    """
    _check_gru(x, h, weight_ih, weight_hh, bias_ih, bias_hh, mask)
    (B, T, inputs), H = x.shape, h.shape[1]
    steps = x.transpose(1, 0, 2).reshape(T * B, inputs)  # (B, T, I) -> (T B, I)
    gates = (steps @ weight_ih + bias_ih).reshape(T, B, 3 * H)  # all inputs in one product
    inner = np.empty((T, B, H), gates.dtype, like=gates)  # W_hn h + b_hn
    states = np.empty((T + 1, B, H), gates.dtype, like=gates)
    states[0] = h
    counts = None if mask is None else devices.as_array(mask).T[..., None] != 0  # (T, B, 1)
    for t in range(T):
        before, gate = states[t], gates[t]
        recurrent = before @ weight_hh + bias_hh
        inner[t] = recurrent[:, 2 * H :]
        gate[:, : 2 * H] += recurrent[:, : 2 * H]
        # sigmoid(a) = (1 + tanh(a / 2)) / 2: one vectorized function for all gates, no overflow
        gate[:, : 2 * H] = 0.5 * np.tanh(0.5 * gate[:, : 2 * H]) + 0.5
        gate[:, 2 * H :] = np.tanh(gate[:, 2 * H :] + gate[:, :H] * inner[t])
        n = gate[:, 2 * H :]
        after = n + gate[:, H : 2 * H] * (before - n)
        states[t + 1] = after if counts is None else np.where(counts[t], after, before)
    saved = (x.shape, steps, gates, inner, states, counts, weight_ih, weight_hh)
    return states[1:].transpose(1, 0, 2).copy(), saved  # (T, B, H) -> (B, T, H)


def gru_backward(dout: Any, saved: tuple, *, needs: tuple = (True,)) -> tuple:
    """Backpropagation through time: from the last step to the first, with dh = dout + what is left.

    dn = dh (1 - u)    du = dh (h - n)    dh_before = dh u + (da W_hh^T)
    da_n = dn (1 - n^2)    da_r = da_n (W_hn h + b_hn) r (1 - r)    da_u = du u (1 - u)
    the gradients of the weights are products of all steps' inputs and states with all da; W_hn and
    b_hn see r da_n.  A masked step hands dh on as it is, and its da are zero.
    dout: (B, T, H).  Returns dx, dh, dweight_ih, dweight_hh, dbias_ih, dbias_hh, None.
    """
    shape, steps, gates, inner, states, counts, weight_ih, weight_hh = saved
    T, B, H = inner.shape
    dinput = np.empty_like(gates)  # da_r, da_u, da_n
    dstate = np.empty_like(gates)  # da_r, da_u, r da_n
    dh = np.zeros_like(states[0])
    for t in reversed(range(T)):
        total = dh + dout[:, t]
        dh = total if counts is None else np.where(counts[t], total, 0)
        r, u, n = (gates[t][:, k * H : (k + 1) * H] for k in range(3))
        da_n = dh * (1 - u) * (1 - n * n)
        dinput[t][:, :H] = da_n * inner[t] * r * (1 - r)
        dinput[t][:, H : 2 * H] = dh * (states[t] - n) * u * (1 - u)
        dinput[t][:, 2 * H :] = da_n
        dstate[t] = dinput[t]
        dstate[t][:, 2 * H :] *= r
        before = dh * u + dstate[t] @ weight_hh.T
        dh = before if counts is None else np.where(counts[t], before, total)
    da_input, da_state = (a.reshape(T * B, 3 * H) for a in (dinput, dstate))
    dx = None
    if needs[0]:
        dx = (da_input @ weight_ih.T).reshape(T, B, shape[2]).transpose(1, 0, 2)
    dweight_hh = states[:-1].reshape(T * B, H).T @ da_state
    biases = da_input.sum(axis=0), da_state.sum(axis=0)
    return dx, dh, steps.T @ da_input, dweight_hh, *biases, None


def _check_gru(
    x: Any, h: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, mask: Any
) -> None:
    """Raise ValueError that names the argument of a GRU whose shape does not fit."""
    if x.ndim != 3 or h.ndim != 2:
        raise ValueError(f"a GRU needs x (B, T, I) and h (B, H), got {x.shape} and {h.shape}")
    (B, T, inputs), H = x.shape, h.shape[1]
    expected = {
        "h": (h, (B, H)), "weight_ih": (weight_ih, (inputs, 3 * H)),
        "weight_hh": (weight_hh, (H, 3 * H)), "bias_ih": (bias_ih, (3 * H,)),
        "bias_hh": (bias_hh, (3 * H,)), "mask": (mask, (B, T)),
    }  # fmt: skip
    for name, (array, shape) in expected.items():
        if array is not None and tuple(array.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {shape} for "
                             f"x {x.shape} and h {h.shape}")  # fmt: skip


embedding = differentiable(embedding_forward, embedding_backward)
layer_norm = differentiable(layer_norm_forward, layer_norm_backward)
gru = differentiable(gru_forward, gru_backward)
