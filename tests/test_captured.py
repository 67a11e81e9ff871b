"""captured.py: a step on a GPU, captured once and launched again, gives the bits of the usual one.

The stand-in for a GPU keeps each launch with its arguments as they were, and runs it again with
those: a number that was baked in, or memory that moved, shows in the numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinyvae as tv
from test_family import COMMON, OPTIONS, data
from test_recorded import SHAPES, Doubled, InNumPy, Reporting, network_of, settings_of
from tinyvae import Tensor, devices, models, nn, objectives, optim, train
from tinyvae.batches import Batch
from tinyvae.models import vae


def bits(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Any:
    return devices.move((rng.random(shape) < 0.4).astype(dtype), "cuda")


def trained(
    network: Any, captured: bool = True, steps: int = 6, norms: bool = False, group: bool = False,
    **changes: Any,
) -> tuple[list, list]:  # fmt: skip
    """Step a network on the GPU: losses, norms, parameters and moments; the captured steps."""
    network, rng = network.to("cuda"), np.random.default_rng(5)
    dtype, found = network.parameters()[0].dtype, []
    shape = SHAPES["conv"] if hasattr(network.encoder.body.layers[0], "weight") else SHAPES["mlp"]
    groups = [optim.Group(network.decoder.parameters(), 0.03, (0.5, 0.9))] if group else []
    optimizer = optim.Adam(network.parameters(), 1e-2, weight_decay=0.01, groups=groups)
    with train.Step(network, optimizer, settings_of(**changes)) as step:
        if not captured:
            step._recording = lambda source: None
        for i in range(steps):
            x = bits(rng, 8, *shape, dtype=dtype)
            nll, kl, norm = step(x, epoch=i / steps, want_norm=norms and i % 2 == 0)
            assert type(nll) is type(kl) is np.ndarray
            found += [nll, kl, np.array(norm)]
        made = [r for r in step._recorded.values() if r is not None]
    assert optimizer.steps == steps
    arrays = [t.data for t in network.parameters()] + optimizer.state["m"] + optimizer.state["v"]
    return found + [devices.to_host(a) for a in arrays], made


def check(make: Any, state: str = "ready", **options: Any) -> Any:
    """Captured and uncaptured training agree to the last bit; returns the captured step."""
    expected, none = trained(make(), captured=False, **options)
    found, made = trained(make(), **options)
    assert (none, [one.state for one in made]) == ([], [state])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    return made[0]


# ------------------------------------------------------------------------------------ the same bits
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("architecture", SHAPES)
def test_the_bits_are_those_of_the_usual_step(architecture, dtype, gpu):
    """With a weight of the KL, a learning rate and a count of steps that change."""
    made = check(lambda: network_of(architecture, dtype=dtype))
    assert made.graph.launches == 5  # one for each step but the first


@pytest.mark.parametrize(
    "options", [{"clip_norm": 0.5}, {"norms": True}, {"group": True}], ids=lambda o: next(iter(o))
)
def test_with_clipping_norms_and_groups(options, gpu):
    check(lambda: network_of("mlp", free_bits=0.1), **options)


def test_a_likelihood_and_a_layer_that_compute_without_kernels(gpu):
    """CuPy's work is captured like any other; the weight of the KL is an array there."""

    def network():
        made = network_of("mlp", likelihood=Doubled())
        made.decoder.layers.insert(1, InNumPy())
        return made

    check(network)


KINDS = {kind: {"model": kind} | OPTIONS.get(kind, {}) for kind in models.KINDS}
READY = {"vae", "ae", "iwae", "categorical", "ladder", "bottomup", "factor", "gan"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_trains_to_the_same_bits(kind, gpu, monkeypatch):
    """Captured, if it leaves the host out of its steps; as usual, if not."""
    (x, y), found, states = data(kind), [], []
    made, record = [], train.Step._record
    for captured in (True, False):

        def spy(self, source, captured=captured):
            made.append(record(self, source))
            return made[-1] if captured else None

        monkeypatch.setattr(train.Step, "_record", spy)
        options = COMMON | KINDS[kind] | {"epochs": 3, "device": "cuda"}
        model = tv.VAE(**options).fit(*([x] if y is None else [x, y]))
        states.append({one.state for one in made})
        state = model.network_.state_dict()
        found.append({name: devices.to_host(array) for name, array in state.items()})
    assert states[0] == {"ready" if kind in READY else "refused"}
    for name, array in found[1].items():
        np.testing.assert_array_equal(found[0][name], array, err_msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("architecture", SHAPES)
def test_the_bits_are_those_of_the_usual_step_on_a_real_gpu(architecture, dtype, real_gpu):
    check(lambda: network_of(architecture, dtype=dtype))


@pytest.mark.cuda
@pytest.mark.parametrize("layer", ["Asking", "Bringing"])
def test_what_cannot_be_captured_runs_as_usual_on_a_real_gpu(layer, real_gpu):
    test_what_cannot_be_captured_runs_as_usual(globals()[layer], None)


# --------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_products_are_as_precise_as_was_asked(precision, gpu):
    """In training, captured or not; what is evaluated is exact."""
    compute = {"float32": 68, "tf32": 77, "bf16": 75}[precision]
    check(lambda: network_of("mlp"), precision=precision)
    assert {call[-1] for call in gpu.library.calls if call[0] == "cublasGemmEx_64"} == {compute}
    x, _ = data("vae")
    model = tv.VAE(**COMMON, device="cuda", precision=precision).fit(x)
    gpu.library.calls.clear()
    model.elbo(x)
    assert {call[-1] for call in gpu.library.calls} == {68}


def test_a_precision_of_float32_alone(gpu):
    with pytest.raises(ValueError, match="precision='tf32' is of float32, dtype='float64'"):
        tv.VAE(**COMMON, device="cuda", precision="tf32", dtype="float64").fit(data("vae")[0])


# ---------------------------------------------------------------------------------- what is noticed
class Asking(nn.Module):
    """A layer that asks for a value: the host would wait for the GPU."""

    def __call__(self, x):
        return x * 0.5 if float(x.data.sum()) > 0 else x


class Bringing(nn.Module):
    """A layer that brings numbers from the host, which lie elsewhere at the next launch."""

    def __call__(self, x):
        return x * devices.move(np.full(x.shape[1], 0.5, x.dtype), "cuda")


@pytest.mark.parametrize("layer", [Asking, Bringing])
def test_what_cannot_be_captured_runs_as_usual(layer, gpu):
    def network():
        made = network_of("mlp")
        made.decoder.layers.insert(1, layer())
        return made

    check(network, "refused")


class Baked(vae.VAENetwork):
    """A loss that reads a number of Python's, which changes."""

    beat = 0.0

    def loss(self, batch, draw, *, beta, rows):
        self.beat += 1.0
        terms = super().loss(batch, draw, beta=beta, rows=rows)
        return terms._replace(loss=terms.loss * self.beat)


def test_a_number_that_was_baked_in_is_noticed_before_it_does_harm(gpu):
    """The third step runs both ways, and the usual one is what counts."""

    def network():
        made = network_of("mlp")
        return Baked(made.encoder, made.decoder, 3)

    _, (made,) = trained(network())
    assert made.state == "refused"


def test_a_hook_that_follows_a_step_is_not_captured(gpu):
    class Following(vae.VAENetwork):
        def after_step(self, terms):
            self.seen = terms

    def network():
        made = network_of("mlp")
        return Following(made.encoder, made.decoder, 3)

    check(network, "refused")


def test_new_arrays_for_the_parameters_end_a_capture(gpu):
    network = network_of("mlp").to("cuda")
    x = devices.move(np.ones((8, 12), np.float32), "cuda")
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for _ in range(4):
            step(x)
        for tensor in network.parameters():
            tensor.data = np.zeros_like(tensor.data)
        nll, _, _ = step(x)
    np.testing.assert_allclose(nll, 12 * np.log(2), rtol=1e-6)  # zero weights: logits of 0


# ------------------------------------------------------------------------------------- what is kept
def test_a_diverged_loss_changes_nothing_and_is_explained(gpu, rng):
    network = network_of("mlp").to("cuda")
    optimizer, good = optim.Adam(network.parameters()), bits(rng, 8, 12)
    bad = good.copy()
    bad[0, 0] = np.nan
    with train.Step(network, optimizer, settings_of()) as step:
        for x in (good, good, good, good, bad, good, bad):
            before = [devices.to_host(t.data) for t in network.parameters()]
            moments = [devices.to_host(a) for slot in optimizer.state.values() for a in slot]
            steps = optimizer.steps
            if x is good:
                step(x)
                continue
            with pytest.raises(train.DivergedError, match=rf"step {steps + 1} .*op '"):
                step(x)
            assert optimizer.steps == steps
            after = [devices.to_host(t.data) for t in network.parameters()]
            after += [devices.to_host(a) for slot in optimizer.state.values() for a in slot]
            for a, b in zip(after, before + moments, strict=True):
                np.testing.assert_array_equal(a, b)
        assert [one.state for one in step._recorded.values()] == ["ready"]


def test_a_loss_that_diverges_while_it_is_proved_changes_nothing(gpu, rng):
    network = network_of("mlp").to("cuda")
    bad = np.full_like(bits(rng, 8, 12), np.nan)
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for _ in range(2):
            step(bits(rng, 8, 12))
        before = [devices.to_host(t.data) for t in network.parameters()]
        with pytest.raises(train.DivergedError):
            step(bad)
    for tensor, array in zip(network.parameters(), before, strict=True):
        np.testing.assert_array_equal(devices.to_host(tensor.data), array)


def test_a_capture_keeps_nothing_of_the_callers(gpu, rng):
    """The batch may be changed, and what a step returned stays."""
    network, x = network_of("mlp").to("cuda"), bits(rng, 8, 12)
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for _ in range(4):
            nll, kl, _ = step(x)
        kept = nll.copy(), kl.copy()
        step(1 - x)
    np.testing.assert_array_equal(nll, kept[0])
    np.testing.assert_array_equal(kl, kept[1])


def test_a_ready_step_is_one_launch(gpu, rng, monkeypatch):
    """No kernel is started beside the graph, and no op is called."""
    network, x = network_of("mlp").to("cuda"), bits(rng, 8, 12)
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for _ in range(4):
            step(x)
        gpu.launched.clear()
        monkeypatch.setattr(objectives, "elbo", lambda *a, **k: pytest.fail("the loss was called"))
        (graph,) = [one.graph for one in step._recorded.values()]
        before = graph.launches
        step(x)
        assert (graph.launches - before, gpu.launched) == (1, [])


def test_each_shape_of_batch_has_its_own_capture(gpu, rng):
    network = network_of("mlp").to("cuda")
    with train.Step(network, optim.Adam(network.parameters()), settings_of()) as step:
        for i in range(10):
            step(bits(rng, 8 if i % 2 else 5, 12))
        assert [one.state for one in step._recorded.values()] == ["ready", "ready"]


def test_what_comes_with_a_batch_is_captured_too(gpu, rng):
    """A mask and a corrupted x; a log that is made of the losses."""

    def run(captured):
        made, rng = network_of("mlp"), np.random.default_rng(1)
        network = Reporting(made.encoder, made.decoder, 3).to("cuda")
        optimizer, found = optim.Adam(network.parameters()), []
        with train.Step(network, optimizer, settings_of()) as step:
            if not captured:
                step._recording = lambda source: None
            for _ in range(6):
                x, mask, seen = (bits(rng, 8, 12) for _ in range(3))
                found += step(Batch(x, mask=mask, corrupted=seen, total=100))[:2]
                found.append(step.log["nats"])
            states = [one.state for one in step._recorded.values()]
        assert states == (["ready"] if captured else [])
        return [*found, *(devices.to_host(t.data) for t in network.parameters())]

    for a, b in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tensor_of_another_type_is_not_captured(gpu):
    network = network_of("mlp")
    network.extra = Tensor(np.ones(3), requires_grad=True)
    optimizer = optim.Adam(network.to("cuda").parameters())
    x = devices.move(np.ones((8, 12), np.float32), "cuda")
    with train.Step(network, optimizer, settings_of()) as step:
        for _ in range(3):
            step(x)
        assert [one.state for one in step._recorded.values()] == ["refused"]
