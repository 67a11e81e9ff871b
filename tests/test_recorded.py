"""recorded.py: the same bits without Python, and only for networks of which that is true."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

import tinyvae_kernels as kernels
from tinyvae import (
    Tensor,
    batches,
    devices,
    likelihoods,
    nn,
    objectives,
    ops,
    optim,
    parallel,
    recorded,
    schedules,
    train,
)
from tinyvae.batches import Batch
from tinyvae.models import vae
from tinyvae.ops.noise import Stream

SHAPES = {"mlp": (12,), "conv": (8, 8, 1)}


def network_of(architecture: str, activation="relu", dtype=np.float32, **parts):
    return vae.build(
        architecture, SHAPES[architecture], 3, hidden=(9,), channels=(4, 5),
        activation=activation, seed=0, dtype=dtype, **parts,
    )  # fmt: skip


def settings_of(**changes):
    options = {
        "epochs": 1, "batch_size": 8, "seed": 3,
        "learning_rate": schedules.parse("cosine:0.01:0.001:1"),
        "kl_weight": schedules.parse("linear:0:1:1"),
    }  # fmt: skip
    return train.Settings(**options | changes)


def trained(network, steps=8, batches=(8,), recorded=True, **changes):
    """Step a network; returns the losses, the parameters, and the states of the recordings."""
    optimizer, found = optim.Adam(network.parameters(), 1e-2), []
    rng = np.random.default_rng(5)
    shape = SHAPES["conv"] if hasattr(network.encoder.body.layers[0], "weight") else SHAPES["mlp"]
    dtype = network.parameters()[0].dtype
    with train.Step(network, optimizer, settings_of(**changes)) as step:
        if not recorded:
            step._recording = lambda x: None
        for i in range(steps):
            x = (rng.random((batches[i % len(batches)], *shape)) < 0.4).astype(dtype)
            nll, kl, norm = step(x, epoch=i / steps, want_norm=i % 3 == 0)
            found += [nll, kl, np.array(norm)]
        states = [r.state for r in step._recorded.values() if r is not None]
    return [*found, *(t.data for t in network.parameters())], states


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("architecture", SHAPES)
def test_the_bits_are_those_of_the_usual_step(architecture, dtype, shards, monkeypatch):
    monkeypatch.setattr(train, "shard_count", lambda network, size: shards)
    expected, _ = trained(network_of(architecture, dtype=dtype), recorded=False)
    found, states = trained(network_of(architecture, dtype=dtype))
    assert states == ["ready"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_every_activation_can_be_recorded(activation):
    found, states = trained(network_of("mlp", activation, free_bits=0.1), clip_norm=0.5)
    network = network_of("mlp", activation, free_bits=0.1)
    expected, _ = trained(network, recorded=False, clip_norm=0.5)
    assert states == ["ready"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def iwae_of(gradient="iwae", dtype=np.float32, likelihood=None, samples=5):
    """The same networks, trained on the importance-weighted bound."""
    made = network_of("mlp", dtype=dtype, likelihood=likelihood)
    return vae.IWAENetwork(
        made.encoder, made.decoder, 3, samples=samples, gradient=gradient, likelihood=likelihood
    )


@pytest.mark.parametrize("gradient", objectives.GRADIENTS)
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_importance_weighted_steps_are_recorded(gradient, dtype, shards, monkeypatch):
    monkeypatch.setattr(train, "shard_count", lambda network, size: shards)
    expected, _ = trained(iwae_of(gradient, dtype), recorded=False)
    found, states = trained(iwae_of(gradient, dtype))
    assert states == ["ready"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(), likelihoods.CrossEntropy()])
def test_importance_weighted_steps_of_other_likelihoods(likelihood):
    found, states = trained(iwae_of(likelihood=likelihood))
    expected, _ = trained(iwae_of(likelihood=likelihood), recorded=False)
    assert states == ["ready"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_shape_of_batch_has_its_own_recording():
    expected, _ = trained(network_of("mlp"), steps=12, batches=(8, 5), recorded=False)
    found, states = trained(network_of("mlp"), steps=12, batches=(8, 5))
    assert states == ["ready", "ready"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_few_shapes_are_recorded_and_no_more():
    _, states = trained(network_of("mlp"), steps=21, batches=(1, 2, 3, 4, 5, 6, 7))
    assert states == ["ready"] * train.MOST_RECORDED


class InNumPy(nn.Module):
    """A layer whose work no kernel does."""

    def __call__(self, x):
        return ops.tanh(x * 0.5) * 2.0


class InPython(nn.Module):
    """A layer that depends on how often it was called: no recording can repeat that."""

    calls = 0

    def __call__(self, x):
        type(self).calls += 1
        return Tensor(x.data * 1.0) if type(self).calls % 2 else x


@pytest.mark.parametrize("layer", [InNumPy, InPython])
def test_what_no_kernel_does_is_noticed(layer):
    def network():
        made = network_of("mlp")
        layer.calls = 0
        made.decoder.layers.insert(1, layer())
        return made

    found, states = trained(network())
    assert states == ["refused"]
    if layer is InNumPy:  # and the numbers are right all the same
        expected, _ = trained(network(), recorded=False)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_cannot_be_compiled_runs_as_usual(monkeypatch):
    def compile_(self):
        raise TypeError("no machine code")

    expected, _ = trained(network_of("mlp"), recorded=False)
    monkeypatch.setattr(devices.Program, "compile", compile_)
    found, states = trained(network_of("mlp"))
    assert states == ["refused"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@dataclass(frozen=True)
class Doubled(likelihoods.Bernoulli):
    """A likelihood that computes with the weight of the KL."""

    def loss(self, *arrays, beta, **weights):
        return super().loss(*arrays, beta=2 * beta, **weights)


def test_a_likelihood_that_computes_with_the_weight_runs_as_usual():
    found, states = trained(network_of("mlp", likelihood=Doubled()))
    expected, _ = trained(network_of("mlp", likelihood=Doubled()), recorded=False)
    assert states == ["refused"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_reference_bodies_are_no_program():
    with kernels.backend("numpy"):
        expected, _ = trained(network_of("mlp"), recorded=False)
        found, states = trained(network_of("mlp"))
    assert states == []
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_new_arrays_for_the_parameters_end_a_recording():
    network = network_of("mlp")
    optimizer = optim.Adam(network.parameters(), 1e-2)
    x = np.ones((8, 12), np.float32)
    with train.Step(network, optimizer, settings_of()) as step:
        for _ in range(4):
            step(x)
        network.load_state_dict({k: np.zeros_like(v) for k, v in network.state_dict().items()})
        nll, _, _ = step(x)
    np.testing.assert_allclose(nll, 12 * np.log(2), rtol=1e-6)  # zero weights: logits of 0


def test_a_recording_keeps_nothing_of_the_callers(rng):
    """The batch may be changed, and what a step returned stays."""
    network = network_of("mlp")
    x = (rng.random((8, 12)) < 0.4).astype(np.float32)
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for _ in range(4):
            nll, kl, _ = step(x)
        kept = nll.copy(), kl.copy()
        step(1 - x)
    np.testing.assert_array_equal(nll, kept[0])
    np.testing.assert_array_equal(kl, kept[1])


def test_a_ready_step_calls_no_op(monkeypatch):
    """Neither the tape nor what it adds up: only the programs run."""
    network = network_of("mlp")
    x = np.ones((8, 12), np.float32)
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for _ in range(4):
            step(x)
        made = []
        monkeypatch.setattr(devices, "add", lambda *a, **k: made.append("add"))
        for name in ("linear", "elbo_loss", "reparameterize"):
            monkeypatch.setattr(ops, name, lambda *a, **k: made.append("op"))
        step(x)
    assert not made


class Reporting(vae.VAENetwork):
    """Its log is made in NumPy, which no recording repeats; its gradients come from kernels."""

    def loss(self, batch, draw, **options):
        terms = super().loss(batch, draw, **options)
        return terms._replace(log={"nats": terms.nll + terms.kl, "total": batch.total})


def test_a_log_that_no_kernel_makes_is_noticed(rng):
    made = network_of("mlp")
    network = Reporting(made.encoder, made.decoder, 3)
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for _ in range(5):
            x = (rng.random((8, 12)) < 0.4).astype(np.float32)
            nll, kl, _ = step(Batch(x, total=100))
            assert step.log["nats"] == pytest.approx(float((nll + kl).mean()), rel=1e-6)
            assert step.log["total"] == 100
        assert [r.state for r in step._recorded.values() if r is not None] == ["refused"]


@pytest.mark.parametrize("shards", [1, 2])
def test_a_group_is_recorded_too(shards, monkeypatch):
    monkeypatch.setattr(train, "shard_count", lambda network, size: shards)

    def run(recorded):
        network, rng = network_of("mlp"), np.random.default_rng(0)
        group = optim.Group(network.decoder.parameters(), 0.03, (0.5, 0.9))
        optimizer = optim.Adam(network.parameters(), groups=[group])
        with train.Step(network, optimizer, settings_of(clip_norm=0.1)) as step:
            if not recorded:
                step._recording = lambda x: None
            for _ in range(6):
                step((rng.random((8, 12)) < 0.4).astype(np.float32))
            states = [r.state for r in step._recorded.values() if r is not None]
        assert states == (["ready"] if recorded else [])
        return [tensor.data for tensor in network.parameters()]

    for a, b in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("binarize", [None, "dynamic"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_program_reads_its_rows_itself(kind, binarize, shards, monkeypatch, rng):
    """Gathered, scaled and binarized inside: the same bits as a batch made beforehand."""
    monkeypatch.setattr(train, "shard_count", lambda network, size: shards)
    pixels = rng.integers(0, 256, (40, 12)).astype(np.uint8)
    array, scale = (pixels, 255.0) if kind == np.uint8 else ((pixels / 255).astype(kind), 1.0)
    rows = batches.Rows(array, (12,), scale=scale, binarize=binarize, seed=4)
    found = []
    for draw in (rows.draw, rows.take):
        network = network_of("mlp", likelihood=likelihoods.CrossEntropy())
        optimizer = optim.Adam(network.parameters(), 1e-2)
        with train.Step(network, optimizer, settings_of()) as step:
            for i in range(6):
                index = np.random.default_rng(i).permutation(40)[:8]
                losses = step(draw(index, stream=Stream.BINARIZE, step=i))[:2]
            states = [r.state for r in step._recorded.values() if r is not None]
        assert states == ["ready"]
        found.append([*losses, *(tensor.data for tensor in network.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "rows",
    [
        batches.Rows(np.zeros((9, 4), np.uint8), (4,), y=np.arange(9)),
        batches.Rows(np.zeros((4, 9), np.float32).T, (4,)),
        batches.Rows(np.zeros((9, 4), np.int16), (4,)),
    ],
    ids=["labels", "strided", "int16"],
)
def test_other_rows_are_read_beforehand(rows):
    assert isinstance(rows.draw(np.arange(3), stream=Stream.BINARIZE, step=0), batches.Batch)


def test_large_layers_are_recorded_too():
    """Their gradients lie in memory that is kept, and is no other array's."""
    network = vae.build(
        "mlp", (300,), 3, hidden=(120,), channels=(), activation="relu", seed=0
    )  # fmt: skip
    assert network.parameters()[0].data.nbytes > 2**17
    x = np.ones((8, 300), np.float32)
    optimizer = optim.Adam(network.parameters())
    with train.Step(network, optimizer, settings_of()) as step:
        for _ in range(4):
            step(x)
        assert [r.state for r in step._recorded.values() if r is not None] == ["ready"]


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_gradient_that_is_left_to_the_update(shards, clip_norm, monkeypatch, rng):
    """The same parameters to the bit, whether it is or not; and nobody computes it twice."""
    monkeypatch.setattr(parallel, "cores", lambda: shards)
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(recorded, "BLOCK", 5000)  # the last block is a smaller one
    x = (rng.random((12, 300)) < 0.4).astype(np.float32)
    results = []
    for large in (2**30, 10_000):
        monkeypatch.setattr(recorded, "LARGE", large)
        network = vae.build(
            "mlp", (300,), 3, hidden=(70,), channels=(), activation="relu", seed=0
        )  # fmt: skip
        optimizer = optim.Adam(network.parameters())
        with train.Step(network, optimizer, settings_of(clip_norm=clip_norm)) as step:
            for _ in range(6):
                step(x)
            [one] = [r for r in step._recorded.values() if r is not None]
            assert one.state == "ready"
            assert len(one.factors) == (0 if large == 2**30 else 2)
            assert len(one.programs) == shards
        results.append([t.data for t in network.parameters()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_factor_that_changes_later_is_noticed(rng):
    """A product is left to the update only if its factors are still there at the end."""
    a, b = rng.standard_normal((300, 4)), rng.standard_normal((4, 250))
    out, program = np.empty((300, 250)), devices.Program()
    with program.record():
        devices.product(a, b, out)
    call = devices.only_product(program, out)
    assert call is not None
    assert recorded._still_there(call)
    a += 1
    assert not recorded._still_there(call)
    with program.record():
        devices.add(out, out, out=out)
    assert devices.only_product(program, out) is None


def _memory_of(call):
    """Bytes in use at most during the call, and after it, above those before."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    call()
    after, peak = tracemalloc.get_traced_memory()
    return peak - before, after - before


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_a_ready_step_allocates_nothing_but_its_results(architecture, rng):
    """Nothing of the size of a layer: memory in use hardly rises."""
    shape = (28, 28, 1) if architecture == "conv" else (784,)
    network = vae.build(
        architecture, shape, 5, hidden=(200,), channels=(4, 6), activation="relu", seed=0
    )  # fmt: skip
    x = (rng.random((64, *shape)) < 0.4).astype(np.float32)
    optimizer = optim.Adam(network.parameters())
    with train.Step(network, optimizer, settings_of(batch_size=64)) as step:
        for _ in range(5):
            step(x)
        assert [r.state for r in step._recorded.values() if r is not None] == ["ready"]
        tracemalloc.start()
        try:
            peaks, grown = zip(*(_memory_of(lambda: step(x)) for _ in range(8)), strict=True)
        finally:
            tracemalloc.stop()
    # The least of eight steps: what a step needs, it needs every time, and whatever else the
    # interpreter does meanwhile (a table that grows, a thread of another test) it does once.
    assert min(peaks) < 40_000  # bytes; the activations of the dense layer have 51,200
    assert min(grown) < 4_000
