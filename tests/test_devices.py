"""devices.py, and all of tinyvae on a GPU, of which a stand-in runs the CUDA kernels on the CPU."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import simt
import tinyvae as tv
from opcheck import OPS
from test_train import without_clock
from tinyvae import Tensor, checking, checkpoint, devices, nn, ops, optim, parallel
from tinyvae.batches import Rows
from tinyvae.devices import _warn
from tinyvae.models import networks, vae
from tinyvae.ops.noise import Stream
from tinyvae_kernels import convolution

TINY = {
    "latent_dim": 3, "hidden": (6,), "channels": (2, 3), "image_shape": (8, 8, 1), "batch_size": 6,
    "epochs": 2, "random_state": 1,
}  # fmt: skip
# how far two sums of some hundred float32 numbers in different order may be apart, and what three
# steps of Adam make of it
CLOSE, EXACT = {"rtol": 1e-5, "atol": 1e-6}, {"rtol": 1e-10, "atol": 1e-14}


@pytest.fixture
def bits(rng) -> np.ndarray:
    return (rng.random((14, 64)) < 0.4).astype(np.float32)


def on_cpu(array: Any) -> np.ndarray:
    """What lies on the device, and nothing else."""
    assert type(array) is simt.Array
    return array.get()


# --------------------------------------------------------------------------------------- the choice
def test_the_names_of_devices(monkeypatch):
    assert devices.resolve("cpu") == "cpu"
    with pytest.raises(ValueError, match="unknown device 'cudda': did you mean 'cuda'"):
        devices.resolve("cudda")
    for problem, found in ((None, "cuda"), ("no driver", "cpu")):
        monkeypatch.setattr(devices, "problem", lambda problem=problem: problem)
        assert devices.resolve("auto") == found


def test_a_device_that_was_named_is_never_replaced(bits, monkeypatch, tmp_path):
    tv.VAE(**TINY).fit(bits).save(tmp_path / "model")
    monkeypatch.setattr(devices, "problem", lambda: "the CUDA driver does not answer")
    line = "device 'cuda' cannot be used: the CUDA driver does not answer"
    for call in (
        lambda: devices.resolve("cuda"),
        lambda: nn.Linear(2, 3).to("cuda"),
        lambda: tv.VAE(device="cuda").fit(bits),
        lambda: tv.load(tmp_path / "model", device="cuda"),
        lambda: tv.load(tmp_path / "none", device="cuda"),  # before anything is read
    ):
        with pytest.raises(tv.BackendError) as error:
            call()
        assert str(error.value) == line


def test_auto_warns_once_if_cupy_is_there_in_vain(monkeypatch):
    warned = []
    monkeypatch.setattr(devices, "_warn", warned.append)
    for found, times in ((None, 0), ("cupy's spec", 1)):
        monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name, found=found: found)
        assert devices.resolve("auto") == "cpu"
        assert devices.resolve("cpu") == "cpu"
        assert len(warned) == times
    with pytest.warns(RuntimeWarning, match="device 'auto' is the CPU here: a reason"):
        _warn("a reason")
    _warn("a reason")  # warnings are errors here
    _warn.cache_clear()


def test_cublas_is_tried_before_it_is_needed(gpu, monkeypatch):
    class Broken:
        def ones(self, shape, dtype):
            raise ImportError("libcublas.so.12:\n cannot open shared object file")

    devices._products_problem.cache_clear()
    assert devices._products_problem() is None
    devices._products_problem.cache_clear()
    monkeypatch.setattr(devices, "cupy_device", lambda: types.SimpleNamespace(xp=Broken()))
    line = devices._products_problem()
    assert line == (
        "cuBLAS, which multiplies matrices, cannot be used "
        "(libcublas.so.12: cannot open shared object file)"
    )
    devices._products_problem.cache_clear()


def test_a_gpu_is_described_in_one_line(monkeypatch):
    runtime = types.SimpleNamespace(getDeviceProperties=lambda i: {"name": b"NVIDIA T4"})
    gpu = types.SimpleNamespace(id=0, compute_capability="75")
    cuda = types.SimpleNamespace(runtime=runtime, Device=lambda: gpu)
    cupy = types.SimpleNamespace(cuda=cuda, __version__="14.2.0")
    monkeypatch.setattr(devices, "cupy_device", lambda: types.SimpleNamespace(xp=cupy))
    assert devices.describe() == "NVIDIA T4, compute capability 7.5, CuPy 14.2.0"


# --------------------------------------------------------------------------------------- the arrays
def test_arrays_move_and_stay(gpu, rng):
    a = rng.standard_normal((3, 4))
    assert devices.move(a, "cpu") is a
    assert devices.to_host(a) is a
    assert devices.of(a) == "cpu"
    b = devices.move(a, "cuda")
    assert devices.of(b) == "cuda"
    assert devices.move(b, "cuda") is b
    assert devices.as_array(b) is b
    np.testing.assert_array_equal(devices.to_host(b), a)
    assert isinstance(devices.as_array([1, 2]), np.ndarray)


def test_the_gradient_of_a_loss_is_known_to_be_one(gpu, rng):
    """So that an ELBO's gradients, made in the forward, are handed on as they are."""
    ones = [devices.one(devices.move(np.zeros(3, dtype), "cuda")) for dtype in ("f4", "f4", "f8")]
    assert ones[0] is ones[1] is not ones[2]
    assert [(float(a), a.shape) for a in ones] == [(1.0, ())] * 3
    logits, x, mu, logvar = (
        Tensor(devices.move(a, "cuda"), True) for a in rng.standard_normal((4, 2, 3))
    )
    loss = ops.elbo_loss(logits, x.data, mu, logvar, elbo="bernoulli_elbo", batch=2)
    kept = loss.saved.gradients
    loss.backward()
    assert logits.grad is kept[0]
    assert float(devices.one(loss.data)) == 1.0
    weight = Tensor(devices.move(np.ones(()), "cuda"), True)
    weight.backward()  # a leaf gets an array of its own
    assert weight.grad is not devices.one(weight.data)


def test_a_tensor_keeps_the_array(gpu, rng):
    a = devices.move(rng.standard_normal((3, 4)), "cuda")
    tensor = Tensor(a, True)
    assert tensor.data is a
    assert (tensor.shape, tensor.ndim, tensor.size) == ((3, 4), 2, 12)
    np.testing.assert_array_equal(tensor.numpy(), a.get())
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(tensor)
    (tensor * tensor).backward(np.ones((3, 4)))
    np.testing.assert_allclose(on_cpu(tensor.grad), 2 * a.get())
    (tensor * 3.0).backward(devices.move(np.ones((3, 4)), "cuda"))  # adds to it
    np.testing.assert_allclose(on_cpu(tensor.grad), 2 * a.get() + 3)
    assert "op=mul" in repr(tensor * 2.0)


def test_arrays_do_not_mix(gpu, rng):
    a = rng.standard_normal((3, 3))
    b = devices.move(a, "cuda")
    for name in ("add", "matmul", "linear", "where", "concatenate", "bernoulli_nll"):
        arguments = (a > 0, a, b) if name == "where" else (a, b)
        with pytest.raises(TypeError, match=rf"^{name}\(\) got arrays on cpu, .*cuda: "):
            getattr(ops, name)(*([arguments] if name == "concatenate" else arguments))
    with pytest.raises(TypeError, match="x lies on cuda:0, logits on cpu: move them to one"):
        ops.bernoulli_nll(a, b)
    with pytest.raises(TypeError, match="the exponent must be a number"):  # not about devices
        Tensor(b) ** "2"  # type: ignore[operator]


# ------------------------------------------------------------------------------------------ the ops
def result(name: str, device: str, dtype: Any) -> list[np.ndarray]:
    """Output and gradients of an op's row in the table, computed on a device."""
    inputs, options = checking.CASES[name](np.random.default_rng(0))
    leaves: list[Tensor] = []

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(item) for item in value]
        if isinstance(value, Tensor):  # data
            labels = value.data.dtype.kind in "iu"
            return Tensor(devices.move(value.data if labels else value.data.astype(dtype), device))
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            leaves.append(Tensor(devices.move(value.astype(dtype), device), True))
            return leaves[-1]
        return devices.move(value, device) if isinstance(value, np.ndarray) else value

    out = OPS[name](*map(put, inputs), **options)
    out.backward(np.random.default_rng(1).standard_normal(out.shape))
    found = [out.data, *(leaf.grad for leaf in leaves)]
    assert all(devices.of(array) == device and array.dtype == dtype for array in found)
    return [devices.to_host(array) for array in found]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_the_same_on_both(name, dtype, gpu):
    tolerance = {"rtol": 2e-5, "atol": 2e-6} if dtype == np.float32 else EXACT
    cuda, cpu = (result(name, device, dtype) for device in ("cuda", "cpu"))
    for found, expected in zip(cuda, cpu, strict=True):
        np.testing.assert_allclose(found, expected, **tolerance)


def test_indices_may_lie_on_either_device(gpu, rng):
    a, index = rng.standard_normal((5, 3)), np.array([0, 2, 2])
    for place in ("cpu", "cuda"):
        x = Tensor(devices.move(a, "cuda"), True)
        x[devices.move(index, place)].backward(np.ones((3, 3)))
        np.testing.assert_array_equal(on_cpu(x.grad)[:, 0], [1, 0, 2, 0, 0])


def test_a_large_batch_is_convolved_in_fewer_parts(gpu):
    x = np.zeros((3, 64, 64, 4), np.float32)
    g = ops.conv_geometry(x.shape[1:], (4, 4))
    assert len([*convolution._parts(x, g)]) == 3
    assert len([*convolution._parts(devices.move(x, "cuda"), g)]) == 1


# -------------------------------------------------------------------------------------- the network
def build(architecture: str, dtype: Any = np.float32) -> vae.VAENetwork:
    return vae.build(
        architecture, (8, 8, 1), 3, hidden=(6,), channels=(2, 3), activation="gelu",
        seed=0, dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_the_elbo_and_its_gradients(architecture, dtype, gpu, bits, rng):
    x, eps = bits[:5].reshape(5, 8, 8, 1).astype(dtype), rng.standard_normal((5, 3)).astype(dtype)
    found = {}
    for device in ("cpu", "cuda"):
        network = build(architecture, dtype).to(device)
        assert parallel.on_gpu(network) == (device == "cuda")
        bound = tv.objectives.elbo(
            network, devices.move(x, device), devices.move(eps, device), beta=0.7,
            likelihood=tv.likelihoods.Bernoulli(),
        )  # fmt: skip
        bound.loss.backward()
        arrays = [bound.loss.data, bound.nll, bound.kl, *(t.grad for t in network.parameters())]
        assert {devices.of(array) for array in arrays} == {device}
        found[device] = [devices.to_host(array) for array in arrays]
    tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == np.float32 else EXACT
    for cuda, cpu in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(cuda, cpu, **tolerance)


def test_modules_move_with_their_constants_and_forget_gradients(gpu):
    class Scaled(nn.Module):
        def __init__(self):
            self.inner, self.scale = nn.Linear(2, 3), Tensor(np.ones(3, np.float32))

        def __call__(self, x):
            return self.inner(x) * self.scale

    module = Scaled()
    module.inner.weight.grad = np.ones((2, 3), np.float32)
    assert module.to("cuda") is module
    assert {devices.of(t.data) for t in (module.inner.weight, module.scale)} == {"cuda"}
    assert module.inner.weight.grad is None
    x = np.ones((4, 2), np.float32)
    cuda = on_cpu(module(devices.move(x, "cuda")).data)
    np.testing.assert_allclose(module.to("cpu")(x).data, cuda, **CLOSE)


@pytest.mark.parametrize("make", [optim.Adam, lambda p: optim.SGD(p, momentum=0.9)])
def test_optimizers_and_states_go_from_one_device_to_the_other(make, gpu, rng):
    gradients, found = rng.standard_normal((4, 2, 3)).astype(np.float32), []
    for moves in (False, True):
        layer = nn.Linear(2, 3, bias=False, rng=np.random.default_rng(0))
        optimizer = make(layer.parameters())
        for i, gradient in enumerate(gradients):
            if moves:
                there = nn.Linear(2, 3, bias=False).to("cpu" if i % 2 else "cuda")
                there.load_state_dict(layer.state_dict())
                state, optimizer = optimizer.state_dict(), make(there.parameters())
                optimizer.load_state_dict(state)
                layer = there
            place = devices.of(layer.weight.data)
            assert place == ("cuda" if moves and i % 2 == 0 else "cpu")
            layer.weight.grad = devices.move(gradient, place)
            optimizer.step(scale=0.5)
        found.append(layer.weight.numpy())
    np.testing.assert_allclose(*found, **CLOSE)


def test_the_gradient_norm(gpu, rng):
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (5,), (2, 2, 2))]
    norms = []
    for device in ("cpu", "cuda"):
        tensors = [Tensor(devices.move(a, device), True) for a in arrays]
        for tensor in tensors:
            tensor.grad = tensor.data
        norms.append(optim.gradient_norm([*tensors, Tensor(np.ones(3), True)]))
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    assert isinstance(norms[1], float)


# ------------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize("binarize", [None, "dynamic", "static"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_batches_are_the_same_bits(binarize, kind, gpu, rng):
    pixels = rng.integers(0, 256, (9, 6)).astype(np.uint8)
    array = pixels if kind == np.uint8 else (pixels / 255).astype(kind)
    found = []
    for device in ("cpu", "cuda"):
        scale = 255.0 if kind == np.uint8 else 1.0
        rows = Rows(array, (2, 3), np.float32, scale, binarize, 5, device).binarized_once()
        assert rows.device == device
        shuffled = rows.take(np.array([3, 1, 7]), stream=Stream.BINARIZE, step=2).x
        batches = [shuffled, *(batch.x for _, batch in rows.in_order(4))]
        assert {devices.of(x) for x in batches} == {device}
        assert {x.dtype for x in batches} == {np.dtype(np.float32)}
        found.append([devices.to_host(x) for x in batches])
    for cpu, cuda in zip(*found, strict=True):
        np.testing.assert_array_equal(cuda, cpu)


# --------------------------------------------------------------------------------------- the models
EXTRA: dict[str, dict[str, Any]] = {
    "mlp": {},
    "conv": {"architecture": "conv", "activation": "gelu"},
    "gaussian": {"likelihood": "gaussian", "variance": 0.5},
    "learned variance": {"likelihood": "gaussian", "variance": "learned", "activation": "softplus"},
    "bce": {"likelihood": "bce", "activation": "elu"},
    "dynamic": {"binarize": "dynamic", "activation": "silu"},
    "static": {"binarize": "static", "architecture": "conv", "activation": "leaky_relu"},
    "float64": {"dtype": "float64", "activation": "tanh"},
    "clipped": {"clip_norm": 0.5, "weight_decay": 0.01, "free_bits": 0.1, "beta": 2.0},
    "patience": {"patience": 1, "epochs": 4, "learning_rate": 0.02},
}


def values(vae: tv.VAE, x: np.ndarray) -> dict[str, Any]:
    """Everything that a model gives back."""
    mu, logvar = vae.encode(x)
    result = vae.evaluate(x)
    return {
        "mu": mu, "logvar": logvar, "transform": vae.transform(x), "decode": vae.decode(mu),
        "reconstruct": vae.reconstruct(x), "sample": vae.sample(3, 7),
        "drawn": vae.sample(3, 7, mean=False), "none": vae.decode(mu[:0]),
        "interpolate": vae.interpolate(x[0], x[1], 3), "traverse": vae.traverse(x[0], 3),
        "elbo": vae.elbo(x), "score": vae.score(x),
        "log_likelihood": 0.0 if vae.is_loss else vae.log_likelihood(x, 3),
        "reparameterize": vae.reparameterize(mu, logvar, 0),
    } | {f"evaluate {k}": v for k, v in result.as_dict().items()}  # fmt: skip


def check_histories(one: tv.VAE, other: tv.VAE, rel: float) -> None:
    """The same log, but for the clock."""
    for found, expected in zip(*(without_clock(m.history_) for m in (one, other)), strict=True):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert value == pytest.approx(expected[key], rel=rel, abs=rel / 100), key


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_a_model_trained_on_the_gpu_is_the_cpus(extra, gpu, bits):
    grey = (bits * 0.8 + 0.1).astype(np.float32)
    x = bits if extra.get("likelihood", "bernoulli") == "bernoulli" else grey
    x = grey if "binarize" in extra else x
    models = {}
    for device in ("cpu", "cuda"):
        vae = tv.VAE(**TINY | extra, device=device)
        models[device] = vae.fit(x, validation=x[:4])
        assert vae.device_ == device
        assert {devices.of(t.data) for t in vae.network_.parameters()} == {device}
        assert {devices.of(m) for m in vae.optimizer_.state["m"]} == {device}
    assert gpu.launched
    cpu, cuda = models["cpu"], models["cuda"]
    state = cuda.network_.state_dict()
    for name, array in cpu.network_.state_dict().items():
        np.testing.assert_allclose(on_cpu(state[name]), array, rtol=1e-4, atol=1e-5, err_msg=name)
    check_histories(cuda, cpu, rel=1e-4)
    expected, found = values(cpu, x), values(cuda, x)
    for name, value in found.items():
        assert not devices.is_device_array(value), name
        if name != "drawn" or "likelihood" in extra:  # a bit may lie on the edge
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("trained", ["cpu", "cuda"])
@pytest.mark.parametrize("loaded", ["cpu", "cuda", "auto"])
def test_a_file_belongs_to_no_device(trained, loaded, gpu, bits, tmp_path):
    vae = tv.VAE(**TINY, device=trained).fit(bits)
    vae.save(tmp_path / "model")
    model = tv.load(tmp_path / "model", device=loaded)
    assert model.device == loaded
    assert model.device_ == ("cpu" if loaded == "cpu" else "cuda")
    for name, tensor in model.network_.named_parameters():
        assert devices.of(tensor.data) == model.device_
        before = devices.to_host(vae.network_.state_dict()[name])
        np.testing.assert_array_equal(tensor.numpy(), before)
    np.testing.assert_allclose(model.elbo(bits), vae.elbo(bits), rtol=1e-5)
    model.save(tmp_path / "again")
    (arrays, text), (arrays_again, text_again) = (
        checkpoint.read(tmp_path / name) for name in ("model", "again")
    )
    assert text == text_again
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, arrays_again[name])


@pytest.mark.parametrize("extra", [{}, {"patience": 9}], ids=["plain", "patience"])
@pytest.mark.parametrize("then", ["cpu", "cuda"])
def test_a_run_is_resumed_on_either_device(then, extra, gpu, bits, tmp_path):
    options, path = TINY | extra | {"epochs": 3}, tmp_path / "checkpoint"
    whole = tv.VAE(**options, device="cuda").fit(bits, validation=bits[:4])
    first = tv.VAE(**options | {"epochs": 1}, device="cuda")
    first.fit(bits, validation=bits[:4], checkpoint=path)
    second = tv.VAE(**options, device=then)
    second.fit(bits, validation=bits[:4], checkpoint=path, resume=True)
    assert second.device_ == then
    check_histories(second, whole, rel=0 if then == "cuda" else 1e-4)
    for name, array in whole.network_.state_dict().items():
        found = devices.to_host(second.network_.state_dict()[name])
        exact = {"rtol": 0, "atol": 0} if then == "cuda" else {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(found, on_cpu(array), **exact, err_msg=name)


def test_partial_fit_and_callbacks(gpu, bits):
    heard = []

    class Listener(tv.Callback):
        def on_step(self, progress, batches, nll, kl):
            heard.append((nll, kl))

    vae = tv.VAE(**TINY | {"epochs": 1}, device="cuda").fit(bits, callbacks=[Listener()])
    assert len(heard) == 3
    assert all(isinstance(value, float) for pair in heard for value in pair)
    vae.partial_fit(bits)
    assert len(vae.history_) == 2
    assert vae.device_ == "cuda"


def test_own_networks(gpu, bits):
    rng = np.random.default_rng(0)
    encoder = networks.GaussianEncoder(nn.Linear(64, 5, rng=rng), 5, 2, rng=rng)
    decoder = nn.Sequential(nn.Linear(2, 64, rng=rng))
    options = {"encoder": encoder, "decoder": decoder, "batch_size": 7, "epochs": 1}
    cpu, cuda = (tv.VAE(2, random_state=0, device=d, **options).fit(bits) for d in ("cpu", "cuda"))
    assert devices.of(encoder.mu.weight.data) == "cpu"  # the user's own stay as they were
    np.testing.assert_allclose(cuda.elbo(bits), cpu.elbo(bits), rtol=1e-5)


def test_a_diverging_run_is_explained(gpu, bits):
    with pytest.raises(tv.DivergedError, match=r"step 2 \(epoch 1\).*op '.*the largest parameter"):
        tv.VAE(**TINY, device="cuda", learning_rate=1e6).fit(bits)

    class Spoil(tv.Callback):
        def on_epoch(self, record):
            vae.network_.encoder.mu.bias.data[1] = np.inf

    vae = tv.VAE(**TINY, device="cuda")
    with pytest.raises(tv.DivergedError, match=r"parameter encoder.mu.bias holds inf at \(1,\)"):
        vae.fit(bits, callbacks=[Spoil()])


# -------------------------------------------------------------------------------------- a real GPU
@pytest.mark.cuda
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_a_model_trained_on_a_real_gpu_is_the_cpus(extra, real_gpu, rng):
    grey = rng.random((600, 8, 8, 1)).astype(np.float32)
    bits = (grey < 0.3).astype(np.float32)
    x = bits if extra.get("likelihood", "bernoulli") == "bernoulli" else grey
    x = grey if "binarize" in extra else x
    options = TINY | {"hidden": (64,), "channels": (8, 16), "batch_size": 100} | extra
    cpu, cuda = (tv.VAE(**options, device=d).fit(x, validation=x[:50]) for d in ("cpu", "cuda"))
    assert cuda.device_ == "cuda"
    for one, other in zip(*(without_clock(m.history_) for m in (cpu, cuda)), strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-5)
    np.testing.assert_allclose(cuda.encode(x)[0], cpu.encode(x)[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(cuda.sample(3, 7), cpu.sample(3, 7), rtol=1e-3, atol=1e-3)
    again = tv.VAE(**options, device="cuda").fit(x, validation=x[:50])
    for name, tensor in again.network_.named_parameters():
        first = devices.to_host(cuda.network_.state_dict()[name])
        np.testing.assert_array_equal(tensor.numpy(), first, err_msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_the_same_on_a_real_gpu(name, real_gpu):
    cuda, cpu = (result(name, device, np.float32) for device in ("cuda", "cpu"))
    for found, expected in zip(cuda, cpu, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_a_real_gpu_has_a_name(real_gpu):
    assert devices.resolve("auto") == "cuda"
    assert "compute capability" in devices.describe()
