"""The PyTorch adapter: values and gradients beside plain formulas, under PyTorch's machinery."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

import backends  # noqa: E402
import simt  # noqa: E402
import tinyvae_kernels as kernels  # noqa: E402
from tinyvae_kernels import PAIRS, _cuda, _threads  # noqa: E402
from tinyvae_kernels.activation import ACTIVATIONS  # noqa: E402
from tinyvae_kernels.adapters import pytorch as adapter  # noqa: E402

pytestmark = [  # PyTorch's own
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning"),
]
LOG_2PI = math.log(2 * math.pi)
# sums over a batch and patches: PyTorch has sum, and F.unfold and F.fold
LEFT_OUT = {"total", "gaussian_kl_total", "im2col", "col2im"}


# ---------------------------------------------------------------------------- plain formulas
def row(each):
    """(B, ...) -> (B,)."""
    return each.flatten(1).sum(1)


def kl(mu, logvar, free_bits=0.0):
    each = (mu**2 + torch.expm1(logvar) - logvar) / 2
    return row(each.clamp(min=free_bits) if free_bits else each)


def kl_between(mu, logvar, mu2, logvar2):
    d = logvar - logvar2
    return row((mu - mu2) ** 2 * torch.exp(-logvar2) + torch.expm1(d) - d) / 2


def bernoulli(logits, x):
    return row(F.binary_cross_entropy_with_logits(logits, x, reduction="none"))


def gaussian(x_mu, x_logvar, x):
    return row(LOG_2PI + x_logvar + (x - x_mu) ** 2 * torch.exp(-x_logvar)) / 2


def fixed(x_mu, x, variance):
    return gaussian(x_mu, torch.full_like(x, math.log(variance)), x)


def categorical(logits, labels):
    log_p = torch.log_softmax(logits, -1).gather(-1, labels.long()[..., None])
    return -row(log_p.flatten(1))


def beta_density(log_alpha, log_beta, x):
    return -row(torch.distributions.Beta(log_alpha.exp(), log_beta.exp()).log_prob(x))


def logistic_mixture(logit_weight, x_mu, log_scale, x, levels=256):
    """The sigmoids themselves: exact enough where the bins are wide."""
    h, scale = 1 / (levels - 1), log_scale.exp()
    level = torch.round((x + 1) * (levels - 1) / 2)[..., None]
    centre = 2 * level / (levels - 1) - 1
    above = torch.where(level == levels - 1, 1.0, torch.sigmoid((centre + h - x_mu) / scale))
    below = torch.where(level == 0, 0.0, torch.sigmoid((centre - h - x_mu) / scale))
    return -row(((above - below) * logit_weight.softmax(-1)).sum(-1).log())


def elbo(nll):
    def value(*arrays, beta=1.0, free_bits=0.0, **options):
        *given, mu, logvar = arrays
        return -nll(*given, **options) - beta * kl(mu, logvar, free_bits)

    return value


def sample(mu, logvar, **numbers):
    eps = kernels.philox_normal(tuple(mu.shape), dtype=np.float64, **numbers)
    return mu + torch.exp(logvar / 2) * torch.from_numpy(eps)


ACTIVATION_FORMULAS = {
    "identity": lambda u: u,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": lambda u: F.gelu(u, approximate="tanh"),
}


def bias_activation(x, bias, activation):
    return ACTIVATION_FORMULAS[activation](x + bias)


def mixture_terms(z, log_weights, mu, logvar):
    """(B, K, Z) each: the weights, and the logarithms of the densities."""
    log_n = -(LOG_2PI + logvar + (z[:, None] - mu) ** 2 * torch.exp(-logvar)) / 2
    return log_weights[..., None], log_n


def mixture(*arrays):
    weights, log_n = mixture_terms(*arrays)
    return torch.logsumexp(weights[..., 0] + log_n.sum(2), 1)


def mixture_marginal(*arrays):
    return torch.logsumexp(sum(mixture_terms(*arrays)), 1)


FORMULAS = {
    "reparameterize": lambda mu, logvar, eps: mu + torch.exp(logvar / 2) * eps,
    "gaussian_sample": sample,
    "gaussian_kl": kl,
    "gaussian_kl_between": kl_between,
    "bernoulli_nll": bernoulli,
    "gaussian_nll": gaussian,
    "gaussian_fixed_nll": fixed,
    "categorical_nll": categorical,
    "beta_nll": beta_density,
    "logistic_mixture_nll": logistic_mixture,
    "bernoulli_elbo": elbo(bernoulli),
    "gaussian_elbo": elbo(gaussian),
    "gaussian_fixed_elbo": elbo(fixed),
    "log_mean_exp": lambda log_w: torch.logsumexp(log_w, 1) - math.log(log_w.shape[1]),
    "mixture_log_prob": mixture,
    "mixture_marginal_log_prob": mixture_marginal,
    "bias_activation": bias_activation,
}
every_formula = pytest.mark.parametrize("name", FORMULAS)
every_pair = pytest.mark.parametrize("name", sorted(PAIRS.keys() - LEFT_OUT))


# ---------------------------------------------------------------------------------- examples
def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(name: str, B: int = 4, D: int = 6, dtype: Any = torch.float64) -> tuple:
    """Tensors of moderate size, those that are not data on the tape, and the options."""
    case = backends.CASES[name](np.random.default_rng([B, D]), B, D)
    tensors = []
    for i, array in enumerate(case.arrays):
        tensor = torch.from_numpy(np.array(array))
        if tensor.is_floating_point():
            limit = 1.0 if name == "beta_nll" and i == 2 else 3.0  # 3: nothing of size exp(20)
            tensor = tensor.clamp(-limit, limit).to(dtype).requires_grad_(i not in case.data)
        tensors.append(tensor)
    return tensors, dict(case.options)


def function(name: str) -> Any:
    """The adapter's, with the first of its results alone."""

    def call(*tensors, **options):
        results = getattr(adapter, name)(*tensors, **options)
        return results[0] if isinstance(results, tuple) else results

    return call


def on_tape(tensors: list) -> list:
    return [t for t in tensors if t.requires_grad]


def value_and_gradients(call: Any, tensors: list, options: dict, dout: Any = None) -> list:
    out = call(*tensors, **options)
    dout = torch.ones_like(out) if dout is None else dout
    return [out.detach(), *torch.autograd.grad(out, on_tape(tensors), dout.to(out.dtype))]


def assert_close(found: list, expected: list, tolerance: float, message: str = "") -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        size = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance * size,
            msg=lambda text: f"{message} {text}",
        )  # fmt: skip


def model(*sizes: int) -> Any:
    """A perceptron with the same weights in every run."""
    layers: list[Any] = []
    for k, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        layer = torch.nn.Linear(wide, narrow)
        with torch.no_grad():
            layer.weight.copy_(normal(narrow, wide, seed=k) / math.sqrt(wide))
            layer.bias.zero_()
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


# ------------------------------------------------------------------------ values and gradients
def test_every_pair_has_its_function():
    assert set(adapter.__all__) == PAIRS.keys() - LEFT_OUT
    assert set(FORMULAS) == PAIRS.keys() - LEFT_OUT - {"nearest_code"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@every_formula
def test_agrees_with_the_plain_formula(name, dtype, tolerance):
    tensors, options = arguments(name, dtype=dtype)
    exact = [t.detach().double() if t.is_floating_point() else t for t in tensors]
    for t, e in zip(tensors, exact, strict=True):
        e.requires_grad_(t.requires_grad)
    plain = FORMULAS[name](*exact, **options)
    dout = normal(*plain.shape, seed=1)  # never ones
    expected = value_and_gradients(FORMULAS[name], exact, options, dout)
    found = value_and_gradients(function(name), tensors, options, dout)
    assert all(f.dtype == dtype for f in found)
    assert_close(found, expected, tolerance)


@every_formula
def test_gradcheck(name):
    tensors, options = arguments(name, B=2, D=3)
    assert torch.autograd.gradcheck(lambda *t: function(name)(*t, **options), tensors)


def test_nearest_code_goes_straight_through():
    z, codebook = normal(5, 3).requires_grad_(), normal(7, 3, seed=1)
    quantized, codes = adapter.nearest_code(z, codebook)
    assert codes.dtype == torch.int64
    assert not codes.requires_grad
    torch.testing.assert_close(codes, torch.cdist(z, codebook).argmin(1))
    torch.testing.assert_close(quantized, codebook[codes])
    (quantized * z.detach()).sum().backward()
    torch.testing.assert_close(z.grad, z.detach())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, compiled, dynamo):
    x, bias = normal(5, 4, 3).requires_grad_(), normal(3, seed=1).requires_grad_()
    call = adapter.bias_activation
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    dout, options = normal(5, 4, 3, seed=2), {"activation": activation}
    expected = value_and_gradients(bias_activation, [x, bias], options, dout)
    assert_close(value_and_gradients(call, [x, bias], options, dout), expected, 1e-12)


@pytest.mark.parametrize("B", [0, 1, 5])
@pytest.mark.parametrize("D", [0, 1, 5])
def test_empty_and_single(B, D):
    for name in ("bernoulli_elbo", "gaussian_kl", "reparameterize"):
        tensors, options = arguments(name, B, D)
        found = value_and_gradients(function(name), tensors, options)
        assert_close(found, value_and_gradients(FORMULAS[name], tensors, options), 1e-12)


def test_images_are_rows(rng):
    """Axes beyond the second are summed over, too, and the gradients keep them."""
    logits, x = normal(3, 4, 5, 2).requires_grad_(), torch.rand(3, 4, 5, 2, dtype=torch.float64)
    mu, logvar = normal(3, 2).requires_grad_(), normal(3, 2, seed=1).requires_grad_()
    arrays = [logits, x, mu, logvar]
    found = value_and_gradients(adapter.bernoulli_elbo, arrays, {"beta": 0.5})
    expected = value_and_gradients(FORMULAS["bernoulli_elbo"], arrays, {"beta": 0.5})
    assert_close(found, expected, 1e-12)


# ------------------------------------------------------------------------------ kinds of tensors
def strided(t: Any) -> Any:
    """The same numbers, every other element of a larger tensor, last axis first in memory."""
    other = math.nan if t.is_floating_point() else -7
    wide = torch.full((*reversed(t.shape), 2), other, dtype=t.dtype)
    wide[..., 0] = t.permute(*reversed(range(t.ndim)))
    return wide[..., 0].permute(*reversed(range(t.ndim)))


def negated(t: Any) -> Any:
    """A tensor whose memory holds the negative numbers, with PyTorch's negative bit."""
    return torch._neg_view(-t)


@every_formula
def test_layout_makes_no_difference(name):
    tensors, options = arguments(name)
    expected = value_and_gradients(function(name), tensors, options)
    for layout in (strided, negated):
        changed = []
        for t in tensors:
            floats = t.is_floating_point()
            new = layout(t.detach()) if floats or layout is strided else t
            changed.append(new.requires_grad_() if t.requires_grad else new)
        assert layout is strided or changed[0].is_neg()
        dout = torch.ones(()).double().expand(expected[0].shape)  # strides of zero
        found = value_and_gradients(function(name), changed, options, dout)
        assert_close(found, expected, 1e-14, layout.__name__)


@every_formula
def test_only_the_gradients_that_are_needed(name):
    tensors, options = arguments(name)
    every = value_and_gradients(function(name), tensors, options)[1:]
    for k, wanted in enumerate(on_tape(tensors)):
        alone = [t if t is wanted else t.detach() for t in tensors]
        _, gradient = value_and_gradients(function(name), alone, options)
        assert_close([gradient], [every[k]], 1e-15)
    frozen = [t.detach() for t in tensors]
    assert not function(name)(*frozen, **options).requires_grad


def test_saves_only_what_is_needed():
    logits, x, mu, logvar = (normal(4, 6, seed=k) for k in range(4))
    kept: list[Any] = []

    def pack(t):
        kept.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        adapter.bernoulli_elbo(logits, x, mu.requires_grad_(), logvar)
    assert kept == [(4,), (4, 6)]  # elbo, dmu
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        adapter.reparameterize(mu, logvar, x)
    assert kept == []


@every_pair
def test_without_gradients(name):
    tensors, options = arguments(name)
    expected = function(name)(*tensors, **options).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = function(name)(*tensors, **options)
            assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with torch.inference_mode():
        made = [t.clone() for t in tensors]
    with torch.no_grad():
        found = function(name)(*made, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_second_pass_gives_the_same_gradients():
    for name in ("bernoulli_elbo", "gaussian_kl"):
        tensors, options = arguments(name)
        loss = function(name)(*tensors, **options).sum()
        first = torch.autograd.grad(loss, on_tape(tensors), retain_graph=True)
        assert_close(torch.autograd.grad(loss, on_tape(tensors)), first, 0.0)


def test_a_tensor_used_twice_gets_the_sum():
    mu = normal(4, 3).requires_grad_()
    adapter.gaussian_kl(mu, mu).sum().backward()
    torch.testing.assert_close(mu.grad, mu.detach() + torch.expm1(mu.detach()) / 2)


def test_changed_arguments_are_noticed():
    mu, logvar = normal(4, 3).requires_grad_(), normal(4, 3)
    kl_value = adapter.gaussian_kl(mu, logvar)
    logvar.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kl_value.sum().backward()


def test_parameters_of_modules():
    mu = torch.nn.Parameter(normal(4, 3))
    adapter.gaussian_kl(mu, mu.detach()).sum().backward()
    torch.testing.assert_close(mu.grad, mu.detach())


# --------------------------------------------------------------------------------- what is refused
def test_data_have_no_gradient():
    x, eps = normal(4, 6).requires_grad_(), normal(4, 3).requires_grad_()
    with pytest.raises(ValueError, match=r"bernoulli_nll has no gradient .* x, .*x\.detach\(\)"):
        adapter.bernoulli_nll(normal(4, 6), x).sum().backward()
    with pytest.raises(ValueError, match="respect to eps"):
        adapter.reparameterize(normal(4, 3), normal(4, 3), eps).sum().backward()
    with pytest.raises(ValueError, match="respect to x"):
        torch.ops.tinyvae.bernoulli_nll(normal(4, 6), x)[0].sum().backward()


@every_formula
def test_second_derivatives_are_refused(name):
    """Also where another term would hide that this one's is missing."""
    tensors, options = arguments(name)
    for k, t in enumerate(on_tape(tensors)):
        if name in ("reparameterize", "gaussian_sample") and k == 0:
            continue  # linear in mu
        total = function(name)(*tensors, **options).sum() + (t**3).sum()
        (gradient,) = torch.autograd.grad(total, t, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            torch.autograd.grad(gradient.sum(), t, retain_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            gradient.sum().backward()


def test_create_graph_alone_does_no_harm():
    for name in FORMULAS:
        tensors, options = arguments(name)
        expected = value_and_gradients(function(name), tensors, options)[1:]
        out = function(name)(*tensors, **options).sum()
        assert_close(torch.autograd.grad(out, on_tape(tensors), create_graph=True), expected, 1e-15)


def test_the_derivative_by_dout_is_refused_rather_than_dropped():
    mu, weight = normal(4, 3).requires_grad_(), normal(4).requires_grad_()
    loss = (adapter.gaussian_kl(mu, mu.detach()) * weight).sum()
    (gradient,) = torch.autograd.grad(loss, mu, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


def test_forward_mode_is_refused():
    tensors, options = arguments("bernoulli_elbo")
    tensors = [t.detach() for t in tensors]
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), forward_ad.dual_level():
            logits = forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
            with pytest.raises(NotImplementedError):
                adapter.bernoulli_elbo(logits, *tensors[1:], **options)
    with pytest.raises(NotImplementedError, match="gaussian_kl has no forward-mode derivative"):
        torch.func.jvp(lambda t: adapter.gaussian_kl(t, t), (normal(4, 3),), (normal(4, 3),))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_on_a_cpu(dtype, compiled):
    call = torch.compile(adapter.gaussian_kl, backend="eager") if compiled else adapter.gaussian_kl
    half = normal(4, 3).to(dtype)
    with pytest.raises(TypeError, match=r"mu must be float32 or float64, got .*float16 .*GPU only"):
        call(half, half)


def test_bad_arguments():
    mu, x = normal(4, 3), normal(4, 6)
    kl_of, elbo_of = adapter.gaussian_kl, adapter.bernoulli_elbo
    for error, message, call in (
        (TypeError, "mu must be a tensor, got ndarray", lambda: kl_of(mu.numpy(), mu)),
        (TypeError, "logvar is float32, mu is float64", lambda: kl_of(mu, mu.float())),
        (TypeError, "mu must be float32 or float64, got int64", lambda: kl_of(mu.long(), mu)),
        (TypeError, "free_bits must be a number, got a tensor", lambda: kl_of(mu, mu, free_bits=x)),
        (ValueError, r"logvar has shape \(2, 3\), mu has \(4, 3\)", lambda: kl_of(mu, mu[:2])),
        (ValueError, "free_bits must be finite and >= 0", lambda: kl_of(mu, mu, free_bits=-1.0)),
        (ValueError, "beta must be finite", lambda: elbo_of(x, x, mu, mu, beta=math.nan)),
        (ValueError, "mu has 2 rows, x has 4", lambda: elbo_of(x, x, mu[:2], mu[:2])),
        (ValueError, r"seed must be in \[0, 2\^64\)", lambda: sample_with(-1)),
        (ValueError, r"seed must be in \[0, 2\^64\)", lambda: sample_with(2**64)),
    ):
        with pytest.raises(error, match=message):
            call()


def sample_with(seed: int) -> Any:
    return adapter.gaussian_sample(torch.zeros(2, 3), torch.zeros(2, 3), seed=seed)


@pytest.mark.parametrize("seed", [0, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_noise_is_philox(seed):
    expected = torch.from_numpy(kernels.philox_normal((2, 3), seed=seed))
    torch.testing.assert_close(sample_with(seed), expected, rtol=1e-6, atol=1e-6)


def test_a_device_without_kernels():
    mu = torch.zeros(2, 3, device="meta")
    assert adapter.gaussian_kl(mu, mu).shape == (2,)


# ---------------------------------------------------------------------------- the operators
@every_pair
def test_opcheck(name):
    tensors, options = arguments(name)
    pair = adapter._PAIRS[name]
    torch.library.opcheck(pair.operator.overload, (*tensors, *options_of(pair, options)))


@pytest.mark.parametrize("name", [name for name, pair in adapter._PAIRS.items() if pair.kept])
def test_opcheck_backward(name):
    """Whose own derivatives are refused."""
    tensors, options = arguments(name)
    pair = adapter._PAIRS[name]
    dout = torch.ones_like(function(name)(*tensors, **options)).detach()
    kept = [tensors[i].detach() for i in pair.kept]
    args = (dout, *kept, *options_of(pair, options))
    torch.library.opcheck(pair.backward_operator.overload, args)


def test_opcheck_scale_rows():
    torch.library.opcheck(adapter._scale.overload, (normal(4), normal(4, 3, 2), normal(4)))


def options_of(pair: Any, options: dict) -> list:
    """As the operator takes them, in order."""
    signature = adapter.inspect.signature(pair.run_pair).parameters
    return [options.get(o, signature[o].default) for o in pair.options]


# ------------------------------------------------------------------------------------- compiled
@pytest.fixture
def dynamo() -> Iterator[Any]:
    """torch.compile without anything left of other tests; yields a counter of compilations."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    yield CompileCounterWithBackend
    torch._dynamo.reset()


@every_pair
def test_compiled_graph_equals_eager(name, dynamo):
    """Dynamo and AOTAutograd; the code that Inductor makes is tested once, below."""
    tensors, options = arguments(name)
    compiled = torch.compile(function(name), fullgraph=True, backend="aot_eager")
    found = value_and_gradients(compiled, tensors, options)
    assert_close(found, value_and_gradients(function(name), tensors, options), 1e-14)


def training_loss(logits, x, mu, logvar, beta, step):
    z = adapter.gaussian_sample(mu, logvar, seed=3, step=step)
    eps = torch.ones_like(mu)
    z = z + adapter.reparameterize(mu, logvar, eps)
    bound = adapter.bernoulli_elbo(logits * z.sum(1, keepdim=True), x, mu, logvar, free_bits=0.1)
    return (beta * adapter.gaussian_kl(mu, logvar) - bound.sigmoid()).mean()


def test_inductor_equals_eager_without_recompiling(dynamo):
    """Batch size, a schedule given as a tensor and the step's number may change."""
    counter = dynamo("inductor")
    compiled = torch.compile(training_loss, fullgraph=True, backend=counter)
    for step, B in enumerate((4, 7, 9, 5)):
        logits, x, mu, logvar = (normal(B, 6, seed=k).requires_grad_(k != 1) for k in range(4))
        options = {"beta": torch.tensor(0.1 * step), "step": step}
        tensors = [logits, x, mu, logvar]
        found = value_and_gradients(compiled, tensors, options)
        assert_close(found, value_and_gradients(training_loss, tensors, options), 1e-13)
    assert counter.frame_count <= 2  # once for one batch size, once for all


def test_compiled_backward_is_plain_products(dynamo):
    """So that the compiler can fuse them: no operator scales the rows."""
    from torch._dynamo.testing import AotEagerAndRecordGraphs

    recorder = AotEagerAndRecordGraphs()
    tensors, options = arguments("bernoulli_elbo")
    compiled = torch.compile(adapter.bernoulli_elbo, fullgraph=True, backend=recorder)
    compiled(*tensors, **options).sum().backward()
    names = {str(node.target) for node in recorder.bw_graphs[0].graph.nodes}
    assert "aten.mul.Tensor" in names
    assert not any("tinyvae" in name for name in names)


def test_compiled_data_have_no_gradient(dynamo):
    compiled = torch.compile(adapter.bernoulli_nll, fullgraph=True, backend="aot_eager")
    with (
        pytest.warns(UserWarning, match="Traceback of forward call"),
        pytest.raises(Exception, match=r"no gradient with respect to x, .* pass x\.detach\(\)"),
    ):
        compiled(normal(4, 6), normal(4, 6).requires_grad_())


def test_traced_and_exported():
    from torch.fx.experimental.proxy_tensor import make_fx

    class Bound(torch.nn.Module):
        def forward(self, *tensors):
            return adapter.bernoulli_elbo(*tensors, beta=2.0)

    tensors = [t.detach() for t in arguments("bernoulli_elbo")[0]]
    other = [t.clone() + 0.5 for t in tensors]
    expected = Bound()(*other)
    exported = torch.export.export(Bound(), tuple(tensors)).module()
    for graph in (make_fx(Bound())(*tensors), exported):
        torch.testing.assert_close(graph(*other), expected)


# ------------------------------------------------------------------------------------ torch.func
ROWWISE = [
    name
    for name in FORMULAS
    if name not in ("gaussian_sample", "bias_activation") and not name.startswith("mixture")
]


@pytest.mark.parametrize("name", ROWWISE)
def test_vmap_is_a_loop(name):
    tensors, options = arguments(name)
    stacked = [torch.stack([t.detach(), t.detach().flip(0), t.detach()]) for t in tensors]

    def call(*t):
        return function(name)(*t, **options)

    expected = torch.stack([call(*(t[k] for t in stacked)) for k in range(3)])
    assert_close([torch.func.vmap(call)(*stacked)], [expected], 1e-14)
    # mapped along another axis, and an argument that is the same for all
    first, *others = stacked
    moved = [first.movedim(0, -1), *(t[0] for t in others)]
    axes = (first.ndim - 1, *(None for _ in others))
    expected = torch.stack([call(t, *(o[0] for o in others)) for t in first])
    assert_close([torch.func.vmap(call, in_dims=axes)(*moved)], [expected], 1e-14)


@pytest.mark.parametrize("name", ROWWISE)
def test_gradients_of_single_rows(name):
    """vmap of grad: one gradient a row, as those of the whole batch are."""
    tensors, options = arguments(name)
    expected = value_and_gradients(function(name), tensors, options)[1:]
    wanted = tuple(i for i, t in enumerate(tensors) if t.requires_grad)

    def one(*t):
        return function(name)(*(a[None] for a in t), **options).sum()

    rows = torch.func.vmap(torch.func.grad(one, wanted))(*(t.detach() for t in tensors))
    assert_close(list(rows), expected, 1e-14)


def test_functional_gradient_of_vmap():
    mu, logvar = normal(3, 4, 2), normal(3, 4, 2, seed=1)
    found = torch.func.grad(lambda t: torch.func.vmap(adapter.gaussian_kl)(t, logvar).sum())(mu)
    torch.testing.assert_close(found, mu)
    found, pull = torch.func.vjp(adapter.gaussian_kl, mu[0], logvar[0])
    torch.testing.assert_close(pull(torch.ones_like(found))[0], mu[0])


def test_torch_func_refuses_what_is_not_there():
    mu, logvar = normal(4, 3), normal(4, 3, seed=1)
    for call in (adapter.gaussian_kl, lambda m, v: adapter.bernoulli_elbo(m, m.detach(), m, v)):
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            torch.func.jacrev(torch.func.jacrev(lambda m, c=call: c(m, logvar).sum()))(mu)
    with pytest.raises(NotImplementedError, match="no rule for vmap"):
        torch.func.vmap(lambda m: adapter.gaussian_sample(m, m, seed=1))(mu[:, None])
    with pytest.raises(ValueError, match="need a batch axis"):
        torch.func.vmap(adapter.gaussian_kl)(mu[0], logvar[0])


# -------------------------------------------------------------------------------------- autocast
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_widens_halves(compiled, dynamo):
    def loss(weight, x, mu, logvar):
        logits = F.linear(mu, weight)  # bfloat16 under autocast
        return adapter.bernoulli_elbo(logits, x, F.linear(mu, mu), F.linear(logvar, mu))

    call = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    weight, x = normal(6, 3).float().requires_grad_(), torch.ones(3, 6)
    mu, logvar = normal(3, 3).float().requires_grad_(), normal(3, 3, seed=1).float()
    expected = value_and_gradients(loss, [weight, x, mu, logvar], {})
    with torch.autocast("cpu", torch.bfloat16):
        out = call(weight, x, mu, logvar)
    assert out.dtype == torch.float32
    found = [out.detach(), *torch.autograd.grad(out.sum(), [weight, mu])]
    assert_close(found, expected, 0.02)
    with torch.autocast("cpu", torch.bfloat16):  # doubles stay
        assert adapter.gaussian_kl(normal(4, 3), normal(4, 3)).dtype == torch.float64


# --------------------------------------------------------------------------------------- threads
def test_as_many_threads_as_pytorch(monkeypatch):
    limits = []
    monkeypatch.setattr(_threads, "parts", lambda *_: limits.append(_threads._limit.get()) or 1)
    mu = normal(4, 3).requires_grad_()
    adapter.gaussian_kl(mu, mu).sum().backward()
    with kernels.threads(7):
        adapter.gaussian_kl(mu, mu).sum().backward()
    count = torch.get_num_threads()
    assert limits == ([] if kernels.numba_problem() else [count, count, 7, 7])


def test_several_threads_at_once():
    """As torch.nn.parallel.parallel_apply has them."""
    tensors, options = arguments("bernoulli_elbo", B=64, D=65)
    expected = value_and_gradients(adapter.bernoulli_elbo, tensors, options)
    found: dict[int, list] = {}

    def work(k: int) -> None:
        own = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        found[k] = [value_and_gradients(adapter.bernoulli_elbo, own, options) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(4):
        for each in found[k]:
            assert_close(each, expected, 0.0)


# -------------------------------------------------------------------------------------- training
def train(steps: int, loss_of: Any) -> list[float]:
    """A tiny VAE on eight patterns."""
    x = (normal(8, 12, seed=9) > 0).float().repeat(4, 1)
    encoder, decoder = model(12, 16, 4), model(2, 16, 12)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 0.02)
    losses = []
    for step in range(steps):
        mu, logvar = encoder(x).chunk(2, dim=1)  # views: rows apart in memory
        loss = loss_of(decoder, x, mu, logvar, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_goes_as_with_plain_formulas():
    def ours(decoder, x, mu, logvar, step):
        z = adapter.gaussian_sample(mu, logvar, seed=5, step=step)
        return -adapter.bernoulli_elbo(decoder(z), x, mu, logvar, beta=0.5).mean()

    def plain(decoder, x, mu, logvar, step):
        eps = torch.from_numpy(kernels.philox_normal(tuple(mu.shape), seed=5, step=step))
        z = mu + torch.exp(logvar / 2) * eps
        return -FORMULAS["bernoulli_elbo"](decoder(z), x, mu, logvar, beta=0.5).mean()

    losses = train(20, ours)
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(losses, train(20, plain), rtol=1e-4)


def test_the_example_at_the_top_runs():
    text = [line.strip() for line in adapter.__doc__.splitlines() if line.startswith("    ")]
    mu, logvar = (t.float().requires_grad_() for t in (normal(4, 2), normal(4, 2, seed=1)))
    names = {"torch": torch, "mu": mu, "logvar": logvar, "decoder": model(2, 6)}
    names["x"] = torch.ones(4, 6)
    exec("\n".join(text), names)
    assert mu.grad.isfinite().all()


@pytest.mark.parametrize("name", ["bernoulli_elbo", "gaussian_elbo", "gaussian_fixed_elbo"])
def test_beta_may_be_a_tensor(name):
    """A schedule, or a parameter with a gradient of its own."""
    tensors, options = arguments(name)
    expected = value_and_gradients(function(name), tensors, options)
    options["beta"] = torch.tensor(options["beta"], dtype=torch.float64, requires_grad=True)
    assert_close(value_and_gradients(function(name), tensors, options), expected, 1e-13)
    function(name)(*tensors, **options).sum().backward()
    *_, mu, logvar = tensors
    expected = -kl(mu, logvar, options["free_bits"]).sum()
    torch.testing.assert_close(options["beta"].grad, expected.detach())


# ------------------------------------------------------------ the way to a GPU, without a GPU
class HostArray(adapter.TorchArray):
    """A tensor on the CPU that takes the way of those on a GPU."""

    __slots__ = ()


class HostDevice(adapter.TorchDevice):
    """TorchDevice, but for CuPy's launch: the kernels run in the stand-in for CUDA."""

    array = HostArray

    def __init__(self) -> None:
        super().__init__()
        self.stand_in = simt.SimtDevice()

    def _device(self):
        return "cpu"

    def function(self, file, kernel):
        return self.stand_in.function(file, kernel)

    def active(self, array):
        return contextlib.nullcontext()

    def blocks(self):
        return self.stand_in.blocks()


@pytest.fixture
def gpu(monkeypatch) -> HostDevice:
    """Tensors on the CPU run the CUDA kernels."""
    device = HostDevice()
    monkeypatch.setitem(_cuda._devices, HostArray, device)
    monkeypatch.setattr(adapter, "TorchArray", HostArray)
    monkeypatch.setattr(adapter, "_array", lambda name, tensor: adapter._gpu_array(tensor))
    return device


TOLERANCES = {
    torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2,
}  # fmt: skip
MIXTURES = {"mixture_log_prob", "mixture_marginal_log_prob"}
ONLY_FLOATS = {"beta_nll", "log_mean_exp", "bias_activation"} | MIXTURES  # no half precision


@pytest.mark.parametrize("dtype", TOLERANCES)
@every_formula
def test_cuda_kernels_through_tensors(name, dtype, gpu):
    if name in ONLY_FLOATS and dtype.itemsize == 2:
        tensors, options = arguments(name, dtype=dtype)
        with pytest.raises(TypeError, match="must be float32 or float64"):
            function(name)(*tensors, **options)
        return
    for B, D in ((4, 6), (3, 33), (2, 64), (0, 5)):
        tensors, options = arguments(name, B, D, dtype)
        exact = [t.detach().double() if t.is_floating_point() else t for t in tensors]
        for t, e in zip(tensors, exact, strict=True):
            e.requires_grad_(t.requires_grad)
        plain = FORMULAS[name](*exact, **options)
        dout = normal(*plain.shape, seed=1).to(torch.float32 if dtype.itemsize == 2 else dtype)
        expected = value_and_gradients(FORMULAS[name], exact, options, dout)
        found = value_and_gradients(function(name), tensors, options, dout)
        assert all(f.dtype == dtype for f in found[1:])
        rowwise = adapter._PAIRS[name].rowwise
        assert found[0].dtype == (torch.float32 if rowwise and dtype.itemsize == 2 else dtype)
        assert_close(found, expected, TOLERANCES[dtype], f"{name} {B} {D}")
    assert any(name in kernel for kernel in gpu.stand_in.launched)


def test_cuda_kernels_on_strided_tensors(gpu):
    for name in ("bernoulli_elbo", "gaussian_kl", "gaussian_sample"):
        tensors, options = arguments(name)
        expected = value_and_gradients(function(name), tensors, options)
        for layout in (strided, negated):
            changed = [layout(t.detach()).requires_grad_(t.requires_grad) for t in tensors]
            found = value_and_gradients(function(name), changed, options)
            assert_close(found, expected, 1e-15)


def test_cuda_kernels_compiled(gpu, dynamo):
    tensors, options = arguments("bernoulli_elbo")
    compiled = torch.compile(adapter.bernoulli_elbo, fullgraph=True, backend="aot_eager")
    found = value_and_gradients(compiled, tensors, options)
    assert_close(found, value_and_gradients(FORMULAS["bernoulli_elbo"], tensors, options), 1e-12)
    assert gpu.stand_in.launched


def test_nearest_code_through_tensors(gpu):
    z, codebook = normal(5, 3).requires_grad_(), normal(7, 3, seed=1)
    quantized, codes = adapter.nearest_code(z, codebook)
    torch.testing.assert_close(codes, torch.cdist(z, codebook).argmin(1))
    quantized.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))


class FakeCuda:
    """What TorchDevice asks of PyTorch and CuPy, recorded."""

    def __init__(self, current: int = 0):
        self.torch = self.cupy = current
        self.launches: list[Any] = []
        device = types.SimpleNamespace
        self.xp = device(cuda=device(Device=self._switch("cupy"), runtime=self))

    def getDevice(self) -> int:  # CuPy's name
        return self.cupy

    def current_device(self) -> int:
        return self.torch

    def current_stream(self) -> Any:
        return types.SimpleNamespace(cuda_stream=1000 + self.torch)

    def _switch(self, whose: str) -> Any:
        @contextlib.contextmanager
        def on(index):
            before = getattr(self, whose)
            setattr(self, whose, index)
            try:
                yield
            finally:
                setattr(self, whose, before)

        return on

    def function(self, file, kernel):
        return lambda grid, block, args, *, shared_mem, stream: self.launches.append(
            (kernel, self.torch, self.cupy, stream.ptr)
        )


@pytest.mark.parametrize("current", [0, 1])
def test_launches_on_the_current_stream_of_the_tensors_device(monkeypatch, current):
    fake, device = FakeCuda(current), adapter.TorchDevice()
    monkeypatch.setattr(torch.cuda, "current_device", fake.current_device)
    monkeypatch.setattr(torch.cuda, "current_stream", fake.current_stream)
    monkeypatch.setattr(torch.cuda, "device", fake._switch("torch"))
    monkeypatch.setitem(device.__dict__, "_cupy", fake)
    array = types.SimpleNamespace(tensor=types.SimpleNamespace(get_device=lambda: 1))
    with device.active(array):
        device.function("f.cu", "kernel")((1,), (1,), (), shared_mem=0)
    assert fake.launches == [("kernel", 1, 1, 1001)]
    assert (fake.torch, fake.cupy) == (current, current)


def test_without_cupy(monkeypatch):
    monkeypatch.setattr(adapter, "cuda_problem", lambda: "the package cupy is not installed")
    with pytest.raises(kernels.BackendError, match=r"lie on a GPU, .* cupy is not installed"):
        adapter.TorchDevice().blocks()


# ------------------------------------------------------------------------------------ on a GPU
@pytest.fixture
def cuda() -> Any:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is built without CUDA")
    return torch.device("cuda", torch.cuda.current_device())


def moved(tensors: list, device: Any) -> list:
    return [t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCES)
@every_formula
def test_on_a_gpu(name, dtype, cuda):
    if name in ONLY_FLOATS and dtype.itemsize == 2:
        pytest.skip("no storage in half precision")
    tensors, options = arguments(name, 33, 64, dtype)
    exact = [t.detach().double() if t.is_floating_point() else t for t in tensors]
    for t, e in zip(tensors, exact, strict=True):
        e.requires_grad_(t.requires_grad)
    expected = value_and_gradients(FORMULAS[name], exact, options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # nothing may wait for the GPU
    try:
        found = value_and_gradients(function(name), moved(tensors, cuda), options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close([f.cpu() for f in found], expected, TOLERANCES[dtype])


@pytest.mark.cuda
@every_pair
def test_opcheck_on_a_gpu(name, cuda):
    tensors, options = arguments(name)
    pair = adapter._PAIRS[name]
    args = (*moved(tensors, cuda), *options_of(pair, options))
    torch.library.opcheck(pair.operator.overload, args)


@pytest.mark.cuda
def test_the_current_stream_is_honoured(cuda):
    """The arguments are written on a stream that is busy: another stream would read too early."""
    tensors, options = arguments("bernoulli_elbo", 64, 4096, torch.float32)
    expected = value_and_gradients(adapter.bernoulli_elbo, moved(tensors, cuda), options)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = [torch.zeros_like(t, device=cuda) for t in tensors]
        torch.cuda._sleep(200_000_000)
        for to, t in zip(late, moved(tensors, cuda), strict=True):
            to.copy_(t.detach())
        for to, t in zip(late, tensors, strict=True):
            to.requires_grad_(t.requires_grad)
        found = value_and_gradients(adapter.bernoulli_elbo, late, options)
    side.synchronize()
    assert_close(found, expected, 0.0)


@pytest.mark.cuda
def test_captured_as_a_cuda_graph(cuda):
    tensors, options = arguments("bernoulli_elbo", 8, 64, torch.float32)
    on_gpu = moved(tensors, cuda)
    for _ in range(2):  # compiles the kernels
        value_and_gradients(adapter.bernoulli_elbo, on_gpu, options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradients(adapter.bernoulli_elbo, on_gpu, options)
    with torch.no_grad():
        on_gpu[0].add_(1.0)
    graph.replay()
    expected = value_and_gradients(adapter.bernoulli_elbo, on_gpu, options)
    assert_close(captured, expected, 0.0)


@pytest.mark.cuda
def test_compiled_on_a_gpu(cuda, dynamo):
    compiled = torch.compile(training_loss, fullgraph=True)
    tensors = moved([normal(5, 6, seed=k).requires_grad_(k != 1) for k in range(4)], cuda)
    options = {"beta": torch.tensor(0.5, device=cuda), "step": 3}
    found = value_and_gradients(compiled, tensors, options)
    assert_close(found, value_and_gradients(training_loss, tensors, options), 1e-12)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_on_a_gpu(dtype, cuda):
    weight, x = normal(6, 3).float().to(cuda).requires_grad_(), torch.ones(3, 6, device=cuda)
    mu = normal(3, 3).float().to(cuda)
    with torch.autocast("cuda", dtype):
        out = adapter.bernoulli_elbo(F.linear(mu, weight), x, mu, mu)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.cuda
def test_devices_are_not_mixed(cuda):
    mu = torch.zeros(2, 3, device=cuda)
    with pytest.raises(TypeError, match="logvar lies on cpu, mu on cuda:0"):
        adapter.gaussian_kl(mu, mu.cpu())


@pytest.mark.cuda
def test_data_parallel(cuda):
    """Threads, one for each GPU, none of which is current in the caller."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")

    class Bound(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = model(3, 6)

        def forward(self, x, mu, logvar):
            return adapter.bernoulli_elbo(self.decoder(mu), x, mu, logvar)

    bound, x, mu = Bound().to(cuda), torch.ones(8, 6, device=cuda), normal(8, 3).float().to(cuda)
    expected = bound(x, mu, mu)
    torch.testing.assert_close(torch.nn.DataParallel(bound)(x, mu, mu), expected)
