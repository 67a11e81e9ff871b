"""models/ae.py: reconstruction alone; linear, it finds what PCA finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import subspace_angles

import tinyvae as tv
from tinyvae import gradcheck, likelihoods, nn
from tinyvae.batches import Batch, Rows
from tinyvae.models import Parts
from tinyvae.models.ae import AE
from tinyvae.ops.noise import Draw

B, Z = 6, 3
SHAPES = {"mlp": (5,), "conv": (5, 4, 1)}


def build(architecture="mlp", likelihood=None, **options):
    usual = {"hidden": (7,), "channels": (2,), "activation": "tanh"} | options
    rng = np.random.default_rng(0)
    likelihood = likelihood or likelihoods.Bernoulli()
    parts = Parts(
        SHAPES[architecture], Z, likelihood, architecture, rng=rng, dtype=np.float64, **usual
    )
    return AE().build(parts)


def draw(n=B):
    return Draw(n, seed=0, dtype=np.float64)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("architecture", SHAPES)
def test_gradient_of_the_whole_loss(architecture, likelihood, rng):
    net = build(architecture, likelihoods.resolve(likelihood, "learned"))
    rows = Batch((rng.random((B, *SHAPES[architecture])) < 0.5).astype(float))
    loss = lambda *_: net.loss(rows, draw(), beta=1.0, rows=B + 1).loss  # noqa: E731
    assert gradcheck(loss, *net.parameters()) < 1e-6


def test_the_loss_is_the_reconstructions(rng):
    """No noise, no KL, whatever beta is; the code is exact."""
    net, rows = build(), Batch((rng.random((B, 5)) < 0.5).astype(float))
    output = net.reconstruct(rows)
    nll = (np.logaddexp(0, output) - output * rows.x).sum(axis=1)
    for beta in (0.0, 1.0, 7.0):
        terms = net.loss(rows, draw(), beta=beta, rows=B)
        np.testing.assert_allclose(terms.nll, nll, rtol=1e-12)
        assert terms.loss.item() == pytest.approx(nll.mean(), rel=1e-12)
        assert not terms.kl.any()
    z, logvar = (t.data for t in net.encode(rows.x))
    np.testing.assert_array_equal(net.decode(z).data, output)
    np.testing.assert_array_equal(z + np.exp(logvar / 2), z)


def test_a_linear_one_spans_the_subspace_of_pca(rng):
    """Baldi and Hornik 1989: the same subspace, and the same error, in other coordinates."""
    N, D = 400, 8
    x = rng.normal(size=(N, Z)) * [3, 2, 1.5] @ rng.normal(size=(Z, D))
    x = x + 0.3 * rng.normal(size=(N, D)) + rng.normal(size=D)
    model = tv.VAE(
        Z, model="ae", hidden=(), likelihood="gaussian", epochs=1500, batch_size=N, random_state=0,
        learning_rate="cosine:0.05:0.0001:1500", dtype="float64",
    ).fit(x)  # fmt: skip
    _, _, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    weight = model.network_.decoder.layers[0].weight.data  # (Z, D)
    assert subspace_angles(weight.T, directions[:Z].T).max() < 1e-2
    projected = (x - x.mean(axis=0)) @ directions[:Z].T @ directions[:Z] + x.mean(axis=0)
    error, best = (((x - y) ** 2).sum(axis=1).mean() for y in (model.reconstruct(x), projected))
    assert best <= error < 1.0001 * best


def test_samples_look_like_the_codes(rng):
    """Their Gaussian has the codes' mean and covariance; it is saved with the model."""
    net = build()
    rows = Rows((rng.random((700, 5)) < 0.5).astype(float), (5,), dtype=np.float64)
    net.after_epoch(rows)
    codes = net.encode(rows.array)[0].data
    np.testing.assert_allclose(net.mean.data, codes.mean(axis=0), rtol=1e-6)
    covariance = net.factor.data @ net.factor.data.T
    np.testing.assert_allclose(covariance, np.cov(codes.T, bias=True), rtol=1e-4, atol=1e-8)
    z = net.mean.data + draw(50).normal(Z) @ net.factor.data.T
    np.testing.assert_array_equal(net.generate(50, draw(50)), net.decode(z).data)


class Encoder(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(64, 3)

    def __call__(self, x):
        return self.layer(x)


def test_as_an_estimator(tmp_path):
    pytest.importorskip("sklearn")
    digits = tv.data.load("digits")
    options = {"hidden": (32,), "likelihood": "bce", "random_state": 0, "learning_rate": 5e-3}
    model = tv.VAE(4, model="ae", epochs=10, **options).fit(digits.train)
    assert model.history_[-1]["nll"] < model.history_[0]["nll"] - 5
    vae = tv.VAE(4, epochs=10, **options).fit(digits.train)
    assert model.evaluate(digits.test).nll < vae.evaluate(digits.test).nll
    assert model.evaluate(digits.test).kl == 0
    assert model.is_loss
    assert not tv.VAE(4).is_loss
    model.save(tmp_path / "m")
    again = tv.load(tmp_path / "m")
    np.testing.assert_array_equal(again.sample(5, 0), model.sample(5, 0))
    assert model.sample(500, 0).mean() == pytest.approx(digits.train.mean(), rel=0.1)
    assert model.interpolate(*digits.test[:2], 3).shape == (3, 8, 8, 1)
    assert model.traverse(steps=3).shape == (4, 3, 8, 8, 1)
    with pytest.raises(ValueError, match="defines no log-likelihood"):
        model.log_likelihood(digits.test)
    for name in ("prior", "flow"):
        with pytest.raises(ValueError, match=f"model='ae' does not take {name}"):
            tv.VAE(4, model="ae", **{name: "mixture:3" if name == "prior" else "planar"}).fit(
                digits.train
            )
    own = tv.VAE(3, model="ae", encoder=Encoder(), decoder=nn.Linear(3, 64), epochs=1, **options)
    assert own.fit(digits.train.reshape(-1, 64)).sample(2).shape == (2, 64)


def test_a_denoising_one_sees_damaged_rows():
    pytest.importorskip("sklearn")
    digits = tv.data.load("digits")
    options = {"hidden": (32,), "likelihood": "bce", "random_state": 0, "epochs": 2}
    plain, denoising = (
        tv.VAE(4, model="ae", corruption=corruption, **options).fit(digits.train)
        for corruption in (None, "mask:0.3")
    )
    assert not np.array_equal(plain.transform(digits.test), denoising.transform(digits.test))
