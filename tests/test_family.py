"""What holds for every kind of model, and that each has its proofs."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import corruptions, flows, likelihoods, models, paddle, priors
from tinyvae.batches import Batch
from tinyvae.ops.noise import Draw, Stream

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"

# kind: file, a test of the gradient of its whole loss, a test that would see a known mistake
PROOFS = {
    "vae": ("objectives", "test_gradient_of_every_parameter",
            "test_loss_is_minus_the_mean_of_the_bound"),
    "iwae": ("objectives_sampled", "test_gradient_of_every_parameter",
             "test_one_sample_is_the_elbo"),
    "ae": ("models_ae", "test_gradient_of_the_whole_loss",
           "test_a_linear_one_spans_the_subspace_of_pca"),
    "m2": ("models_m2", "test_gradient_of_the_whole_loss",
           "test_labels_are_summed_out_as_by_brute_force"),
    "cvae": ("models_cvae", "test_gradient_of_the_whole_loss",
             "test_without_weights_for_the_label_it_is_the_plain_vae"),
    "gumbel": ("models_discrete", "test_gradient_of_the_whole_loss",
               "test_evaluation_is_the_exact_elbo_in_the_mean"),
    "categorical": ("models_discrete", "test_gradient_of_the_whole_loss",
                    "test_the_enumerated_loss_is_the_exact_elbo"),
    "bernoulli": ("models_discrete",
                  "test_the_score_function_loss_has_the_gradient_of_the_elbo_in_the_mean",
                  "test_the_vimco_loss_has_the_gradient_of_the_bound_in_the_mean"),
    "vq": ("models_vq", "test_gradient_of_the_whole_loss_with_the_assignment_fixed",
           "test_straight_through_hands_the_gradient_on_unchanged"),
    "ladder": ("models_ladder", "test_gradients_of_the_whole_loss",
               "test_with_exact_posteriors_every_weight_is_the_likelihood"),
    "bottomup": ("models_ladder", "test_gradients_of_the_whole_loss",
                 "test_the_elbo_is_exact_in_the_mean"),
    "sequence": ("models_sequence", "test_gradients_of_the_whole_loss",
                 "test_all_sequences_sum_to_one"),
    "world": ("models_world", "test_gradients_of_the_joint_bound",
              "test_forecasts_beat_the_last_frame"),
    "tc": ("models_correlation", "test_gradient_of_the_whole_loss",
           "test_without_a_weight_of_its_own_the_loss_is_the_elbo"),
    "factor": ("models_correlation", "test_each_network_of_factor_has_the_gradient_of_its_own_loss",
               "test_log_odds_estimate_the_total_correlation_of_a_gaussian"),
    "gan": ("models_gan", "test_each_network_has_the_gradient_of_its_own_loss",
            "test_the_loss_is_the_sum_of_three"),
}  # fmt: skip
# the parts: one table of cases in one file proves all of a sort
PARTS = {
    "prior": (priors.KINDS, "priors", "test_gradients", "test_the_density_integrates_to_one"),
    "flow": (flows.KINDS, "flows", "test_gradients",
             "test_logdet_is_that_of_the_numerical_jacobian"),
    "likelihood": (likelihoods.KINDS, "likelihoods", "test_gradients_reach_the_output",
                   "test_sums_or_integrates_to_one"),
    "corruption": (corruptions.KINDS, "corruptions", "test_the_target_stays_clean",
                   "test_how_much_is_damaged"),
}  # fmt: skip
ELSEWHERE = {"tokens": "likelihoods_tokens"}  # parts whose cases are in a file of their own


def source(file: str) -> str:
    return (HERE / f"test_{file}.py").read_text()


def test_every_model_has_its_proofs():
    assert set(PROOFS) == set(models.KINDS)
    for name, (file, *tests) in PROOFS.items():
        for test in tests:
            assert f"def {test}(" in source(file), name


@pytest.mark.parametrize("sort", PARTS)
def test_every_part_has_its_proofs(sort):
    kinds, file, *tests = PARTS[sort]
    for test in tests:
        assert f"def {test}(" in source(file)
    for name, kind in kinds.items():
        text = source(ELSEWHERE.get(name, file))
        assert kind.__name__ in text or f'"{name}' in text, name


def test_every_model_has_an_example():
    text = "".join(path.read_text() for path in EXAMPLES.glob("*.py"))
    for name in models.KINDS:
        assert re.search(rf'"{name}[":]', text), f"no example shows model={name!r}"


# ---------------------------------------------------------------------------- what all can be asked
COMMON = {"hidden": (12,), "epochs": 2, "batch_size": 16, "random_state": 3, "learning_rate": 3e-3}
N = 40
OPTIONS = {
    "iwae": {"model": "iwae:3"},
    "gumbel": {"model": "gumbel:4:3", "latent_dim": 20},
    "categorical": {"model": "categorical:3", "latent_dim": 20},
    "bernoulli": {"model": "bernoulli:4", "latent_dim": 20},
    "bernoulli:4:nvil": {"latent_dim": 20},
    "vq": {"model": "vq:codes=5:size=3:positions=2:prior=4", "latent_dim": 20},
    "ladder": {"model": "ladder:2:5"},
    "bottomup": {"model": "bottomup:2:5"},
    "sequence": {"model": "sequence", "likelihood": "tokens:3"},
    "world": {"model": "world:units=8:components=2"},
    "factor": {"model": "factor:units=6:layers=1"},
}


def data(kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of a sort that the kind is for, and their labels if it needs any."""
    rng = np.random.default_rng(0)
    kind = kind.split(":")[0]
    if kind == "world":
        frames, actions = paddle.episodes(N, 5, seed=0, size=8)
        return frames, np.eye(3, dtype=np.float32)[actions + 1].reshape(N, -1)
    if kind == "sequence":
        return rng.integers(0, 3, (N, 6)), None
    y = rng.integers(0, 2, N)
    x = (rng.random((N, 9)) < 0.2 + 0.6 * y[:, None]).astype(np.float32)
    return x, y if models.KINDS[kind].labels != "ignored" else None


def fitted(kind: str, **more) -> tuple[tv.VAE, np.ndarray, dict]:
    """A model after two epochs, its rows, and their labels as keywords."""
    x, y = data(kind)
    options = {"latent_dim": 2, "model": kind} | COMMON | OPTIONS.get(kind, {}) | more
    return tv.VAE(**options).fit(x, y), x, {} if y is None else {"y": y}


def one_label(labels: dict, n: int) -> dict:
    return {name: y[:n] for name, y in labels.items()}


@pytest.mark.parametrize("kind", models.KINDS)
def test_it_answers_every_question(kind):
    vae, x, y = fitted(kind)
    result = vae.evaluate(x, **y)
    assert np.isfinite([result.elbo, result.nll, result.kl, *result.log.values()]).all()
    assert vae.elbo(x, **y).shape == (N,)
    assert vae.reconstruct(x, **y).shape == x.shape
    for mean in (True, False):
        samples = vae.sample(5, random_state=1, mean=mean, **one_label(y, 5))
        assert samples.shape == (5, *x.shape[1:])
        again = vae.sample(5, random_state=1, mean=mean, **one_label(y, 5))
        np.testing.assert_array_equal(samples, again)
    codes = vae.transform(x, **y)
    assert len(codes) == N
    assert np.isfinite(codes).all()
    if vae.network_.has_likelihood:
        assert np.isfinite(vae.log_likelihood(x, samples=3, **y)).all()
    else:
        with pytest.raises(ValueError, match="log-likelihood"):
            vae.log_likelihood(x, samples=3, **y)


@pytest.mark.parametrize("kind", models.KINDS)
def test_it_is_saved_whole(kind, tmp_path):
    vae, x, y = fitted(kind)
    vae.save(tmp_path / "m.safetensors")
    again = tv.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.elbo(x, **y), vae.elbo(x, **y))
    some = one_label(y, 4)
    np.testing.assert_array_equal(
        again.sample(4, random_state=0, **some), vae.sample(4, random_state=0, **some)
    )


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_run_goes_on_to_the_same_bits(kind, tmp_path):
    whole, x, y = fitted(kind)
    first = whole.get_params() | {"epochs": 1}
    tv.VAE(**first).fit(x, *y.values(), checkpoint=tmp_path / "c")
    resumed = tv.VAE(**whole.get_params())
    resumed.fit(x, *y.values(), checkpoint=tmp_path / "c", resume=True)
    for name, array in whole.network_.state_dict().items():
        np.testing.assert_array_equal(resumed.network_.state_dict()[name], array, err_msg=name)


@pytest.mark.parametrize("kind", models.KINDS)
def test_noise_does_not_depend_on_the_rows_at_hand(kind):
    """A row's bound is its own: the same alone and in company, up to rounding."""
    vae, x, y = fitted(kind, dtype="float64")
    whole = vae.elbo(x, **y)
    part = vae.elbo(x[:7], **one_label(y, 7))
    np.testing.assert_allclose(part, whole[:7], rtol=1e-9)


# ------------------------------------------------------------------------- what goes with what
ASKED = {
    "latent_dim": {"latent_dim": 7},
    "weight": {"beta": 4.0},
    "prior": {"prior": "mixture:3"},
    "flow": {"flow": "planar:2"},
    "free_bits": {"free_bits": 0.1},
    "grouped": {"free_bits": "group:0.1:2"},
    "capacity": {"kl_schedule": "capacity:0:2:1"},
    "missing": {"missing": True},
    "corruption": {"corruption": "noise:0.1"},
}


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("name", ASKED)
def test_it_takes_what_it_does_not_refuse_with_a_reason(kind, name):
    refuses, options = models.KINDS[kind].refuses, ASKED[name] | {"epochs": 1}
    assert set(refuses) <= {*ASKED, "own"}
    if name in ("grouped", "capacity") and {"free_bits", "weight"} & set(refuses):
        with pytest.raises(ValueError, match=r"does not take (free_bits|beta|a capacity)"):
            fitted(kind, **options)
        return
    if name in refuses:
        words = f"model='{kind}' does not take {models.base.WORDS[name]}: {refuses[name]}"
        with pytest.raises(ValueError, match=re.escape(words)):
            fitted(kind, **options)
        return
    if kind == "sequence" and name == "corruption":
        options |= {"likelihood": "gaussian"}
    vae, x, y = fitted(kind, **options)
    assert np.isfinite(vae.elbo(x, **y)).all()


@functools.cache
def network_of(kind: str) -> tuple[models.Model, np.ndarray, np.ndarray | None]:
    """A model in float64, rows that it is for, as floats, and their labels."""
    likelihood = {"likelihood": "gaussian"} if kind == "sequence" else {}
    vae, x, y = fitted(kind, dtype="float64", epochs=1, **likelihood)
    batch = next(vae._checked_rows(x, "X", *y.values()).in_order(N))[1]
    return vae.network_, batch.x, batch.y


def bounds(network: models.Model, batch: Batch) -> list[np.ndarray]:
    """The loss of a batch, its bound, and its importance weights, if it has any."""
    draws = [Draw(len(batch), seed=1, dtype=np.float64, like=batch.x) for _ in range(3)]
    found = [network.loss(batch, draws[0], beta=0.5, rows=len(batch)).elbo,
             network.evaluation(batch, draws[1]).elbo]  # fmt: skip
    return found + ([network.log_weights(batch, draws[2])] if network.has_likelihood else [])


KINDS_WITH_HOLES = [kind for kind in models.KINDS if "missing" not in models.KINDS[kind].refuses]


@pytest.mark.parametrize("kind", KINDS_WITH_HOLES)
def test_what_is_missing_does_not_count(kind, rng):
    """Whatever stands in a missing value's place, the encoder's input being the same."""
    network, x, y = network_of(kind)
    mask = (rng.random(x.shape) < 0.7).astype(np.float64)
    lies = np.where(mask != 0, x, 1 - x)
    told, lied, counted = (
        bounds(network, Batch(rows, y, seen, corrupted=x * mask))
        for rows, seen in ((x, mask), (lies, mask), (lies, np.ones_like(mask)))
    )
    for a, b, c in zip(told, lied, counted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
        assert np.abs(a - c).max() > 1e-3


@pytest.mark.parametrize("kind", models.KINDS)
def test_the_encoder_sees_what_is_left(kind, rng):
    """And nothing else: the damage decides the code, the clean rows are what is to be given."""
    network, x, y = network_of(kind)
    damaged = x * (rng.random(x.shape) < 0.5)
    code = network.code(Batch(x, y, corrupted=damaged))[0].data
    np.testing.assert_array_equal(code, network.code(Batch(damaged, y))[0].data)
    clean, told, wrong = (
        bounds(network, batch)
        for batch in (Batch(x, y), Batch(x, y, corrupted=damaged), Batch(damaged, y))
    )
    for a, b, c in zip(clean, told, wrong, strict=True):
        assert np.abs(a - b).max() > 1e-6  # the code is another
        assert np.abs(b - c).max() > 1e-3  # the target is not


@pytest.mark.parametrize("kind", KINDS_WITH_HOLES)
def test_trained_on_holes_it_answers(kind, rng):
    likelihood = {"likelihood": "gaussian"} if kind == "sequence" else {}
    x, y = data(kind)
    holes = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    vae = tv.VAE(**{"latent_dim": 2, "model": kind, "missing": True} | COMMON
                 | OPTIONS.get(kind, {}) | likelihood).fit(holes, y)  # fmt: skip
    of = {} if y is None else {"y": y}
    assert np.isfinite(vae.elbo(holes, **of)).all()
    assert np.isfinite(vae.reconstruct(holes, **of)).all()
    if isinstance(vae.network_, models.vae.VAENetwork):
        filled = vae.impute(holes, 0, steps=4, **of)
        np.testing.assert_array_equal(filled[~np.isnan(holes)], x[~np.isnan(holes)])
        assert np.isfinite(filled).all()
    else:
        with pytest.raises(ValueError, match=f"model='{kind}.*' does not give"):
            vae.impute(holes, 0, steps=4, **of)


@pytest.mark.parametrize("kind", [*models.KINDS, "bernoulli:4:nvil", "vae:3", "cvae:true"])
def test_the_loss_is_the_negative_mean_of_its_elbo(kind):
    """By which training sees that it has diverged; and it does not depend on the shards."""
    network, x, y = network_of(kind)

    def loss(part):
        draw = Draw(len(x[part]), seed=1, first=part.start, dtype=np.float64, like=x)
        return network.loss(Batch(x, y)[part], draw, beta=0.5, rows=N)

    whole = loss(slice(0, N))
    assert whole.loss.item() == pytest.approx(-whole.elbo.mean(), rel=1e-12)
    assert whole.elbo.shape == (N,)
    if not network.couples():
        parts = loss(slice(0, 15)), loss(slice(15, N))
        assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["ae", "bernoulli", "vq", "ladder", "cvae:true", "world"])
def test_a_traversal_goes_where_the_codes_come_from(kind, monkeypatch):
    """Not over N(0, 1), where that is not the prior."""
    vae, x, y = fitted(kind)
    label = {} if not y else {"y": y["y"][0]}
    seen = []
    monkeypatch.setattr(type(vae), "decode", lambda self, z, y=None: seen.append(z) or x[:1])
    with pytest.raises(ValueError, match="reshape"):
        vae.traverse(steps=3, **label)
    Z, draw = vae.network_.latent_dim, Draw(4096, seed=vae.seed_, stream=Stream.SAMPLE)
    with tv.no_grad():
        z = vae.network_.from_prior(4096, draw, vae._labels(label.get("y"), 4096))
    grid = seen[0].reshape(Z, 3, Z)
    for j in range(Z):
        np.testing.assert_allclose(
            grid[j, :, j], np.quantile(z[:, j], [0.025, 0.5, 0.975]), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(np.delete(grid[j, 0], j), np.delete(z.mean(0), j), atol=1e-5)
