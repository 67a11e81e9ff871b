"""The PyTorch adapter: values and gradients beside plain formulas, under PyTorch's machinery."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

import tinyvae_kernels as kernels  # noqa: E402
from tinyvae_kernels import PAIRS, _threads  # noqa: E402
from tinyvae_kernels.activation import ACTIVATIONS  # noqa: E402
from tinyvae_kernels.adapters import pytorch as adapter  # noqa: E402
from torch_formulas import (  # noqa: E402
    FORMULAS,
    LEFT_OUT,
    arguments,
    assert_close,
    bias_activation,
    every_formula,
    every_pair,
    function,
    kl,
    model,
    negated,
    normal,
    on_tape,
    options_of,
    strided,
    training_loss,
    value_and_gradients,
)

pytestmark = [  # PyTorch's own
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning"),
]


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


# ------------------------------------------------------------------------------------- compiled
@every_pair
def test_compiled_graph_equals_eager(name, dynamo):
    """Dynamo and AOTAutograd; the code that Inductor makes is tested once, below."""
    tensors, options = arguments(name)
    compiled = torch.compile(function(name), fullgraph=True, backend="aot_eager")
    found = value_and_gradients(compiled, tensors, options)
    assert_close(found, value_and_gradients(function(name), tensors, options), 1e-14)


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
