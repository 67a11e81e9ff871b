"""The PyTorch adapter on a GPU: through the stand-in for CUDA, and on a GPU where there is one."""

from __future__ import annotations

import contextlib
import types
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402

import simt  # noqa: E402
import tinyvae_kernels as kernels  # noqa: E402
from tinyvae_kernels import _cuda  # noqa: E402
from tinyvae_kernels.adapters import pytorch as adapter  # noqa: E402
from torch_formulas import (  # noqa: E402
    FORMULAS,
    arguments,
    assert_close,
    every_formula,
    every_pair,
    function,
    model,
    negated,
    normal,
    options_of,
    strided,
    training_loss,
    value_and_gradients,
)

pytestmark = [  # PyTorch's own
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning"),
]


# -------------------------------------------------------------------------------- without a GPU
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
