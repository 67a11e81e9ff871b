"""The kernels in PyTorch, as its users write them: the formula on tensors, autograd's backward."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._kernel_cases import IMAGE, PATCH, Kernel

LOG_2PI = math.log(2 * math.pi)
Call = Callable[[], list[Tensor]]
(R, S), STRIDE, PAD, (H, W, C) = PATCH["kernel"], PATCH["stride"], PATCH["padding"], IMAGE


# --------------------------------------------------------------------------------------- formulas
def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1)


def gaussian_kl_between(mu: Tensor, logvar: Tensor, mu2: Tensor, logvar2: Tensor) -> Tensor:
    d = logvar - logvar2
    return 0.5 * torch.sum(d.exp() + (mu - mu2) ** 2 * torch.exp(-logvar2) - 1 - d, dim=1)


def gaussian_kl_total(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())


def total(values: Tensor) -> Tensor:
    return values.sum()


def log_mean_exp(log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_w, 1) - math.log(log_w.shape[1])


def categorical_nll(logits: Tensor, labels: Tensor) -> Tensor:
    flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view(labels.shape).sum(1)


def logistic_mixture_nll(
    logit_weight: Tensor, x_mu: Tensor, log_scale: Tensor, x: Tensor
) -> Tensor:
    """As in PixelCNN++ implementations: the difference of two sigmoids, floored."""
    x = x.unsqueeze(-1)
    precision = torch.exp(-log_scale)
    a, b = (x - x_mu + 1 / 255) * precision, (x - x_mu - 1 / 255) * precision
    inside = torch.log(torch.clamp(torch.sigmoid(a) - torch.sigmoid(b), min=1e-12))
    each = torch.where(
        x < -0.999, F.logsigmoid(a), torch.where(x > 0.999, F.logsigmoid(-b), inside)
    )
    return -torch.logsumexp(F.log_softmax(logit_weight, -1) + each, -1).sum(1)


def beta_nll(log_alpha: Tensor, log_beta: Tensor, x: Tensor) -> Tensor:
    a, b = log_alpha.exp(), log_beta.exp()
    log_b = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return torch.sum(log_b - (a - 1) * torch.log(x) - (b - 1) * torch.log1p(-x), dim=1)


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """(B, K, Z)."""
    return -0.5 * (LOG_2PI + logvar + (z[:, None] - mu) ** 2 * torch.exp(-logvar))


def mixture_log_prob(z: Tensor, log_weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return torch.logsumexp(log_weights + log_normal(z, mu, logvar).sum(2), 1)


def mixture_marginal_log_prob(z: Tensor, log_weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return torch.logsumexp(log_weights[:, None] + log_normal(z, mu, logvar), 1)


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Straight through: |e|^2 - 2 z e decides, z gets the gradient."""
    distance = torch.addmm((codebook**2).sum(1), z, codebook.T, alpha=-2)
    return z + (codebook[distance.argmin(1)] - z).detach()


def bias_activation(x: Tensor, bias: Tensor, *, activation: str) -> Tensor:
    return F.relu(x + bias) if activation == "relu" else F.gelu(x + bias, approximate="tanh")


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def gaussian_nll(x_mu: Tensor, x_logvar: Tensor, x: Tensor) -> Tensor:
    return 0.5 * torch.sum(LOG_2PI + x_logvar + (x - x_mu) ** 2 * torch.exp(-x_logvar), dim=1)


def gaussian_fixed_nll(x_mu: Tensor, x: Tensor, *, variance: float) -> Tensor:
    constant = 0.5 * x.shape[1] * (LOG_2PI + math.log(variance))
    return F.mse_loss(x_mu, x, reduction="none").sum(1) / (2 * variance) + constant


def bernoulli_elbo(logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return -bernoulli_nll(logits, x) - gaussian_kl(mu, logvar)


def gaussian_elbo(x_mu: Tensor, x_logvar: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return -gaussian_nll(x_mu, x_logvar, x) - gaussian_kl(mu, logvar)


def gaussian_fixed_elbo(
    x_mu: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, *, variance: float
) -> Tensor:
    return -gaussian_fixed_nll(x_mu, x, variance=variance) - gaussian_kl(mu, logvar)


def reparameterize(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mu + torch.exp(0.5 * logvar) * eps


def reparameterize_samples(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mu[:, None] + torch.exp(0.5 * logvar)[:, None] * eps


def gaussian_log_ratio(z: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return 0.5 * torch.sum(z**2 - eps**2 - logvar[:, None], dim=2)


def importance(nll: Tensor, log_ratio: Tensor) -> Tensor:
    return log_mean_exp(-nll.view(log_ratio.shape) - log_ratio)


def bernoulli_iwae(logits: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
    wide = x.repeat_interleave(log_ratio.shape[1], 0)
    return importance(bernoulli_nll(logits, wide), log_ratio)


def gaussian_iwae(x_mu: Tensor, x_logvar: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
    wide = x.repeat_interleave(log_ratio.shape[1], 0)
    return importance(gaussian_nll(x_mu, x_logvar, wide), log_ratio)


def gaussian_fixed_iwae(x_mu: Tensor, x: Tensor, log_ratio: Tensor, *, variance: float) -> Tensor:
    wide = x.repeat_interleave(log_ratio.shape[1], 0)
    return importance(gaussian_fixed_nll(x_mu, wide, variance=variance), log_ratio)


def gaussian_sample(mu: Tensor, logvar: Tensor, **_: Any) -> Tensor:
    return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


# ---------------------------------------------------------------------------------------- patches
P = (H + 2 * PAD - R) // STRIDE + 1
PLACES = [
    (slice(r, r + STRIDE * (P - 1) + 1, STRIDE), slice(s, s + STRIDE * (P - 1) + 1, STRIDE))
    for r in range(R)
    for s in range(S)
]


def im2col(x: Tensor, **_: Any) -> Tensor:
    """Channels last: a strided view of the padded image, copied."""
    padded = F.pad(x, (0, 0, PAD, PAD, PAD, PAD))
    views = padded.unfold(1, R, STRIDE).unfold(2, S, STRIDE)  # (B, P, Q, C, R, S)
    return views.permute(0, 1, 2, 4, 5, 3).reshape(-1, R * S * C)


def im2col_by_slices(x: Tensor, **_: Any) -> Tensor:
    """The same from slices: the backward of a compiled Tensor.unfold ends in a crash on a CPU."""
    padded = F.pad(x, (0, 0, PAD, PAD, PAD, PAD))
    return torch.stack([padded[:, p, q] for p, q in PLACES], 3).reshape(-1, R * S * C)


def col2im(patches: Tensor, **_: Any) -> Tensor:
    """Channels last: the patches of each filter element are added to a strided view."""
    parts = patches.view(-1, P, P, R * S, C)
    padded = patches.new_zeros((parts.shape[0], H + 2 * PAD, W + 2 * PAD, C))
    for k, (p, q) in enumerate(PLACES):
        padded[:, p, q] += parts[:, :, :, k]
    return padded[:, PAD : PAD + H, PAD : PAD + W]


def unfold(x: Tensor, **_: Any) -> Tensor:
    """PyTorch's own, in its own layout: (B, C, H, W) -> (B, C R S, P Q)."""
    return F.unfold(x, (R, S), padding=PAD, stride=STRIDE)


def fold(patches: Tensor, **_: Any) -> Tensor:
    return F.fold(patches, (H, W), (R, S), padding=PAD, stride=STRIDE)


def channels_first(a: Tensor) -> Tensor:
    """Images and patches in PyTorch's layout."""
    if a.ndim == 4:
        return a.permute(0, 3, 1, 2).contiguous()  # (B, H, W, C) -> (B, C, H, W)
    parts = a.view(-1, P * P, R * S, C)  # (B P Q, R S C) -> (B, C R S, P Q)
    return parts.permute(0, 3, 2, 1).reshape(-1, C * R * S, P * P)


LIKE_OURS = {
    f.__name__: f
    for f in (
        gaussian_kl, gaussian_kl_between, bernoulli_nll, gaussian_nll, gaussian_fixed_nll,
        bernoulli_elbo, gaussian_elbo, gaussian_fixed_elbo, reparameterize, gaussian_sample,
        reparameterize_samples, gaussian_log_ratio, bernoulli_iwae, gaussian_iwae,
        gaussian_fixed_iwae,
        im2col, col2im, gaussian_kl_total, total, log_mean_exp, categorical_nll,
        logistic_mixture_nll, beta_nll, nearest_code, mixture_log_prob,
        mixture_marginal_log_prob, bias_activation,
    )
}  # fmt: skip
LIKE_OURS["bias_gelu"] = bias_activation
OWN_LAYOUT: dict[str, Callable] = {"im2col": unfold, "col2im": fold}
COMPILED = LIKE_OURS | {"im2col": im2col_by_slices}


# ------------------------------------------------------------------------------------- optimizers
def _optimizer(make: Callable[[Tensor], Any], p: Tensor, g: Tensor) -> Call:
    p.grad = g
    optimizer = make(p)

    def call() -> list[Tensor]:
        optimizer.step()
        return [p]

    return call


def _formula(step: Callable, arrays: list[Tensor]) -> Call:
    """Compiled from the formula: one pass, which a compiled torch.optim step is not."""
    t, run = torch.zeros((), device=arrays[0].device), torch.compile(step)

    def call() -> list[Tensor]:
        run(*arrays, t)
        return [arrays[0]]

    return call


def _adam_step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor) -> None:
    t.add_(1)
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.999).add_(0.001 * g * g)
    p.sub_(1e-3 / (1 - 0.9**t) * m / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8))


def _sgd_step(p: Tensor, g: Tensor, velocity: Tensor, t: Tensor) -> None:
    velocity.mul_(0.9).add_(g)
    p.sub_(1e-3 * velocity)


def adam_update(arrays: list[Tensor], compiled: bool) -> list[tuple[str, Call]]:
    """torch.optim's fused Adam, and the fused operator without its bookkeeping."""
    if compiled:
        return [("formula", _formula(_adam_step, arrays))]
    p, g, m, v = arrays
    own, step = p.clone(), torch.zeros((), device=p.device)

    def operator() -> list[Tensor]:
        step.add_(1)
        torch._fused_adam_(
            [own], [g], [m], [v], [], [step], lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0,
            eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        return [own]

    return [
        ("optim.Adam", _optimizer(lambda p: torch.optim.Adam([p], 1e-3, fused=True), p, g)),
        ("_fused_adam_", operator),
    ]


def sgd_update(arrays: list[Tensor], compiled: bool) -> list[tuple[str, Call]]:
    if compiled:
        return [("formula", _formula(_sgd_step, arrays))]

    def make(p: Tensor) -> Any:
        return torch.optim.SGD([p], 1e-3, momentum=0.9, fused=True)

    return [("optim.SGD", _optimizer(make, arrays[0], arrays[1]))]


UPDATES = {"adam_update": adam_update, "sgd_update": sgd_update}


# -------------------------------------------------------------------------------------- the calls
def calls(
    kernel: Kernel, B: int, D: int, mode: str, device: str, *, compiled: bool
) -> list[tuple[str, Call]]:
    """The ways to do one row in PyTorch: the fastest counts."""
    if device == "cpu":
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch._dynamo.reset()
    arrays = [torch.from_numpy(a).to(device) for a in kernel.arrays(B, D)]
    if kernel.name in UPDATES:
        return UPDATES[kernel.name](arrays, compiled)
    if kernel.name.startswith("philox"):
        draw = torch.randn if kernel.name == "philox_normal" else torch.rand
        drawn = torch.compile(draw) if compiled else draw
        return [("", lambda: [drawn(B, D, device=device)])]
    dout = torch.from_numpy(kernel.dout(B, D)).to(device) if mode == "gradient" else None
    functions = COMPILED if compiled else LIKE_OURS
    found = _ways(kernel, functions[kernel.name], arrays, dout, compiled)
    if not compiled and (own := OWN_LAYOUT.get(kernel.name)):
        arrays = [channels_first(a) for a in arrays]
        dout = None if dout is None else channels_first(dout)
        found += [("own layout", way) for _, way in _ways(kernel, own, arrays, dout, compiled)]
    return found


def _ways(
    kernel: Kernel, function: Callable, arrays: list[Tensor], dout: Any, compiled: bool
) -> list[tuple[str, Call]]:
    function = functools.partial(function, **kernel.options)
    if dout is not None:
        return _gradients(kernel, function, arrays, dout, compiled)
    run = torch.compile(function) if compiled else function

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [run(*arrays)]

    return [("", forward)]


def _gradients(
    kernel: Kernel, function: Callable, arrays: list[Tensor], dout: Any, compiled: bool
) -> list[tuple[str, Call]]:
    """Forward, then torch.autograd.grad; compiled also as one graph, by torch.func.vjp."""
    wanted = [i for i, a in enumerate(kernel.arguments) if not a.data]
    leaves = [a.detach().requires_grad_(i in wanted) for i, a in enumerate(arrays)]
    run = torch.compile(function) if compiled else function

    def autograd() -> list[Tensor]:
        out = run(*leaves)
        gradients = torch.autograd.grad(out, [leaves[i] for i in wanted], dout)
        return [out.detach(), *gradients]

    if not compiled:
        return [("autograd", autograd)]

    def value_and_gradient(dout: Tensor, *arrays: Tensor) -> tuple:
        def of(*parameters: Tensor) -> Tensor:
            full = list(arrays)
            for i, parameter in zip(wanted, parameters, strict=True):
                full[i] = parameter
            return function(*full)

        out, pull = torch.func.vjp(of, *(arrays[i] for i in wanted))
        return out, *pull(dout)

    whole = torch.compile(value_and_gradient)

    def one_graph() -> list[Tensor]:
        with torch.no_grad():
            return list(whole(dout, *arrays))

    return [("func.vjp", one_graph), ("autograd", autograd)]
