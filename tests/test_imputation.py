"""imputation.py, and missing values in the estimator."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import models
from tinyvae.batches import Batch
from tinyvae.ops.noise import Draw

TINY = {"hidden": (16,), "batch_size": 64, "random_state": 0, "learning_rate": 0.01}


@pytest.fixture
def model():
    parts = models.Parts((5,), 2, tv.likelihoods.Gaussian("learned"), hidden=(4,),
                         activation="tanh", rng=np.random.default_rng(0),
                         dtype=np.float64)  # fmt: skip
    return models.vae.VAE().build(parts)


def line(n=512):
    """Rows on a line, and noise of variance 0.01 around it: x = (t, 2t, -t, t/2)."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 1)) * [1, 2, -1, 0.5] + rng.normal(0, 0.1, (n, 4))


def holes(x, rate=0.3):
    mask = np.random.default_rng(2).random(x.shape) < rate
    mask[mask.all(axis=1)] = False
    return np.where(mask, np.nan, x), mask


def test_masked_loss_ignores_masked_values_and_its_gradient_is_right(model, rng):
    x, mask = rng.normal(size=(3, 5)), (rng.random((3, 5)) < 0.6).astype(float)

    def loss(target):
        batch = Batch(target, mask=mask, corrupted=x * mask)  # the encoder sees the same
        return model.loss(batch, Draw(3, seed=1, dtype=np.float64), beta=1.5, rows=3)

    expected = loss(x)
    for value in (np.nan, 1e6, 0.0):
        found = loss(np.where(mask == 1, x, value))
        assert found.loss.item() == expected.loss.item()
        np.testing.assert_array_equal(found.nll, expected.nll)
    assert tv.gradcheck(lambda *_: loss(x).loss, *model.parameters()) < 1e-6


def test_a_decoder_output_of_a_missing_column_learns_nothing(model, rng):
    mask = np.ones((3, 5))
    mask[:, 2] = 0
    batch = Batch(rng.normal(size=(3, 5)) * mask, mask=mask)
    model.loss(batch, Draw(3, seed=1, dtype=np.float64), beta=1.0, rows=3).loss.backward()
    last = model.decoder.layers[-2]
    assert (last.weight.grad[:, [2, 7]] == 0).all()  # mean and log-variance of column 2
    assert (last.weight.grad[:, [0, 1, 3, 4]] != 0).all()


def test_evaluation_and_log_weights_heed_the_mask(model, rng):
    x, mask = rng.normal(size=(3, 5)), (rng.random((3, 5)) < 0.6).astype(float)
    for method in ("evaluation", "log_weights"):
        values = []
        for junk in (0.0, 7.0):
            batch = Batch(np.where(mask == 1, x, junk), mask=mask)
            posterior = model.encode(x * mask)
            found = getattr(model, method)(batch, Draw(3, seed=1, dtype=np.float64), posterior)
            values.append(found.elbo if method == "evaluation" else found)
        np.testing.assert_array_equal(values[0], values[1])


def test_a_vae_learns_from_rows_with_holes_and_fills_them():
    x = line()
    X, mask = holes(x)
    vae = tv.VAE(1, missing=True, likelihood="gaussian:0.02", epochs=40, **TINY).fit(X)
    assert vae.history_[-1]["elbo"] > vae.history_[0]["elbo"]
    filled = vae.impute(X, steps=200)
    np.testing.assert_array_equal(filled[~mask], x[~mask])
    error = np.mean((filled - x)[mask] ** 2)
    assert error < 0.15 * np.mean((x.mean(axis=0) - x)[mask] ** 2)
    np.testing.assert_array_equal(vae.impute(X, steps=200), filled)  # the model's seed
    assert np.isfinite(vae.elbo(X)).all()
    assert np.isfinite(vae.log_likelihood(X, 3)).all()
    assert vae.transform(X).shape == (512, 1)


@pytest.mark.parametrize("model", ["vae:2", "vae:kl=sampled", "iwae:3", "iwae:3:dreg"])
def test_several_samples_heed_the_mask_too(model):
    X, mask = holes(line(64))
    vae = tv.VAE(1, model=model, missing=True, likelihood="gaussian", epochs=2, **TINY).fit(X)
    assert np.isfinite(vae.elbo(X)).all()
    rows = vae._checked_rows(X, "X")
    (_, batch), *_ = rows.in_order(64)
    results = []
    for junk in (0.0, 1e3):
        changed = Batch(np.where(batch.mask == 1, batch.x, junk), mask=batch.mask,
                        corrupted=batch.x)  # fmt: skip
        terms = vae.network_.loss(changed, Draw(64, seed=0), beta=1.0, rows=64)
        results.append(terms.loss.item())
    assert results[0] == results[1]
    filled = vae.impute(X, steps=3)
    np.testing.assert_array_equal(filled[~mask], X[~mask])


def test_a_chain_needs_the_density_of_the_posterior():
    X, _ = holes(line(32))
    vae = tv.VAE(2, missing=True, flow="planar:1", likelihood="gaussian", epochs=1, **TINY).fit(X)
    assert np.isfinite(vae.elbo(X)).all()
    with pytest.raises(ValueError, match="impute does not go with a flow"):
        vae.impute(X)


def test_a_row_without_any_value_costs_nothing():
    X, _ = holes(line(64))
    X[3] = np.nan
    vae = tv.VAE(1, missing=True, likelihood="gaussian", epochs=1, **TINY).fit(X)
    nll = tv.metrics.terms(vae.network_, vae._checked_rows(X, "X"), seed=0)[0]
    assert nll[3] == 0
    assert (nll[:3] > 0).all()


def test_a_model_of_whole_rows_fills_holes_too():
    x = line()
    vae = tv.VAE(1, likelihood="gaussian:0.02", epochs=40, **TINY).fit(x)
    X, mask = holes(x[:64])
    error = np.mean((vae.impute(X, steps=400) - x[:64])[mask] ** 2)
    assert error < 0.2 * np.mean(x[:64][mask] ** 2)
    with pytest.raises(ValueError, match="X has NaN at row"):
        vae.elbo(X)
    np.testing.assert_array_equal(vae.impute(x), x)


def test_draws_scatter_and_their_mean_is_the_guess():
    x = line()
    vae = tv.VAE(1, likelihood="gaussian:0.02", epochs=40, **TINY).fit(x)
    X = np.repeat([[0.5, 1.0, np.nan, 0.25]], 400, axis=0)
    draws = vae.impute(X, 1, steps=40, mean=False)[:, 2]
    assert 0.12 < draws.std() < 0.3  # the likelihood's own standard deviation is 0.14
    guess = vae.impute(X[:1], 1, steps=1000)[0, 2]
    assert abs(draws.mean() - guess) < 0.05
    assert abs(guess + 0.5) < 0.15


def test_missing_values_of_other_kinds():
    """Each likelihood gets holes that its check would refuse as numbers."""
    rng = np.random.default_rng(0)
    kinds = {
        "poisson": rng.poisson(3.0, (64, 4)).astype(float),
        "categorical:3": rng.integers(0, 3, (64, 4)).astype(float),
        "beta": rng.uniform(0.1, 0.9, (64, 4)),
        "bernoulli": rng.integers(0, 2, (64, 4)).astype(float),
    }
    for text, x in kinds.items():
        X, mask = holes(x)
        vae = tv.VAE(1, missing=True, likelihood=text, epochs=2, **TINY).fit(X)
        drawn = vae.impute(X, mean=False)
        vae.likelihood_.check(drawn)
        np.testing.assert_array_equal(drawn[~mask], x[~mask])


def test_images_and_binarized_data():
    x = tv.data.load("digits").train[:100].astype(float)
    X = np.where(np.arange(8)[:, None, None] >= 4, np.nan, x)
    vae = tv.VAE(4, missing=True, binarize="dynamic", epochs=2, **TINY).fit(X)
    filled = vae.impute(X, steps=4)
    assert filled.shape == x.shape
    np.testing.assert_array_equal(filled[:, :4], x[:, :4])
    assert 0 <= filled.min() <= filled.max() <= 1


def test_other_bad_values_are_still_refused():
    X, _ = holes(line(64))
    X[1, 2] = np.inf
    with pytest.raises(ValueError, match="X has infinity at row 1, column 2"):
        tv.VAE(1, missing=True, likelihood="gaussian").fit(X)
    with pytest.raises(ValueError, match="does not take missing values"):
        tv.VAE(model="gan", missing=True).fit(X)
    vae = tv.VAE(1, missing=True, likelihood="gaussian", epochs=1, **TINY).fit(line(64))
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        vae.impute(line(64), steps=0)


def test_holes_in_files(tmp_path):
    """A run resumes to the same bits, and a saved model still takes NaN."""
    X, _ = holes(line(64))
    options = TINY | {"missing": True, "likelihood": "gaussian"}
    whole = tv.VAE(1, epochs=2, **options).fit(X)
    tv.VAE(1, epochs=1, **options).fit(X, checkpoint=tmp_path / "c")
    again = tv.VAE(1, epochs=2, **options).fit(X, checkpoint=tmp_path / "c", resume=True)
    np.testing.assert_array_equal(again.elbo(X), whole.elbo(X))
    again.save(tmp_path / "m")
    np.testing.assert_array_equal(tv.load(tmp_path / "m").impute(X), whole.impute(X))


@pytest.mark.parametrize("missing", [True, False])
def test_the_chain_draws_from_the_exact_conditional(missing):
    """A linear model whose encoder is far from right: p(x2 | x1) is known in closed form.

    x = W z + noise of variance s2, z ~ N(0, 1): x2 given x1 is normal with mean and variance as of
    the joint covariance W W^T + s2 I.
    """
    W, s2 = np.array([1.0, 2.0]), 0.3
    vae = tv.VAE(1, hidden=(), likelihood=f"gaussian:{s2}", missing=missing, epochs=1,
                 dtype="float64", random_state=0).fit(np.zeros((4, 2)))  # fmt: skip
    state = {name: np.zeros_like(a) for name, a in vae.network_.state_dict().items()}
    decoder = [name for name in state if name.startswith("decoder")]
    state[next(n for n in decoder if n.endswith("weight"))] = W[None]
    state["encoder.logvar.bias"] = np.array([0.5])  # the same q(z | x) for all x
    vae.network_.load_state_dict(state)
    X = np.tile([1.5, np.nan], (4000, 1))
    drawn = vae.impute(X, 1, steps=250, mean=False)[:, 1]
    covariance = np.outer(W, W) + s2 * np.eye(2)
    gain = covariance[0, 1] / covariance[0, 0]
    variance = covariance[1, 1] - gain * covariance[0, 1]
    assert abs(drawn.mean() - 1.5 * gain) < 4 * np.sqrt(variance / 4000)
    np.testing.assert_allclose(drawn.var(), variance, rtol=0.1)
