import copy
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import tinyvae as tv
from tinyvae import nn, ops

TINY = {"latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    """1,797 grey images as rows of 64 numbers in [0, 1]."""
    return (load_digits().data / 16).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(digits):
    return tv.VAE(**TINY | {"likelihood": "bce"}).fit(digits[:300])


# ------------------------------------------------------------------------------------- learning
def test_a_short_run_on_the_digits_learns_them(digits):
    """The small version of the MNIST run: a bound far above the data's marginals, and digits."""
    train, test = digits[:1500], digits[1500:]
    vae = tv.VAE(8, hidden=(128,), likelihood="bce", epochs=30, learning_rate=3e-3, random_state=0)
    vae.fit(train, validation=test)
    p = train.mean(axis=0).clip(1e-3, 1 - 1e-3)
    marginals = (test * np.log(p) + (1 - test) * np.log(1 - p)).sum(axis=1).mean()
    assert vae.score(test) > marginals + 1.5
    assert vae.evaluate(test).active_units >= 5
    error = np.abs(vae.reconstruct(test) - test).mean()
    assert error < 0.7 * np.abs(p - test).mean()
    with pytest.raises(ValueError, match="bce is a plain loss: there is no log-likelihood"):
        vae.log_likelihood(test[:50])


@pytest.mark.parametrize("binarize", ["dynamic", "static"])
def test_binarized_digits_and_convolutions(digits, binarize):
    images = digits[:256].reshape(-1, 8, 8)
    options = TINY | {"architecture": "conv", "channels": (8, 8), "epochs": 3}
    vae = tv.VAE(**options, binarize=binarize).fit(images)
    assert vae.history_[-1]["elbo"] > vae.history_[0]["elbo"]
    assert vae.sample(3).shape == (3, 8, 8)
    drawn = vae.sample(3, random_state=1, mean=False)
    assert set(np.unique(drawn)) <= {0.0, 1.0}


def test_gaussian_with_learned_variance(digits):
    x = digits[:300] * 3 - 1
    fixed = tv.VAE(**TINY, likelihood="gaussian", variance=0.5).fit(x)
    learned = tv.VAE(**TINY | {"epochs": 20}, likelihood="gaussian", variance="learned").fit(x)
    assert learned.score(x) > fixed.score(x)
    assert learned.sample(4, mean=False).shape == (4, 64)
    assert learned.decode(np.zeros((1, 2))).shape == (1, 64)


# ---------------------------------------------------------------------------- scikit-learn manners
def test_parameters_are_stored_unchanged():
    hidden = [3, 4]
    vae = tv.VAE(7, hidden=hidden, beta=2.0)
    assert vae.hidden is hidden
    assert vae.get_params()["latent_dim"] == 7
    assert repr(vae) == "VAE(latent_dim=7, hidden=[3, 4], beta=2.0)"
    assert clone(vae).get_params() == vae.get_params()
    assert vae.set_params(beta=1.0) is vae
    with pytest.raises(ValueError, match="unknown parameter 'bata': did you mean 'beta'"):
        vae.set_params(bata=1.0)


def test_pipeline_and_grid_search(digits):
    pipeline = make_pipeline(MinMaxScaler(clip=True), tv.VAE(**TINY | {"likelihood": "bce"}))
    codes = pipeline.fit(digits[:100]).transform(digits[:5])
    assert codes.shape == (5, 2)
    assert pipeline.inverse_transform(codes).shape == (5, 64)
    search = GridSearchCV(tv.VAE(**TINY | {"likelihood": "bce"}), {"latent_dim": [1, 3]}, cv=2)
    search.fit(digits[:100])
    assert search.best_params_["latent_dim"] in (1, 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_fit_does_not_touch_its_input_or_the_parameters(digits):
    x = digits[:50].copy()
    vae = tv.VAE(**TINY, binarize="dynamic")
    before = copy.deepcopy(vae.get_params())
    assert vae.fit(x) is vae
    np.testing.assert_array_equal(x, digits[:50])
    assert vae.get_params() == before
    x.flags.writeable = False
    vae.fit(x)


def test_fit_transform_and_scores_agree(digits, fitted):
    x = digits[:20]
    np.testing.assert_array_equal(fitted.transform(x), fitted.encode(x)[0])
    np.testing.assert_array_equal(fitted.score_samples(x), fitted.elbo(x))
    assert fitted.score(x) == pytest.approx(fitted.elbo(x).mean())
    evaluation = fitted.evaluate(x)
    assert evaluation.elbo == pytest.approx(fitted.score(x), rel=1e-6)
    again = tv.VAE(**TINY | {"likelihood": "bce"}).fit_transform(digits[:300])
    np.testing.assert_array_equal(again, fitted.transform(digits[:300]))


def test_the_importance_weighted_bound_is_above_the_elbo(digits):
    vae = tv.VAE(**TINY | {"binarize": "dynamic"}).fit(digits[:300])
    estimate = vae.log_likelihood(digits[:50], samples=50)
    assert estimate.shape == (50,)
    assert estimate.mean() > vae.elbo(digits[:50]).mean()


def test_unfitted():
    for call in ("encode", "reconstruct", "elbo", "log_likelihood", "transform", "evaluate"):
        with pytest.raises(tv.NotFittedError, match="this VAE is not fitted yet"):
            getattr(tv.VAE(), call)(np.zeros((1, 3)))
    for call in (
        lambda v: v.sample(1),
        lambda v: v.decode(np.zeros((1, 20))),
        lambda v: v.traverse(),
    ):
        with pytest.raises(tv.NotFittedError):
            call(tv.VAE())
    with pytest.raises(tv.NotFittedError):
        tv.VAE().save("nowhere")


def test_partial_fit_goes_on(digits):
    x = digits[:64]
    vae = tv.VAE(**TINY | {"likelihood": "bce"})
    for _ in range(3):
        vae.partial_fit(x)
    assert [record["epoch"] for record in vae.history_] == [1, 2, 3]
    whole = tv.VAE(**TINY | {"likelihood": "bce", "epochs": 3}).fit(x)
    np.testing.assert_array_equal(vae.transform(x), whole.transform(x))


def test_partial_fit_goes_on_after_a_fit_that_a_callback_stopped(digits):
    class Stop(tv.train.Callback):
        def on_epoch(self, record):
            return True

    vae = tv.VAE(**TINY | {"likelihood": "bce", "epochs": 3})
    vae.fit(digits[:64], callbacks=[Stop()])
    vae.partial_fit(digits[:64])
    assert [record["epoch"] for record in vae.history_] == [1, 2]


def test_a_fitted_model_can_be_pickled_and_copied(digits, fitted):
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(twin.transform(digits[:5]), fitted.transform(digits[:5]))


# ------------------------------------------------------------------------- the words of VAE users
def test_shapes_and_repeatability(digits, fitted):
    x = digits[:10]
    mu, logvar = fitted.encode(x)
    assert mu.shape == logvar.shape == (10, 2)
    assert fitted.reparameterize(mu, logvar, 3).shape == (10, 2)
    np.testing.assert_array_equal(
        fitted.reparameterize(mu, logvar, 3), fitted.reparameterize(mu, logvar, 3)
    )
    assert fitted.decode(mu).shape == (10, 64)
    np.testing.assert_array_equal(
        fitted.sample(6, random_state=1), fitted.sample(6, random_state=1)
    )
    assert not np.array_equal(fitted.sample(6, random_state=1), fitted.sample(6, random_state=2))
    np.testing.assert_array_equal(fitted.elbo(x), fitted.elbo(x))
    assert not np.array_equal(fitted.elbo(x), fitted.elbo(x, random_state=9))
    assert fitted.traverse(steps=5).shape == (2, 5, 64)
    assert fitted.traverse(x[0], steps=5).shape == (2, 5, 64)
    assert fitted.sample(2).min() >= 0
    assert fitted.sample(2).max() <= 1


def test_evaluation_does_not_depend_on_the_batch(digits):
    """A row's bits and noise depend on its number alone."""
    vae = tv.VAE(**TINY, binarize="dynamic").fit(digits[:100])
    whole = vae.elbo(digits[:700])  # two batches of 512
    np.testing.assert_allclose(vae.elbo(digits[:300]), whole[:300], rtol=1e-5)


@pytest.mark.parametrize("binarize", ["dynamic", "static"])
def test_a_code_depends_on_its_row_alone(digits, binarize):
    vae = tv.VAE(**TINY, binarize=binarize).fit(digits[:100])
    codes = vae.transform(digits[:10])
    np.testing.assert_allclose(vae.transform(digits[7:8]), codes[7:8], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(vae.transform(digits[:10]), codes)


@pytest.mark.parametrize("spherical", [False, True])
def test_interpolation_starts_and_ends_at_the_reconstructions(digits, fitted, spherical):
    a, b = digits[0], digits[1]
    path = fitted.interpolate(a, b, 7, spherical=spherical)
    assert path.shape == (7, 64)
    ends = fitted.reconstruct(np.stack([a, b]))
    np.testing.assert_allclose(path[[0, -1]], ends, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        fitted.interpolate(a, a, 3, spherical=spherical)[1], ends[0], rtol=1e-4
    )


def test_spherical_interpolation_keeps_the_norm(digits, fitted, monkeypatch):
    ends = np.array([[3.0, 0.0], [0.0, 3.0]], np.float32)
    monkeypatch.setattr(fitted, "encode", lambda X, y: (ends, None), raising=False)
    monkeypatch.setattr(fitted, "_outputs", lambda z, labels: z, raising=False)
    monkeypatch.setattr(fitted, "_mean", lambda outputs: outputs, raising=False)
    z = fitted.interpolate(digits[0], digits[1], 5, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 3, rtol=1e-6)


def test_pixels_of_uint8_are_scaled_and_bits_are_not(digits):
    pixels = np.round(digits[:100] * 255).astype(np.uint8)
    vae = tv.VAE(**TINY | {"likelihood": "bce"}).fit(pixels)
    assert vae.scale_ == 255
    np.testing.assert_allclose(vae.transform(pixels), vae.transform(pixels / 255.0), rtol=1e-5)
    bits = (digits[:100] > 0.5).astype(np.uint8)
    assert tv.VAE(**TINY).fit(bits).scale_ == 1
    assert tv.VAE(**TINY).fit(bits * 255).scale_ == 255


def test_images_may_come_flat(digits):
    options = TINY | {"architecture": "conv", "channels": (4,), "likelihood": "bce"}
    vae = tv.VAE(**options, image_shape=(8, 8, 1)).fit(digits[:50])
    assert vae.sample(2).shape == (2, 64)
    with pytest.raises(ValueError, match=r"image_shape .* needs 49 values a row, X has 64"):
        tv.VAE(**options, image_shape=(7, 7, 1)).fit(digits[:50])
    with pytest.raises(ValueError, match=r"the conv architecture needs images \(N, H, W, C\)"):
        tv.VAE(**options).fit(digits[:50])


def test_dtype_float64(digits):
    vae = tv.VAE(**TINY | {"dtype": "float64", "likelihood": "bce"}).fit(digits[:50])
    assert vae.transform(digits[:5]).dtype == np.float64
    assert all(t.dtype == np.float64 for t in vae.network_.parameters())


def test_validation_as_a_fraction(digits):
    vae = tv.VAE(**TINY | {"likelihood": "bce"}).fit(digits[:100], validation=0.2)
    assert vae.history_[0]["step"] == 1
    assert "validation_elbo" in vae.history_[0]
    for bad in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match="validation must be rows, or a fraction"):
            tv.VAE(**TINY).fit(digits[:100], validation=bad)


# --------------------------------------------------------------------------- own encoder, decoder
class Encoder(nn.Module):
    def __init__(self, outputs=2):
        rng = np.random.default_rng(0)
        self.hidden = nn.Linear(64, 16, rng=rng)
        self.mu, self.logvar = nn.Linear(16, outputs, rng=rng), nn.Linear(16, outputs, rng=rng)

    def __call__(self, x):
        h = ops.tanh(self.hidden(x))
        return self.mu(h), self.logvar(h)


def own_decoder(outputs=64):
    return nn.Sequential(nn.Linear(2, 16), ops.tanh, nn.Linear(16, outputs))


def test_own_encoder_and_decoder(digits, tmp_path):
    encoder, decoder = Encoder(), own_decoder()
    before = encoder.mu.weight.data.copy()
    vae = tv.VAE(**TINY | {"likelihood": "bce"}, encoder=encoder, decoder=decoder)
    vae.fit(digits[:100])
    np.testing.assert_array_equal(encoder.mu.weight.data, before)  # fit trains a copy
    assert not np.array_equal(vae.network_.encoder.mu.weight.data, before)
    vae.save(tmp_path / "m")
    with pytest.raises(ValueError, match="made with its own encoder and decoder"):
        tv.load(tmp_path / "m")
    again = tv.load(tmp_path / "m", encoder=Encoder(), decoder=own_decoder())
    np.testing.assert_array_equal(again.transform(digits[:5]), vae.transform(digits[:5]))


def test_own_modules_that_do_not_fit(digits):
    options = TINY | {"likelihood": "bce"}
    with pytest.raises(ValueError, match=r"encoder gives mu of shape \(2, 3\) for 2 rows"):
        tv.VAE(**options, encoder=Encoder(3), decoder=own_decoder()).fit(digits[:9])
    with pytest.raises(ValueError, match=r"decoder gives shape \(2, 63\) for 2 rows, expected"):
        tv.VAE(**options, encoder=Encoder(), decoder=own_decoder(63)).fit(digits[:9])
    with pytest.raises(ValueError, match=r"encoder must return the pair \(mu, logvar\)"):
        tv.VAE(**options, encoder=nn.Linear(64, 2), decoder=own_decoder()).fit(digits[:9])
    with pytest.raises(ValueError, match="both encoder and decoder, or neither"):
        tv.VAE(**options, encoder=Encoder()).fit(digits[:9])


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number >= 1, got 0"),
        ({"latent_dim": 2.5}, "latent_dim must be a whole number >= 1, got 2.5"),
        ({"epochs": 0}, "epochs must be a whole number >= 1"),
        ({"batch_size": -1}, "batch_size must be a whole number >= 1"),
        ({"hidden": (8, 0)}, "hidden must be whole numbers >= 1"),
        ({"hidden": 400}, "hidden must be whole numbers >= 1, got 400"),
        ({"beta": -1.0}, "beta must be finite and >= 0"),
        ({"free_bits": float("nan")}, "free_bits must be finite and >= 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": "cosin:1:0:3"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"likelihood": "bernouli"}, "unknown likelihood 'bernouli': did you mean 'bernoulli'"),
        ({"architecture": "cnn"}, "unknown architecture 'cnn'"),
        ({"activation": "rellu"}, "unknown activation 'rellu': did you mean 'relu'"),
        ({"binarize": "dynamc"}, "unknown binarize 'dynamc': did you mean 'dynamic'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"likelihood": "gaussian", "variance": -1.0}, "variance must be positive"),
        ({"likelihood": "gaussian", "variance": "learnd"}, "did you mean 'learned'"),
        ({"random_state": "seven"}, "random_state must be None, an int"),
    ],
)
def test_unsuitable_parameters(digits, options, message):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**TINY | options).fit((digits[:20] > 0.5).astype(np.float32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[0], "expected"),
        (lambda x: x[:0], "expected"),
        (lambda x: x.astype(str), "dtype is <U"),
        (lambda x: np.where(np.arange(64) == 5, np.nan, x), "X has NaN at row 0, column 5"),
        (lambda x: x - 1.5 * (x == x[3, 20]), "outside \\[0, 1\\]"),
        (lambda x: x * 16, "outside \\[0, 1\\]; scale the data"),
    ],
)
def test_unsuitable_data(digits, spoil, message):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**TINY | {"likelihood": "bce"}).fit(spoil(digits[:20]))


def test_grey_values_under_bernoulli_are_refused_with_both_ways_out(digits):
    with pytest.raises(ValueError, match="grey value") as caught:
        tv.VAE(**TINY).fit(digits[:20])
    assert "binarize='dynamic'" in str(caught.value)
    assert "likelihood='bce'" in str(caught.value)
    with pytest.raises(ValueError, match="grey value"):
        tv.VAE(**TINY).fit(np.round(digits[:20] * 255).astype(np.uint8))


def test_other_sizes_after_fit(digits, fitted):
    with pytest.raises(ValueError, match="X has 63 features, but the VAE was fitted on 64"):
        fitted.transform(digits[:5, :63])
    with pytest.raises(ValueError, match=r"z must be \(N, 2\), got shape \(5, 3\)"):
        fitted.decode(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="validation has 10 features"):
        tv.VAE(**TINY | {"likelihood": "bce"}).fit(digits[:20], validation=digits[:5, :10])
    for call in (lambda: fitted.sample(0), lambda: fitted.traverse(steps=1)):
        with pytest.raises(ValueError, match="must be >="):
            call()


# -------------------------------------------------------------------------- what the KL may cost
def test_the_kl_goes_where_it_is_pressed_to(digits, tmp_path):
    """A capacity, from below and in time; free bits keep as many as they leave free."""
    options = TINY | {
        "latent_dim": 4, "hidden": (32,), "likelihood": "bce", "epochs": 30, "batch_size": 100,
        "learning_rate": 3e-3,
    }  # fmt: skip
    x = digits[:500]
    for capacity in (2, 5):
        vae = tv.VAE(**options, beta=30.0, kl_schedule=f"capacity:0:{capacity}:15").fit(x)
        assert vae.evaluate(x).kl == pytest.approx(capacity, abs=0.3)
    vae.save(tmp_path / "m")
    assert tv.load(tmp_path / "m").score(x) == vae.score(x)
    plain = tv.VAE(**options, beta=20.0).fit(x)
    assert plain.evaluate(x).kl < 0.5
    for bits, expected in (("total:3", 3.0), (tv.objectives.Group(0.5, 2), 1.0)):
        vae = tv.VAE(**options, beta=20.0, free_bits=bits).fit(x)
        assert plain.evaluate(x).kl + 0.2 < vae.evaluate(x).kl < expected + 0.4
        vae.save(tmp_path / "m")
        assert tv.load(tmp_path / "m").score(x) == vae.score(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"free_bits": "total:1", "model": "cvae"},
            "does not take free_bits of groups",
        ),
        ({"kl_schedule": "capacity", "model": "cvae"}, "does not take a capacity as kl_schedule"),
        ({"kl_schedule": "capacity", "free_bits": 1.0}, "both say what the KL may cost"),
        ({"kl_schedule": "capacity", "prior": "mixture:3"}, "a capacity needs the closed-form KL"),
        ({"free_bits": "total:1", "model": "vae:3"}, "free_bits needs the closed-form KL"),
    ],
)
def test_costs_that_do_not_go_together(digits, options, message):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**TINY | {"likelihood": "bce"} | options).fit(digits[:9], np.zeros(9, int))


# ------------------------------------------------------------------------------------ saved models
def test_save_and_load(digits, tmp_path):
    options = TINY | {
        "binarize": "static",
        "kl_schedule": tv.schedules.Linear(0, 1, 2),
        "learning_rate": "cosine:0.01:0:5",
        "clip_norm": 1.0,
    }
    vae = tv.VAE(**options).fit(digits[:80].reshape(-1, 8, 8))
    vae.save(tmp_path / "m.safetensors")
    again = tv.load(tmp_path / "m.safetensors")
    assert again.get_params()["kl_schedule"] == "linear:0:1:2"
    assert again.sample(2).shape == (2, 8, 8)
    x = digits[:30]
    np.testing.assert_array_equal(again.elbo(x), vae.elbo(x))
    assert again.history_ == vae.history_
    again.partial_fit(x)


def test_what_cannot_be_saved_is_refused_before_training(digits, tmp_path):
    class Own(tv.likelihoods.Bernoulli):
        pass

    for options in (
        {"likelihood": Own(), "binarize": "dynamic"},
        {"kl_schedule": lambda epoch: 0.5},
    ):
        vae = tv.VAE(**TINY | {"likelihood": "bce"} | options)
        with pytest.raises(TypeError, match="cannot be written down"):
            vae.fit(digits[:20], checkpoint=tmp_path / "c")
        assert vae.history_ == []
    whole = tv.VAE(**TINY, likelihood=tv.likelihoods.Gaussian("learned")).fit(digits[:20])
    whole.save(tmp_path / "m")
    assert tv.load(tmp_path / "m").score(digits[:20]) == whole.score(digits[:20])


def test_a_users_own_schedule_cannot_be_saved(digits, tmp_path):
    vae = tv.VAE(**TINY | {"likelihood": "bce"}, kl_schedule=lambda epoch: 0.5).fit(digits[:20])
    with pytest.raises(TypeError, match="cannot be written down"):
        vae.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
