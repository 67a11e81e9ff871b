"""nn.py: modules, their parameters, and the layers."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae import Tensor, nn, ops
from tinyvae.checking import gradcheck


class Block(nn.Module):
    """Parameters in all the places where they are looked for."""

    def __init__(self, rng):
        self.first = nn.Linear(2, 3, rng=rng)
        self.scale = Tensor(np.ones(3, np.float32), requires_grad=True)
        self.parts = [nn.Linear(3, 3, bias=False, rng=rng), ops.relu, nn.Linear(3, 1, rng=rng)]
        self.pair = (Tensor(np.ones(1, np.float32), True), Tensor(np.ones(1, np.float32)))
        self.constant = Tensor(np.ones(3, np.float32))
        self.number = 7


NAMES = ["first.weight", "first.bias", "scale", "parts.0.weight", "parts.2.weight", "parts.2.bias",
         "pair.0"]  # fmt: skip


def test_parameters_have_dotted_names_in_order(rng):
    block = Block(rng)
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert block.parameters() == [tensor for _, tensor in block.named_parameters()]
    assert block.parameters()[2] is block.scale
    assert list(block.state_dict()) == NAMES


class Averaging(nn.Module):
    def __init__(self):
        self.weight = Tensor(np.ones(2, np.float32), True)
        self.counts = nn.Buffer(np.zeros(3, np.float32))
        self.parts = [nn.Linear(2, 2), nn.Buffer(np.arange(2))]
        self.same = self.counts


def test_buffers_are_saved_and_converted_but_not_trained():
    one, other = Averaging(), Averaging()
    assert [name for name, _ in one.named_buffers()] == ["counts", "parts.1"]
    assert len(one.parameters()) == 3
    one.counts.data[...] = [1, 2, 3]
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(other.counts.data, [1, 2, 3])
    assert not np.shares_memory(other.counts.data, one.counts.data)
    state = one.state_dict()
    del state["counts"]
    with pytest.raises(ValueError, match="the state lacks counts"):
        other.load_state_dict(state)
    assert one.astype(np.float64).counts.dtype == np.float64
    assert np.issubdtype(one.parts[1].dtype, np.integer)


def test_a_layer_used_twice_is_listed_once(rng):
    """Else an optimizer would make two steps on it in one."""
    layer = nn.Linear(3, 3, rng=rng)
    model = nn.Sequential(layer, ops.relu, layer)
    assert len(model.parameters()) == 2
    assert list(model.state_dict()) == ["layers.0.weight", "layers.0.bias"]


def test_zero_grad_forgets_all(rng):
    block = Block(rng)
    for tensor in block.parameters():
        tensor.grad = np.ones_like(tensor.data)
    block.zero_grad()
    assert all(tensor.grad is None for tensor in block.parameters())


def test_astype_converts_all(rng):
    block = Block(rng)
    weight = block.first.weight.data
    assert block.astype(np.float64) is block
    assert {tensor.dtype for tensor in block.parameters()} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(block.first.weight.data, weight)


def test_state_goes_from_one_network_to_another(rng):
    one, other = Block(rng), Block(rng)
    assert not np.array_equal(one.first.weight.data, other.first.weight.data)
    state = one.state_dict()
    other.load_state_dict(state)
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
        assert not np.shares_memory(array, state[name])


def test_state_is_converted_to_the_networks_dtype(rng):
    one, other = nn.Linear(2, 3, rng=rng, dtype=np.float64), nn.Linear(2, 3, rng=rng)
    other.load_state_dict(one.state_dict())
    assert other.weight.dtype == np.float32
    np.testing.assert_allclose(other.weight.data, one.weight.data, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("scale"), "the state lacks scale"),
        (lambda state: state.update(extra=np.ones(1)), "the network has no extra"),
        (lambda state: state.update(scale=np.ones(4)), r"scale has shape \(4,\), expected \(3,\)"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message, rng):
    block = Block(rng)
    state = {name: array + 1 for name, array in block.state_dict().items()}
    before = {name: array.copy() for name, array in block.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        block.load_state_dict(state)
    for name, array in block.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_module_without_a_call_says_so():
    with pytest.raises(NotImplementedError, match="Module defines no __call__"):
        nn.Module()(1)


# ------------------------------------------------------------------------------------------ layers
def test_linear(rng):
    layer, x = nn.Linear(3, 2, rng=rng), rng.normal(size=(5, 3)).astype(np.float32)
    assert (layer.weight.shape, layer.bias.shape) == ((3, 2), (2,))
    np.testing.assert_allclose(
        layer(x).data, x @ layer.weight.data + layer.bias.data, rtol=1e-5, atol=1e-6
    )
    plain = nn.Linear(3, 2, bias=False, rng=rng)
    assert [name for name, _ in plain.named_parameters()] == ["weight"]
    np.testing.assert_allclose(plain(x).data, x @ plain.weight.data, rtol=1e-5, atol=1e-6)


def test_convolutions_pass_on_their_options(rng):
    options = {"stride": 2, "padding": 1, "dilation": 2}
    layer = nn.Conv2d(3, 5, (3, 2), **options, rng=rng)
    assert (layer.weight.shape, layer.bias.shape) == ((3, 2, 3, 5), (5,))
    x = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
    expected = ops.conv2d(x, layer.weight, layer.bias, **options)
    np.testing.assert_array_equal(layer(x).data, expected.data)
    up = nn.ConvTranspose2d(5, 3, (3, 2), **options, output_size=(9, 8), rng=rng)
    assert up.weight.shape == (3, 2, 5, 3)
    assert up(layer(x)).shape == x.shape
    assert nn.ConvTranspose2d(5, 3, 4, stride=2, padding=1)(np.ones((1, 3, 4, 5))).shape[1:3] == (
        6,
        8,
    )


def test_sequential_applies_layers_and_functions_in_order(rng):
    layer = nn.Linear(2, 3, rng=rng)
    model = nn.Sequential(layer, ops.relu, lambda x: x * 2.0, nn.Reshape(3, 1))
    x = rng.normal(size=(4, 2)).astype(np.float32)
    expected = 2 * np.maximum(layer(x).data, 0)
    np.testing.assert_array_equal(model(x).data, expected.reshape(4, 3, 1))


def test_reshape_keeps_the_batch_axis():
    x = np.arange(24.0).reshape(2, 3, 4)
    assert nn.Reshape(-1)(x).shape == (2, 12)
    assert nn.Reshape(4, 3)(Tensor(x)).shape == (2, 4, 3)


def test_an_empty_batch_passes_through_every_layer(rng):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=rng), ops.relu, nn.ConvTranspose2d(2, 1, 3, rng=rng),
        nn.Reshape(25), nn.Linear(25, 4, rng=rng),
    )  # fmt: skip
    out = model(np.ones((0, 5, 5, 1), np.float32))
    out.backward(np.ones((0, 4)))
    assert out.shape == (0, 4)
    assert all((tensor.grad == 0).all() for tensor in model.parameters())


@pytest.mark.parametrize("make", [nn.Linear, lambda i, o: nn.Conv2d(i, o, 3)])
@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 1), (1, 2.5)])
def test_sizes_must_be_whole_and_positive(make, sizes):
    with pytest.raises(ValueError, match=r"must be a whole number >= 1, got"):
        make(*sizes)


def test_kernel_and_stride_must_be_positive():
    with pytest.raises(ValueError, match="kernel must be a whole number >= 1, got 0"):
        nn.Conv2d(1, 1, (3, 0))
    with pytest.raises(ValueError, match="stride must be a whole number >= 1, got 0"):
        nn.ConvTranspose2d(1, 1, 3, stride=0)


# ------------------------------------------------------------------------------------ initialisers
def test_initialisers_have_the_variance_of_their_paper(rng):
    shape, fan_in, fan_out = (400, 300), 400, 300
    expected = {
        nn.fan_in_uniform: 1 / (3 * fan_in),
        nn.glorot_uniform: 2 / (fan_in + fan_out),
        nn.he_normal: 2 / fan_in,
        nn.zeros: 0.0,
    }
    for initialiser, variance in expected.items():
        values = initialiser(rng, shape, fan_in, fan_out)
        assert values.shape == shape
        assert abs(values.mean()) < 0.001
        np.testing.assert_allclose(values.var(), variance, rtol=0.02)


def test_the_generator_decides_the_first_weights():
    make = [lambda rng: nn.Linear(3, 4, rng=rng), lambda rng: nn.Conv2d(3, 4, 2, rng=rng)]
    for layer in make:
        one, same, other = (layer(np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.weight.data, same.weight.data)
        np.testing.assert_array_equal(one.bias.data, same.bias.data)
        assert not np.array_equal(one.weight.data, other.weight.data)


def test_default_weights_are_within_one_over_root_fan_in(rng):
    bounds = {
        nn.Linear(100, 7, rng=rng): 1 / 10,
        nn.Conv2d(4, 7, 5, rng=rng): 1 / 10,
        nn.ConvTranspose2d(7, 4, 5, rng=rng): 1 / 10,  # counted over its output channels
    }
    for layer, bound in bounds.items():
        for tensor in (layer.weight, layer.bias):
            assert tensor.dtype == np.float32
            assert np.abs(tensor.data).max() <= bound
        assert np.abs(layer.weight.data).max() > 0.95 * bound
    custom = nn.Linear(3, 4, initialiser=nn.zeros, rng=rng, dtype=np.float64)
    assert custom.weight.dtype == np.float64
    assert (custom.weight.data == 0).all()


# --------------------------------------------------------------------------------------- sequences
def test_embedding_looks_up_rows(rng):
    table = nn.Embedding(5, 3, rng=rng)
    index = np.array([[0, 4], [4, 4]])
    np.testing.assert_array_equal(table(index).data, table.weight.data[index])
    np.testing.assert_allclose(nn.Embedding(100, 100, rng=rng).weight.data.std(), 1, rtol=0.02)


def test_layer_norm_starts_as_plain_normalisation(rng):
    x = rng.normal(3, 2, (4, 50)).astype(np.float32)
    out = nn.LayerNorm(50)(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.data.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(out.data.std(axis=1), 1, rtol=1e-4)


def test_gru_is_the_op_and_starts_from_zero(rng):
    layer, x = nn.GRU(3, 4, rng=rng), rng.normal(size=(2, 5, 3)).astype(np.float32)
    weights = layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh
    zero = np.zeros((2, 4), np.float32)
    np.testing.assert_array_equal(layer(x).data, ops.gru(x, zero, *weights).data)
    first = layer(x[:, :2])
    np.testing.assert_allclose(
        layer(x[:, 2:], state=first[:, -1]).data, layer(x).data[:, 2:], rtol=1e-5, atol=1e-6
    )


def sequence_layers(rng):
    options = {"rng": rng, "dtype": np.float64}
    return {
        "gru": nn.GRU(4, 4, **options),
        "attention": nn.CausalSelfAttention(4, 2, **options),
        "transformer": nn.TransformerBlock(4, 2, **options),
    }


@pytest.mark.parametrize("name", ["gru", "attention", "transformer"])
def test_a_later_step_changes_no_earlier_output(name, rng):
    layer, x = sequence_layers(rng)[name], rng.normal(size=(2, 6, 4))
    before = layer(x).data
    x[:, 3] = rng.normal(size=4)
    after = layer(x).data
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert (np.abs(after[:, 3:] - before[:, 3:]).max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize("name", ["gru", "attention", "transformer"])
def test_hidden_steps_have_no_influence(name, rng):
    """Padding at the front, where causality alone would not hide it."""
    layer, x = sequence_layers(rng)[name], rng.normal(size=(2, 6, 4))
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    leaf = Tensor(x, True)
    out = layer(leaf, mask)
    np.testing.assert_allclose(out.data[:1, 2:], layer(x[:1, 2:]).data, rtol=1e-10)
    np.testing.assert_allclose(out.data[1:, :3], layer(x[1:, :3]).data, rtol=1e-10)
    (out * mask[..., None]).backward(rng.normal(size=out.shape))
    assert (leaf.grad[mask == 0] == 0).all()
    assert (leaf.grad[mask == 1] != 0).all()


@pytest.mark.parametrize("name", ["gru", "attention", "transformer"])
def test_gradients_of_sequence_layers(name, rng):
    layer, x = sequence_layers(rng)[name], rng.normal(size=(2, 5, 4))
    mask = np.arange(5) < np.array([[5], [3]])
    gradcheck(lambda x, *_: layer(x, mask), x, *layer.parameters(), rtol=1e-6)


def test_attention_of_one_head_is_its_formula(rng):
    layer, x = nn.CausalSelfAttention(3, 1, rng=rng, dtype=np.float64), rng.normal(size=(1, 4, 3))
    q, k, v = np.split(x[0] @ layer.qkv.weight.data + layer.qkv.bias.data, 3, axis=1)
    rows = []
    for t in range(4):
        weights = np.exp(k[: t + 1] @ q[t] / np.sqrt(3))
        rows.append(weights @ v[: t + 1] / weights.sum())
    expected = np.stack(rows) @ layer.out.weight.data + layer.out.bias.data
    np.testing.assert_allclose(layer(x).data[0], expected, rtol=1e-12)


def test_heads_must_share_the_features():
    with pytest.raises(ValueError, match="5 features cannot be shared by 2 heads"):
        nn.CausalSelfAttention(5, 2)


def test_word_dropout_hides_the_steps_that_the_noise_says(rng):
    u = np.array([[0.1, 0.9, 0.29], [0.3, 0.5, 0.0]])
    hidden = np.array([[1, 0, 1], [0, 0, 1]], bool)
    words = np.arange(1, 7).reshape(2, 3)
    np.testing.assert_array_equal(
        nn.word_dropout(words, u, rate=0.3, unknown=9), np.where(hidden, 9, words)
    )
    values = rng.normal(size=(2, 3, 2)).astype(np.float32)
    dropped = nn.word_dropout(values, u, rate=0.3, unknown=9)
    np.testing.assert_array_equal(dropped, np.where(hidden[..., None], 0, values))
    assert dropped.dtype == np.float32
    np.testing.assert_array_equal(nn.word_dropout(words, u, rate=0.0), words)
    assert (nn.word_dropout(words, u, rate=1.0, unknown=9) == 9).all()


def test_word_dropout_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
        nn.word_dropout(np.ones((2, 3)), np.ones((2, 3)), rate=1.5)
    with pytest.raises(ValueError, match=r"u has shape \(2,\), expected \(2, 3\)"):
        nn.word_dropout(np.ones((2, 3)), np.ones(2), rate=0.5)


# ------------------------------------------------------------------------------------------- masks
def test_a_masked_layer_does_not_see_what_is_masked(rng):
    mask = np.array([[1, 0], [1, 1], [0, 1]])
    layer = nn.MaskedLinear(mask, rng=rng, dtype=np.float64)
    x = rng.normal(size=(4, 3))
    expected = x @ (layer.weight.data * mask) + layer.bias.data
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-12)
    ops.sum(layer(x)).backward()
    assert (layer.weight.grad[mask == 0] == 0).all()
    assert list(layer.state_dict()) == ["weight", "bias"]
    fused, plain = nn.Sequential(layer, ops.tanh)(x), ops.tanh(layer(x))
    np.testing.assert_allclose(fused.data, plain.data, rtol=1e-12)


@pytest.mark.parametrize("features", [None, 2])
@pytest.mark.parametrize("hidden", [(7,), (40,), (9, 11)])
@pytest.mark.parametrize("D", [1, 2, 5])
def test_made_sees_the_dimensions_before_alone(D, hidden, features, rng):
    made = nn.MADE(D, hidden, outputs=3, features=features, activation="tanh", rng=rng,
                   dtype=np.float64)  # fmt: skip
    for tensor in made.parameters():
        tensor.data = rng.standard_normal(tensor.shape)
    x = rng.normal(size=(1, D))
    context = None if features is None else rng.normal(size=(1, features))
    before = np.stack([out.data[0] for out in made(x, context)])
    assert before.shape == (3, D)
    for j in range(D):
        moved = x.copy()
        moved[0, j] += 1
        changed = np.stack([out.data[0] for out in made(moved, context)]) != before
        assert not changed[:, : j + 1].any()
        assert changed[:, j + 1 :].all()  # with enough units all that may depend on x_j does
    if features:
        changed = np.stack([out.data[0] for out in made(x, context + 1)]) != before
        assert changed.all()


def test_made_starts_at_zero_and_names_what_it_misses(rng):
    made = nn.MADE(3, features=2, rng=rng)
    for out in made(np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)):
        np.testing.assert_array_equal(out.data, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="needs a context"):
        made(np.ones((4, 3)))
    with pytest.raises(ValueError, match="hidden must name the size of one layer at least"):
        nn.MADE(3, ())
    with pytest.raises(ValueError, match="inputs must be a whole number >= 1, got 0"):
        nn.MADE(0)


# ---------------------------------------------------------------------------------------- frozen
def test_a_frozen_module_hands_on_the_gradient_and_takes_none(rng):
    before, after = (nn.Linear(3, 3, rng=rng, dtype=np.float64) for _ in range(2))
    x = rng.normal(size=(5, 3))
    with nn.frozen(after):
        out = after(before(x))
    ops.sum(out).backward()  # outside of the block, where all are parameters again
    assert after.weight.grad is None
    assert after.bias.grad is None
    np.testing.assert_allclose(before.weight.grad, x.T @ (np.ones((5, 3)) @ after.weight.data.T))
    assert len(after.parameters()) == 2


def test_frozen_ends_with_an_error(rng):
    layer = nn.Linear(2, 1, rng=rng)
    with pytest.raises(ValueError), nn.frozen(layer):  # noqa: PT011
        layer(np.ones((2, 3), np.float32))
    assert len(layer.parameters()) == 2


def test_what_was_frozen_before_stays_so(rng):
    layer = nn.Linear(2, 1, rng=rng)
    with nn.frozen(layer):
        with nn.frozen(layer):
            pass
        assert layer.parameters() == []
    assert len(layer.parameters()) == 2
