"""The two VAEs of the benchmarks in plain PyTorch, as its users write them.

Modules are made in the order in which tinyvae makes its own, so that parameters correspond by
position; `from_ours` says how their layouts do.  Sizes: B batch, Z latent, H W image, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._cells import CHANNELS, IMAGE, SAMPLES, Cell, Z

D = math.prod(IMAGE)


class VAE(nn.Module):
    """encoder body, two heads, decoder; x is (B, D), or (B, C, H, W) for convolutions."""

    def __init__(self, body: nn.Module, features: int, decoder: nn.Module, outputs: int = 1):
        super().__init__()
        self.body, self.outputs = body, outputs
        self.mu, self.logvar = nn.Linear(features, Z), nn.Linear(features, Z)
        self.decoder = decoder

    def forward(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """The negative ELBO, a mean over the batch, in nats."""
        h = self.body(x)
        mu, logvar = self.mu(h), self.logvar(h)
        eps = torch.randn_like(mu) if eps is None else eps
        output = self.decoder(mu + torch.exp(0.5 * logvar) * eps)
        nll = bernoulli(output, x) if self.outputs == 1 else gaussian(output, x)
        kl = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
        return (nll + kl) / len(x)


class IWAE(VAE):
    """The same networks, trained on the importance-weighted bound (Burda et al. 2016)."""

    def forward(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """The negative bound, a mean over the batch, in nats."""
        h = self.body(x)
        mu, logvar = self.mu(h), self.logvar(h)
        eps = torch.randn(SAMPLES, *mu.shape, device=x.device) if eps is None else eps
        z = mu + torch.exp(0.5 * logvar) * eps  # (K, B, Z)
        logits = self.decoder(z)
        nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        log_w = 0.5 * (eps**2 + logvar - z**2).sum(-1) - nll.sum(-1)
        return (math.log(SAMPLES) - torch.logsumexp(log_w, 0)).mean()


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def gaussian(output: Tensor, x: Tensor) -> Tensor:
    """Learned variance, its logarithm floored smoothly at -6 as in tinyvae.likelihoods."""
    x_mu, raw = output.chunk(2, dim=1)
    x_logvar = F.softplus(raw + 6) - 6
    square = (x - x_mu) ** 2 * torch.exp(-x_logvar)
    return 0.5 * torch.sum(math.log(2 * math.pi) + x_logvar + square)


def mlp(hidden: int, outputs: int = 1, kind: type[VAE] = VAE) -> VAE:
    decoder = nn.Sequential(nn.Linear(Z, hidden), nn.ReLU(), nn.Linear(hidden, outputs * D))
    return kind(nn.Sequential(nn.Linear(D, hidden), nn.ReLU()), hidden, decoder, outputs)


def conv(hidden: int) -> VAE:
    (H, W, C), (first, second) = IMAGE, CHANNELS
    small = (second, H // 4, W // 4)
    size = math.prod(small)
    body = nn.Sequential(
        nn.Conv2d(C, first, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(first, second, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(Z, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.ReLU(),
        nn.Unflatten(1, small), nn.ConvTranspose2d(second, first, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(first, C, 4, 2, 1),
    )  # fmt: skip
    return VAE(body, hidden, decoder)


def network(cell: Cell, outputs: int = 1) -> VAE:
    if cell.architecture == "conv":
        return conv(cell.hidden)
    return mlp(cell.hidden, outputs, IWAE if cell.architecture == "iwae" else VAE)


# ---------------------------------------------------------------------------------- the layouts
def from_ours(model: VAE) -> Iterator[tuple[str, nn.Parameter, Callable]]:
    """Each parameter's name, itself, and the function that brings our array to its layout.

    tinyvae flattens images as H W C, PyTorch as C H W: the dense layers next to them are permuted.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{name}", parameter, _layout(module, name == "bias")


def _layout(module: nn.Module, bias: bool) -> Callable[[np.ndarray], np.ndarray]:
    H, W, C = IMAGE[0] // 4, IMAGE[1] // 4, CHANNELS[1]

    def swap(a: np.ndarray) -> np.ndarray:  # (H*W*C, ...) -> (C*H*W, ...)
        return np.moveaxis(a.reshape(H, W, C, *a.shape[1:]), 2, 0).reshape(a.shape)

    if isinstance(module, nn.Linear):
        outwards, inwards = (n == H * W * C for n in (module.out_features, module.in_features))
        if bias:
            return swap if outwards else lambda a: a
        if inwards:
            return lambda a: swap(a).T  # (I, O) -> (O, I)
        return (lambda a: swap(a.T)) if outwards else lambda a: a.T
    if bias:
        return lambda a: a
    if isinstance(module, nn.ConvTranspose2d):
        return lambda a: a.transpose(2, 3, 0, 1)  # (R, S, C, O) -> (C, O, R, S)
    return lambda a: a.transpose(3, 2, 0, 1)  # (R, S, C, O) -> (O, C, R, S)


# ------------------------------------------------------------------------------- a training step
def training_step(
    cell: Cell, x: np.ndarray, *, compiled: bool, channels_last: bool, device: str = "cpu"
) -> Callable:
    """A function that does one step with fused Adam and returns the loss."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = network(cell).to(device)
    if cell.architecture == "conv":
        model = model.to(memory_format=layout)
        data = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    else:
        data = torch.from_numpy(x.reshape(len(x), -1))
    data = data.to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    graphs = compiled and device == "cuda"
    objective = model
    if compiled:
        objective = torch.compile(model, mode="reduce-overhead" if graphs else None)

    def step() -> Tensor:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        loss = objective(data)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
