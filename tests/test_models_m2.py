"""models/m2.py: labels summed out as by brute force, and few labels with many rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

import tinyvae as tv
from tinyvae import gradcheck, likelihoods, ops
from tinyvae.batches import Batch, Rows
from tinyvae.models import Parts, vae
from tinyvae.models.m2 import M2
from tinyvae.ops.noise import Draw

B, Z, C = 7, 3, 4
SHAPES = {"mlp": (5,), "conv": (5, 4, 1)}
BOTH = pytest.mark.parametrize("architecture", SHAPES)
LABELS = {
    "some": np.array([2, -1, -1, 0, -1, 3, 3]),
    "all": np.array([2, 1, 1, 0, 0, 3, 3]),
    "none": np.full(B, -1),
    "not given": None,
}


def build(architecture="mlp", alpha=2.0, **options):
    usual = {
        "hidden": (6,), "channels": (2,), "activation": "tanh", "classes": C, "condition": C,
        "rng": np.random.default_rng(0), "dtype": np.float64,
    }  # fmt: skip
    parts = Parts(SHAPES[architecture], Z, likelihoods.Bernoulli(), architecture, **usual | options)
    return M2(alpha).build(parts)


def batch(rng, labels="some", architecture="mlp"):
    return Batch((rng.random((B, *SHAPES[architecture])) < 0.5).astype(float), LABELS[labels])


def draw(n=B, **options):
    return Draw(n, seed=0, dtype=np.float64, **options)


def bound(net, x, y, eps):
    """nll and KL(q(z | x, y) || p(z)) of one label for all rows, by the plain VAE's formulas."""
    code = np.eye(C)[np.full(len(x), y)]
    mu, logvar = net.encoder(x, code)
    nll = net.likelihood.nll(net.decoder(ops.reparameterize(mu, logvar, eps), code), x).data
    return nll, 0.5 * (mu.data**2 + np.exp(logvar.data) - 1 - logvar.data).sum(axis=1)


@BOTH
@pytest.mark.parametrize("labels", LABELS)
def test_gradient_of_the_whole_loss(architecture, labels, rng):
    net, rows = build(architecture), batch(rng, labels, architecture)
    loss = lambda *_: net.loss(rows, draw(), beta=0.7, rows=B + 1).loss  # noqa: E731
    assert gradcheck(loss, *net.parameters()) < 1e-6


@BOTH
@pytest.mark.parametrize("hidden", [(6,), (6, 4), ()])
def test_every_label_at_once_is_one_after_the_other(architecture, hidden, rng):
    """What the first layer makes of x is computed once for all labels."""
    net, rows = build(architecture, hidden=hidden), batch(rng, "none", architecture)
    _, *found = net.posterior(rows)
    for y in range(C):
        each = net.encoder(rows.x, np.eye(C)[np.full(B, y)])
        for at_once, alone in zip(found, each, strict=True):
            np.testing.assert_allclose(at_once.data[y::C], alone.data, rtol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_labels_are_summed_out_as_by_brute_force(beta, rng):
    """U = sum_y q(y | x) (L(x, y) - log q(y | x)), with p(y) = 1 / C in L."""
    net, rows = build(), batch(rng, "none")
    eps, log_q = draw().normal(Z), log_softmax(net.classifier(rows.x).data, axis=1)
    nll, kl = np.zeros(B), np.zeros(B)
    for y in range(C):
        q, (one, other) = np.exp(log_q[:, y]), bound(net, rows.x, y, eps)
        nll += q * one
        kl += q * (other + log_q[:, y] - np.log(1 / C))
    found = net.loss(rows, draw(), beta=beta, rows=B)
    np.testing.assert_allclose(found.nll, nll, rtol=1e-12)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-12)
    np.testing.assert_allclose(found.loss.item(), (nll + beta * kl).mean(), rtol=1e-12)
    terms = net.evaluation(rows, draw())
    np.testing.assert_allclose(terms.elbo, -(nll + kl), rtol=1e-12)


@pytest.mark.parametrize("labels", ["all", "some"])
def test_a_known_label_gives_its_bound_and_the_classifiers_loss(labels, rng):
    net, rows = build(alpha=3.0), batch(rng, labels)
    eps, log_q = draw().normal(Z), log_softmax(net.classifier(rows.x).data, axis=1)
    found = net.loss(rows, draw(), beta=1.0, rows=B)
    for i in np.flatnonzero(rows.y >= 0):
        nll, kl = (t[i] for t in bound(net, rows.x, rows.y[i], eps))
        assert found.nll[i] == pytest.approx(nll, rel=1e-12)
        assert found.kl[i] == pytest.approx(kl + np.log(C), rel=1e-12)  # -log p(y)
        loss = nll + kl + np.log(C) - 3.0 * log_q[i, rows.y[i]]
        assert -found.elbo[i] == pytest.approx(loss, rel=1e-12)
    assert found.loss.item() == pytest.approx(-found.elbo.mean(), rel=1e-12)


def test_a_label_that_tells_nothing_costs_nothing(rng):
    """Networks that ignore y, and a classifier that says nothing: the plain VAE's bound."""
    net, rows = build(), batch(rng, "not given")
    plain = vae.VAENetwork(
        lambda x: net.encoder(x, np.zeros((len(x), C))),
        lambda z: net.decoder(z, np.zeros((z.shape[0], C))), Z,
    )  # fmt: skip
    for layer in (net.encoder.body.dense.layers[0], net.decoder.dense.layers[0]):
        layer.weight.data[-C:] = 0
    for tensor in net.classifier.layers[-1].parameters():
        tensor.data[:] = 0
    found, expected = net.evaluation(rows, draw()), plain.evaluation(rows, draw())
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-12)
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-12)
    weights = [model.log_weights(rows, draw()) for model in (net, plain)]
    np.testing.assert_allclose(*weights, rtol=1e-12)
    net.classifier.layers[-1].bias.data[2] = 500.0  # a class of which it is certain, for nothing
    found = net.evaluation(rows, draw())
    np.testing.assert_allclose(found.kl, expected.kl + np.log(C), rtol=1e-12)


def test_log_weights_by_the_densities_themselves(rng):
    net, rows = build(), batch(rng)
    eps, log_p = draw().normal(Z), np.zeros((B, C))
    for y in range(C):
        mu, logvar = (t.data for t in net.encoder(rows.x, np.eye(C)[np.full(B, y)]))
        z = mu + np.exp(logvar / 2) * eps
        ratio = (norm.logpdf(z) - norm.logpdf(z, mu, np.exp(logvar / 2))).sum(axis=1)
        log_p[:, y] = ratio - bound(net, rows.x, y, eps)[0] - np.log(C)
    expected = logsumexp(log_p, axis=1)
    np.testing.assert_allclose(net.log_weights(rows, draw()), expected, rtol=1e-12)
    found = net.log_weights(rows, draw(), net.posterior(rows))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("labels", LABELS)
def test_a_batch_in_shards_is_the_whole(labels, rng):
    net, rows = build(), batch(rng, labels)
    whole = net.loss(rows, draw(), beta=1.0, rows=B)
    parts = [
        net.loss(rows[part], draw(stop - start, first=start), beta=1.0, rows=B)
        for start, stop in ((0, 2), (2, 6), (6, 7))
        for part in (slice(start, stop),)
    ]
    for name in ("nll", "kl", "elbo"):
        found = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(found, getattr(whole, name), rtol=1e-12)
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-12)


def test_codes_and_samples_of_known_and_unknown_labels(rng):
    net, rows = build(), batch(rng)
    likeliest = net.classify(rows.x).data.argmax(axis=1)
    y = np.where(rows.y < 0, likeliest, rows.y)
    for given in (rows.y, y):
        mu, _ = net.encode(rows.x, given)
        np.testing.assert_array_equal(mu.data, net.encoder(rows.x, np.eye(C)[y])[0].data)
    np.testing.assert_array_equal(net.encode(rows.x)[0].data, net.encode(rows.x, likeliest)[0].data)
    np.testing.assert_array_equal(net.reconstruct(rows), net.decode(mu, y).data)
    many = net.generate(400, draw(400))
    z, u = (noise := draw(400)).normal(Z), noise.uniform()
    np.testing.assert_array_equal(many, net.decode(z, (u * C).astype(int)).data)
    only = net.generate(400, draw(400), np.where(u < 0.5, 2, -1))
    assert (only == many).all(axis=1).sum() < 400
    with pytest.raises(ValueError, match="takes a label beside z: give y"):
        net.decode(z)


def test_rows_with_labels_come_again(rng):
    y = np.array([-1, 1, -1, -1, 0, -1, -1, -1, -1, -1])
    rows = Rows(rng.random((10, 2)), (2,), y=y, again=M2(share=0.5).again(y))
    numbers = np.concatenate(rows.shuffled(3, epoch=0))
    assert np.bincount(numbers).tolist() == [1, 4, 1, 1, 4, 1, 1, 1, 1, 1]  # 8 of 16
    assert not np.array_equal(numbers, np.concatenate(rows.shuffled(3, epoch=1)))
    for known, share, again in (
        (y, 0.0, 0),
        (y, 0.1, 0),
        (np.maximum(y, 0), 0.5, 0),
        (None, 0.5, 0),
    ):
        assert M2(share=share).again(known) == again


# ----------------------------------------------------------------------------- as an estimator
OPTIONS = {"hidden": (64,), "likelihood": "bce", "learning_rate": 3e-3, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return tv.data.load("digits")


def few(labels, each, seed=0):
    """The labels of so many rows of each class; -1 for the others."""
    rng, y = np.random.default_rng(seed), np.full(len(labels), -1)
    for c in np.unique(labels):
        y[rng.choice(np.flatnonzero(labels == c), each, replace=False)] = c
    return y


@pytest.fixture(scope="module")
def trained(digits):
    y = few(digits.train_labels, 5)
    model = tv.VAE(6, model="m2", epochs=18, batch_size=64, **OPTIONS)
    return model.fit(digits.train, y, validation=(digits.validation, digits.validation_labels))


def test_it_learns_to_classify_and_to_sample(digits, trained, tmp_path):
    assert trained.history_[-1]["elbo"] > trained.history_[0]["elbo"] + 5
    probabilities = trained.predict_proba(digits.test)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    predicted = trained.predict(digits.test)
    np.testing.assert_array_equal(predicted, probabilities.argmax(axis=1))
    accuracy = (predicted == digits.test_labels).mean()
    assert accuracy > 0.7
    result = trained.evaluate(digits.test, digits.test_labels)
    assert result.log["accuracy"] == pytest.approx(accuracy)
    assert "accuracy" not in trained.evaluate(digits.test).log
    assert trained.score(digits.test) == pytest.approx(result.elbo, rel=1e-6)
    asked = np.arange(200) % 10
    assert (trained.predict(trained.sample(200, 0, y=asked)) == asked).mean() > 0.7
    assert trained.sample(3, 0).shape == (3, 8, 8, 1)
    assert trained.traverse(y=3, steps=3).shape == (6, 3, 8, 8, 1)
    trained.save(tmp_path / "m")
    np.testing.assert_array_equal(tv.load(tmp_path / "m").predict(digits.test), predicted)


def test_labels_may_be_texts(digits):
    y = few(digits.train_labels, 5)
    words = np.where(y < 0, "-1", np.char.add("class ", y.astype(str)))
    model = tv.VAE(3, model="m2", epochs=1, **OPTIONS).fit(digits.train, words)
    assert set(model.predict(digits.test)) <= {f"class {c}" for c in range(10)}
    assert len(model.classes_) == 10


def test_what_cannot_be(digits, trained):
    x = digits.train[:20]
    model = tv.VAE(2, model="m2", epochs=1, **OPTIONS)
    for y in (None, np.zeros((20, 3))):
        with pytest.raises(ValueError, match="needs the labels of some rows: give y, with -1"):
            model.fit(x, y)
    with pytest.raises(ValueError, match="all of them are unknown"):
        model.fit(x, np.full(20, -1))
    with pytest.raises(ValueError, match="y has the label 12 in row 0"):
        trained.evaluate(x, np.full(20, 12))
    plain = tv.VAE(2, epochs=1, **OPTIONS).fit(x)
    with pytest.raises(ValueError, match="model='vae' has no classifier"):
        plain.predict(x)
    for spec, message in (("m2:-1", "alpha must be finite"), ("m2:share=1", "share must be in")):
        with pytest.raises(ValueError, match=message):
            tv.VAE(2, model=spec).fit(x)
    with pytest.raises(ValueError, match="does not take free_bits"):
        tv.VAE(2, model="m2", free_bits=1.0).fit(x)
