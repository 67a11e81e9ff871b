import copy
import pickle

import numpy as np
import pytest
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
