"""models/cvae.py: y is given to both networks, and nothing else differs from the plain VAE."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

import tinyvae as tv
from tinyvae import gradcheck, likelihoods, nn
from tinyvae.batches import Batch
from tinyvae.models import Parts, cvae, vae
from tinyvae.models.cvae import CVAE
from tinyvae.ops.noise import Draw

B, Z, CLASSES = 6, 3, 4
SHAPES = {"mlp": (5,), "conv": (5, 4, 1)}
LEARNED = pytest.mark.parametrize("learned_prior", [False, True])
BOTH = pytest.mark.parametrize("architecture", SHAPES)


def parts(architecture="mlp", **options):
    usual = {
        "hidden": (7,), "channels": (2,), "activation": "tanh", "classes": CLASSES,
        "condition": CLASSES, "rng": np.random.default_rng(0), "dtype": np.float64,
    }  # fmt: skip
    shape, likelihood = SHAPES[architecture], options.pop("likelihood", likelihoods.Bernoulli())
    return Parts(shape, Z, likelihood, architecture, **usual | options)


def batch(rng, architecture="mlp", y=None):
    x = (rng.random((B, *SHAPES[architecture])) < 0.5).astype(float)
    return Batch(x, rng.integers(0, CLASSES, B) if y is None else y)


def draw(seed=0):
    return Draw(B, seed=seed, dtype=np.float64)


@BOTH
@LEARNED
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_gradient_of_the_whole_loss(architecture, learned_prior, beta, rng):
    net, rows = CVAE(learned_prior).build(parts(architecture)), batch(rng, architecture)
    loss = lambda *_: net.loss(rows, draw(), beta=beta, rows=B + 2).loss  # noqa: E731
    assert gradcheck(loss, *net.parameters()) < 1e-6


@BOTH
@LEARNED
def test_gradient_with_a_condition_of_real_values(architecture, learned_prior, rng):
    rows = batch(rng, architecture, rng.normal(size=(B, 2)))
    net = CVAE(learned_prior).build(parts(architecture, classes=0, condition=2))
    loss = lambda *_: net.loss(rows, draw(), beta=1.0, rows=B).loss  # noqa: E731
    assert gradcheck(loss, *net.parameters()) < 1e-6


@BOTH
@pytest.mark.parametrize("free_bits", [0.0, 0.1])
def test_without_weights_for_the_label_it_is_the_plain_vae(architecture, free_bits, rng):
    """The rows of y in the first layer of both networks at zero, all else equal."""
    given = parts(architecture, free_bits=free_bits)
    net, plain, rows = CVAE().build(given), vae.VAE().build(given), batch(rng, architecture)
    for tensor, own in zip(net.parameters(), plain.parameters(), strict=True):
        assert tensor.ndim == own.ndim
        tensor.data[:] = 0
        tensor.data[tuple(slice(n) for n in own.shape)] = own.data  # y comes behind x and z
    found = net.loss(rows, draw(), beta=0.7, rows=B)
    expected = plain.loss(rows, draw(), beta=0.7, rows=B)
    np.testing.assert_allclose(found.loss.item(), expected.loss.item(), rtol=1e-14)
    for name in ("nll", "kl", "elbo"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-13)
    np.testing.assert_allclose(
        net.log_weights(rows, draw()), plain.log_weights(rows, draw()), rtol=1e-13
    )
    np.testing.assert_allclose(
        net.generate(B, draw(), rows.y), plain.generate(B, draw()), rtol=1e-13
    )


def test_one_class_is_a_bias(rng):
    """Its code is 1 for every row: the plain VAE with those weights added to the bias."""
    net = CVAE().build(parts(classes=1, condition=1))
    plain, rows = vae.VAE().build(parts()), batch(rng, y=np.zeros(B, int))
    pairs = [
        (net.encoder.body.dense.layers[0], plain.encoder.body.layers[1]),
        (net.encoder.mu, plain.encoder.mu),
        (net.encoder.logvar, plain.encoder.logvar),
        (net.decoder.dense.layers[0], plain.decoder.layers[0]),
        (net.decoder.dense.layers[2], plain.decoder.layers[2]),
    ]
    for module, twin in pairs:
        I = twin.weight.shape[0]  # noqa: E741
        twin.weight.data[:] = module.weight.data[:I]
        twin.bias.data[:] = module.bias.data + module.weight.data[I:].sum(axis=0)
    found, expected = net.evaluation(rows, draw()), plain.evaluation(rows, draw())
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-12)
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-12)


@LEARNED
def test_the_label_matters_and_belongs_to_its_row(learned_prior, rng):
    net, rows = CVAE(learned_prior).build(parts()), batch(rng)
    whole = net.loss(rows, draw(), beta=1.0, rows=B)
    other = net.loss(Batch(rows.x, (rows.y + 1) % CLASSES), draw(), beta=1.0, rows=B)
    assert (abs(whole.nll - other.nll) > 1e-6).all()
    assert (abs(whole.kl - other.kl) > 1e-6).all()
    half = net.loss(rows[3:], Draw(3, seed=0, first=3, dtype=np.float64), beta=1.0, rows=B)
    np.testing.assert_allclose(half.nll, whole.nll[3:], rtol=1e-12)
    np.testing.assert_allclose(half.kl, whole.kl[3:], rtol=1e-12)


def test_a_learned_prior_by_scipy(rng):
    """Closed-form KL against its definition, log weights against the densities themselves."""
    net, rows = CVAE(learned_prior=True).build(parts()), batch(rng)
    mu, logvar = (t.data for t in net.encode(rows.x, rows.y))
    mu_p, logvar_p = (t.data for t in net.prior_encoder(np.eye(CLASSES)[rows.y]))
    sigma, sigma_p = np.exp(logvar / 2), np.exp(logvar_p / 2)
    kl = (np.log(sigma_p / sigma) + (sigma**2 + (mu - mu_p) ** 2) / (2 * sigma_p**2) - 0.5).sum(1)
    terms = net.evaluation(rows, draw())
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-12)
    z = mu + sigma * draw().normal(Z)
    log_ratio = (norm.logpdf(z, mu_p, sigma_p) - norm.logpdf(z, mu, sigma)).sum(1)
    np.testing.assert_allclose(net.log_weights(rows, draw()), log_ratio - terms.nll, rtol=1e-12)
    output = net.decode(mu_p + sigma_p * draw().normal(Z), rows.y).data
    np.testing.assert_allclose(net.generate(B, draw(), rows.y), output, rtol=1e-12)


def test_a_learned_prior_at_zero_is_the_standard_one(rng):
    net, rows = CVAE(learned_prior=True).build(parts()), batch(rng)
    for tensor in net.prior_encoder.parameters():
        tensor.data[:] = 0
    own = cvae.CVAENetwork(net.encoder, net.decoder, Z, CLASSES, likelihood=net.likelihood)
    found, expected = (
        net.loss(rows, draw(), beta=0.5, rows=B),
        own.loss(rows, draw(), beta=0.5, rows=B),
    )
    np.testing.assert_allclose(found.loss.item(), expected.loss.item(), rtol=1e-13)
    np.testing.assert_allclose(
        net.log_weights(rows, draw()), own.log_weights(rows, draw()), rtol=1e-13
    )


def test_a_likelihood_with_parameters_of_its_own(rng):
    """They come behind a decoder that takes two inputs."""
    net = CVAE().build(parts(likelihood=likelihoods.resolve("gaussian", "shared")))
    rows = batch(rng)
    loss = lambda *_: net.loss(rows, draw(), beta=1.0, rows=B).loss  # noqa: E731
    assert gradcheck(loss, *net.parameters()) < 1e-6


def test_what_does_not_go_together(digits):
    for options in ({"free_bits": 0.1}, {"flow": "planar:2"}):
        with pytest.raises(ValueError, match="does not take"):
            tv.VAE(2, model="cvae:learned_prior=true", **options).fit(digits.train[:9])
    with pytest.raises(ValueError, match="a conditional model needs y"):
        CVAE().build(parts()).encode(np.zeros((1, 5)))


# ----------------------------------------------------------------------------- on the digits
OPTIONS = {"hidden": (64,), "likelihood": "bce", "learning_rate": 5e-3, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return tv.data.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    model = tv.VAE(6, model="cvae", epochs=12, **OPTIONS)
    held = digits.validation, digits.validation_labels
    return model.fit(digits.train, digits.train_labels, validation=held)


@pytest.mark.parametrize("learned_prior", ["false", "true"])
def test_samples_are_of_the_class_asked_for(digits, learned_prior):
    """A linear classifier of real digits agrees with 90 % of them and more."""
    from sklearn.linear_model import LogisticRegression

    model = tv.VAE(6, model=f"cvae:learned_prior={learned_prior}", epochs=12, **OPTIONS)
    model.fit(digits.train, digits.train_labels)
    assert model.history_[-1]["elbo"] > model.history_[0]["elbo"] + 5
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(digits.train.reshape(-1, 64), digits.train_labels)
    asked = np.arange(400) % 10
    images = model.sample(400, random_state=0, y=asked)
    assert classifier.score(images.reshape(-1, 64), asked) >= 0.9
    only = model.sample(40, random_state=0, y=3)
    assert classifier.score(only.reshape(-1, 64), np.full(40, 3)) >= 0.9


def test_knowing_the_label_helps(digits, trained):
    """The right label's bound is above a wrong one's, and a plain VAE's."""
    x, y = digits.test, digits.test_labels
    plain = tv.VAE(6, epochs=12, **OPTIONS).fit(digits.train)
    assert trained.score(x, y) > max(trained.score(x, (y + 1) % 10), plain.score(x)) + 0.5
    mu, logvar = trained.encode(x[:5], y[:5])
    assert mu.shape == logvar.shape == (5, 6)
    assert trained.evaluate(x, y).elbo == pytest.approx(trained.score(x, y), rel=1e-6)
    error = abs(trained.reconstruct(x, y) - x).mean()
    assert error < abs(trained.reconstruct(x, (y + 5) % 10) - x).mean()


def test_saved_with_its_labels(digits, trained, tmp_path):
    trained.save(tmp_path / "m")
    again = tv.load(tmp_path / "m")
    np.testing.assert_array_equal(again.classes_, np.arange(10))
    np.testing.assert_array_equal(
        again.sample(4, 0, y=[1, 2, 3, 4]), trained.sample(4, 0, y=[1, 2, 3, 4])
    )
    again.partial_fit(digits.train[:64], digits.train_labels[:64])


def test_labels_of_any_kind(digits):
    """Texts, and real values, whose shape depends on nothing but y."""
    x, y = digits.train[:200], digits.train_labels[:200]
    words = np.array([f"class {label}" for label in y])
    options = OPTIONS | {"epochs": 2}
    named = tv.VAE(6, model="cvae", **options).fit(x, words)
    numbered = tv.VAE(6, model="cvae", **options).fit(x, y)
    np.testing.assert_array_equal(named.sample(2, 0, y="class 3"), numbered.sample(2, 0, y=3))
    assert named.classes_[3] == "class 3"
    onehot = tv.VAE(6, model="cvae", **options).fit(x, np.eye(10)[y])
    assert onehot.classes_ is None
    np.testing.assert_allclose(
        onehot.sample(2, 0, y=np.eye(10)[3]), numbered.sample(2, 0, y=3), rtol=1e-5
    )


def test_on_the_way_between_two_labels(digits, trained):
    a, b = digits.test[:2]
    path = trained.interpolate(a, b, 5, y=digits.test_labels[:2])
    ends = trained.reconstruct(digits.test[:2], digits.test_labels[:2])
    np.testing.assert_allclose(path[[0, -1]], ends, rtol=1e-4, atol=1e-6)
    assert trained.traverse(y=2, steps=3).shape == (6, 3, 8, 8, 1)
    assert trained.traverse(a, y=2, steps=3).shape == (6, 3, 8, 8, 1)


def test_a_run_continues_with_the_same_labels(digits, tmp_path):
    x, y = digits.train[:200], digits.train_labels[:200]
    options = OPTIONS | {"model": "cvae", "latent_dim": 3}
    tv.VAE(**options, epochs=1).fit(x, y, checkpoint=tmp_path / "c")
    whole = tv.VAE(**options, epochs=2).fit(x, y)
    with pytest.raises(ValueError, match="other data than the X and y given"):
        tv.VAE(**options, epochs=2).fit(x, y[::-1], checkpoint=tmp_path / "c", resume=True)
    again = tv.VAE(**options, epochs=2).fit(x, y, checkpoint=tmp_path / "c", resume=True)
    np.testing.assert_array_equal(again.transform(x, y), whole.transform(x, y))


class Encoder(nn.Module):
    def __init__(self):
        self.mu, self.logvar = nn.Linear(74, 2), nn.Linear(74, 2)

    def __call__(self, x, y):
        both = tv.ops.concatenate([x, y])
        return self.mu(both), self.logvar(both)


class Decoder(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(12, 64)

    def __call__(self, z, y):
        return self.layer(tv.ops.concatenate([z, y]))


def test_networks_of_ones_own(digits):
    x, y = digits.train[:100].reshape(-1, 64), digits.train_labels[:100]
    model = tv.VAE(2, model="cvae", epochs=1, encoder=Encoder(), decoder=Decoder(), **OPTIONS)
    assert model.fit(x, y).sample(3, y=1).shape == (3, 64)


def test_labels_that_are_missing_or_wrong(digits, trained):
    x, y = digits.train[:20], digits.train_labels[:20]
    model = tv.VAE(2, model="cvae", epochs=1, **OPTIONS)
    with pytest.raises(ValueError, match="model='cvae' needs labels: give y"):
        model.fit(x)
    with pytest.raises(ValueError, match="y has 19 labels for 20 rows"):
        model.fit(x, y[:19])
    with pytest.raises(ValueError, match="y has 19 labels for 20 rows"):
        model.fit(x, y[:19], validation=0.2)
    with pytest.raises(ValueError, match="needs labels"):
        model.fit(x, y, validation=x)
    with pytest.raises(ValueError, match=r"has the label 1\d in row"):
        model.fit(x, y, validation=(x, y + 11))
    with pytest.raises(ValueError, match=r"y is unknown \(-1\) in row 0"):
        model.fit(x, np.where(np.arange(20) == 0, -1, y))
    for call in (trained.sample, lambda: trained.transform(x), lambda: trained.reconstruct(x)):
        with pytest.raises(ValueError, match="needs labels: give y"):
            call()
    with pytest.raises(ValueError, match="y has the label 12 in row 0; the labels are 0, 1"):
        trained.sample(2, y=12)
    with pytest.raises(ValueError, match="y has 3 labels for 2 rows"):
        trained.sample(2, y=[1, 2, 3])


def test_a_model_without_labels_ignores_them(digits):
    x, y = digits.train[:50], digits.train_labels[:50]
    plain = tv.VAE(2, epochs=1, **OPTIONS).fit(x, y)
    assert plain.classes_ is None
    np.testing.assert_array_equal(plain.transform(x, y), plain.transform(x))
    assert not plain.uses_labels


def test_means_of_a_batch_are_probabilities(trained):
    """decode gives means: of the raw output by the logistic function."""
    z, y = np.zeros((2, 6), np.float32), np.array([0, 1])
    raw = trained.network_.decode(z, y).data
    np.testing.assert_allclose(trained.decode(z, y), expit(raw), rtol=1e-5)
