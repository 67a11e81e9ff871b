"""likelihoods/perceptual.py: a frozen network's features, in a VAE and alone."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import devices, gradcheck, nn, ops
from tinyvae.likelihoods import FeatureMatching
from tinyvae.models import vae
from tinyvae.tensor import Tensor


class Layers(nn.Module):
    """Features of two layers."""

    def __init__(self, rng, dtype=np.float64):
        self.first = nn.Linear(5, 4, rng=rng, dtype=dtype)
        self.second = nn.Linear(4, 2, rng=rng, dtype=dtype)

    def __call__(self, x):
        first = ops.tanh(self.first(x))
        return [first, ops.tanh(self.second(first))]


@pytest.fixture
def network(rng):
    return Layers(rng)


def test_the_loss_is_half_the_squared_distance_of_all_features(network, rng):
    x, output = rng.random((3, 5)), rng.normal(size=(3, 5))
    picture = 1 / (1 + np.exp(-output))
    expected = 0.25 * 0.5 * ((x - picture) ** 2).sum(axis=1)
    for seen, made in zip(network(x), network(picture), strict=True):
        expected += 0.5 * ((seen.data - made.data) ** 2).sum(axis=1)
    matching = FeatureMatching(network, pixels=0.25)
    np.testing.assert_allclose(matching.nll(output, x).data, expected, rtol=1e-12)
    logits = np.log(x / (1 - x))
    np.testing.assert_allclose(matching.nll(logits, x).data, 0, atol=1e-20)


def test_one_layer_and_values_of_any_size(rng):
    network = nn.Linear(5, 2, rng=rng, dtype=np.float64)
    x, output = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    matching = FeatureMatching(network, unit=False)
    expected = 0.5 * (((x - output) @ network.weight.data) ** 2).sum(axis=1)
    np.testing.assert_allclose(matching.nll(output, x).data, expected, rtol=1e-11)
    np.testing.assert_array_equal(matching.mean(output), output)
    assert matching.limits is None
    matching.check(np.array([[-5.0]]))
    with pytest.raises(ValueError, match="X has 7"):
        FeatureMatching(network).check(np.array([[7.0]]))


def test_gradient_of_the_whole_loss(network, rng):
    matching = FeatureMatching(network, pixels=0.3)
    model = vae.build("mlp", (5,), 2, hidden=(4,), channels=(), activation="tanh", seed=0,
                      likelihood=matching, dtype=np.float64)  # fmt: skip
    x, eps = rng.random((3, 5)), rng.normal(size=(3, 2))

    def loss(*parameters):
        mu, logvar = model.encode(x)
        output = model.decode(ops.reparameterize(mu, logvar, eps))
        return matching.loss(output, x, mu, logvar, beta=1.3, batch=4)

    assert gradcheck(loss, *model.parameters()) < 1e-6


def test_frozen_features_get_no_gradient_and_stay(network, rng):
    matching = FeatureMatching(network)
    assert len(network.parameters()) == 4  # the caller's own stays what it was
    before = {k: v.copy() for k, v in network.state_dict().items()}
    x = rng.random((60, 5))
    model = tv.VAE(2, likelihood=matching, hidden=(8,), epochs=20, learning_rate=1e-2,
                   dtype="float64", random_state=0).fit(x)  # fmt: skip
    assert model.history_[-1]["nll"] < model.history_[0]["nll"]
    for name, tensor in matching.network._all_tensors(""):
        assert tensor.grad is None
        np.testing.assert_array_equal(tensor.data, before[name])
    assert not any(name.startswith("likelihood") for name, _ in model.network_.named_state())
    network.first.weight.data += 1  # nor does the caller's training reach the copy
    np.testing.assert_array_equal(matching.network.first.weight.data, before["first.weight"])


def test_it_is_a_loss_and_says_so(network, rng, tmp_path):
    x = rng.random((20, 5))
    model = tv.VAE(2, likelihood=FeatureMatching(network), hidden=(4,), epochs=1,
                   dtype="float64").fit(x)  # fmt: skip
    assert model.likelihood_.is_loss
    assert model.reconstruct(x).shape == (20, 5)
    assert model.sample(3).shape == (3, 5)
    assert np.isfinite(model.evaluate(x).nll)
    with pytest.raises(ValueError, match="is a plain loss: there is no log-likelihood"):
        model.log_likelihood(x)
    with pytest.raises(ValueError, match="take the mean, there is no sample"):
        model.sample(3, mean=False)
    with pytest.raises(TypeError, match="cannot be written down"):
        model.save(tmp_path / "model")


def test_the_features_on_a_gpu(network, rng, gpu):
    matching = FeatureMatching(network, pixels=0.3)
    x, output = rng.random((3, 5)), rng.normal(size=(3, 5))
    expected = matching.nll(output, x).data
    there = Tensor(devices.move(output, "cuda"), True)
    found = matching.nll(there, devices.move(x, "cuda"))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    ops.sum(found).backward()
    assert there.grad is not None
    np.testing.assert_allclose(matching.nll(output, x).data, expected, rtol=1e-12)  # and back


def test_what_cannot_be_is_refused(network):
    with pytest.raises(TypeError, match="network must be a Module, got function"):
        FeatureMatching(lambda x: x)
    with pytest.raises(ValueError, match="pixels must be finite and >= 0, got -1"):
        FeatureMatching(network, pixels=-1)
    matching, x = FeatureMatching(network), np.ones((2, 5))
    with pytest.raises(ValueError, match="whole rows, without a mask"):
        matching.nll(x, x, mask=x)
    with pytest.raises(ValueError, match="no loss of each value"):
        matching.nll_each(x, x)
