"""models/vae.py: networks of any image size, and their names."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tinyvae import Tensor, gradcheck, nn, ops
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import networks, vae

COMMON = {"hidden": (7,), "channels": (3, 4), "activation": "relu", "seed": 0}


def build(architecture, shape, latent_dim=2, **options):
    return vae.build(architecture, shape, latent_dim, **COMMON | options)


LIKELIHOODS = {1: Bernoulli(), 2: Gaussian("learned")}  # by parameters per value
IMAGES = [(28, 28, 1), (30, 30, 3), (8, 8, 1), (33, 20, 2), (105, 105, 1), (4, 4, 1), (5, 7, 1)]


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_shapes_there_and_back(architecture, shape, outputs, rng):
    net = build(architecture, shape, likelihood=LIKELIHOODS[outputs])
    x = rng.random((3, *shape), np.float32)
    mu, logvar = net.encode(x)
    assert mu.shape == logvar.shape == (3, 2)
    decoded = net.decode(ops.reparameterize(mu, logvar, np.zeros((3, 2), np.float32)))
    assert decoded.shape == (3, *shape[:-1], outputs * shape[-1])
    assert decoded.dtype == np.float32
    decoded.backward(rng.normal(size=decoded.shape))
    for name, tensor in net.named_parameters():
        used = "logvar" not in name  # with eps = 0 the variance has no effect
        assert (tensor.grad is not None) == used or not np.any(tensor.grad), name


@pytest.mark.parametrize("shape", [(64,), (6, 5), (2, 3, 4, 1)])
def test_mlp_takes_rows_of_any_shape(shape, rng):
    net = build("mlp", shape, likelihood=LIKELIHOODS[2])
    mu, _ = net.encode(rng.random((3, *shape), np.float32))
    assert net.decode(mu).shape == (3, *shape[:-1], 2 * shape[-1])


@pytest.mark.parametrize("hidden", [(), (5,), (9, 5)])
def test_mlp_sizes(hidden):
    net = build("mlp", (2, 3), latent_dim=4, hidden=hidden)
    shapes = [tensor.shape for name, tensor in net.named_parameters() if "weight" in name]
    down = [6, *hidden]
    expected = [*itertools.pairwise(down), (down[-1], 4), (down[-1], 4)]
    up = [4, *hidden[::-1], 6]
    expected += itertools.pairwise(up)
    assert shapes == expected


def test_conv_sizes():
    """28 -> 14 -> 7 and back; the dense layers between."""
    shapes = {n: t.shape for n, t in build("conv", (28, 28, 1)).named_parameters()}
    assert [s for n, s in shapes.items() if n.endswith("weight")] == [
        (4, 4, 1, 3), (4, 4, 3, 4), (7 * 7 * 4, 7), (7, 2), (7, 2),
        (2, 7), (7, 7 * 7 * 4), (4, 4, 4, 3), (4, 4, 3, 1),
    ]  # fmt: skip


def test_parameters_have_names():
    assert [name for name, _ in build("mlp", (6,)).named_parameters()] == [
        "encoder.body.layers.1.weight", "encoder.body.layers.1.bias",
        "encoder.mu.weight", "encoder.mu.bias", "encoder.logvar.weight", "encoder.logvar.bias",
        "decoder.layers.0.weight", "decoder.layers.0.bias",
        "decoder.layers.2.weight", "decoder.layers.2.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_the_output_is_raw(architecture, rng):
    """No activation after the last layer: parameters of p(x | z) of either sign."""
    net, z = build(architecture, (8, 8, 1)), rng.normal(size=(50, 2)).astype(np.float32)
    *_, (name, bias) = net.decoder.named_parameters()
    assert name.endswith("bias")
    for shift in (-5, 5):
        bias.data[:] = shift
        np.testing.assert_array_equal(np.sign(net.decode(z).data), np.sign(shift))


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_seed_decides_the_weights(architecture):
    one, same, other = (build(architecture, (8, 8, 1), seed=seed) for seed in (1, 1, 2))
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(array, same.state_dict()[name])
        assert not np.array_equal(array, other.state_dict()[name]), name


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_training_starts_near_zero(architecture, rng):
    """Neither the KL nor the logits explode at the first step of training."""
    net = build(architecture, (28, 28, 1), latent_dim=20, hidden=(50,))
    mu, logvar = net.encode(rng.random((9, 28, 28, 1), np.float32))
    assert ops.gaussian_kl(mu, logvar).data.max() < 5
    assert np.abs(net.decode(mu).data).max() < 3


@pytest.mark.parametrize("name", nn.ACTIVATIONS)
def test_every_activation(name, rng):
    net = build("mlp", (4,), activation=name, dtype=np.float64)
    x = rng.normal(size=(3, 4))
    assert gradcheck(lambda *_: net.decode(net.encode(x)[0]), *net.decoder.parameters()) < 1e-6


def test_an_activation_of_ones_own():
    net = build("mlp", (4,), activation=lambda x: x * x, dtype=np.float64)
    first, second = (layer for layer in net.decoder.layers[:3] if isinstance(layer, nn.Linear))
    z = np.ones((1, 2))
    inner = (z @ first.weight.data + first.bias.data) ** 2
    expected = inner @ second.weight.data + second.bias.data
    np.testing.assert_allclose(net.decode(z).data, expected, rtol=1e-12)


def test_dtype_is_that_of_all_parameters():
    for dtype in (np.float32, np.float64):
        net = build("conv", (8, 8, 1), dtype=dtype)
        assert {tensor.dtype for tensor in net.parameters()} == {np.dtype(dtype)}


def test_networks_of_ones_own_fit_in():
    weight = Tensor(np.ones((4, 2)), True)
    net = vae.VAENetwork(lambda x: (x @ weight, x @ weight), lambda z: z @ weight.data.T, 2)
    mu, logvar = net.encode(np.ones((3, 4)))
    assert net.decode(mu).shape == (3, 4)
    assert logvar.shape == (3, 2)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="unknown architecture 'conf': did you mean 'conv'"):
        build("conf", (8, 8, 1))
    with pytest.raises(ValueError, match="unknown activation 'rlu': did you mean 'relu'"):
        build("mlp", (4,), activation="rlu")
    with pytest.raises(ValueError, match=r"needs images \(N, H, W, C\), got rows of shape \(64,\)"):
        build("conv", (64,))
    with pytest.raises(ValueError, match="an image of 3x9 cannot be halved 2 times"):
        build("conv", (3, 9, 1))
    with pytest.raises(ValueError, match="must be a whole number >= 1, got 0"):
        build("mlp", (4,), latent_dim=0)


def test_the_number_of_parameters_of_the_well_known_model():
    """784-400-20-400-784, as in PyTorch's example: 652,824 of them."""
    net = build("mlp", (784,), latent_dim=20, hidden=(400,))
    assert sum(math.prod(tensor.shape) for tensor in net.parameters()) == 652_824
