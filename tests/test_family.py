"""What holds for every kind of model, and that each has its proofs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import corruptions, flows, likelihoods, models, paddle, priors

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
    "gumbel": {"model": "gumbel:4:3"},
    "categorical": {"model": "categorical:3"},
    "bernoulli": {"model": "bernoulli:4"},
    "vq": {"model": "vq:codes=5:size=3:positions=2:prior=4"},
    "ladder": {"model": "ladder:2:5"},
    "bottomup": {"model": "bottomup:2:5"},
    "sequence": {"model": "sequence", "likelihood": "tokens:3"},
    "world": {"model": "world:units=8:components=2"},
    "factor": {"model": "factor:units=6:layers=1"},
}


def data(kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of a sort that the kind is for, and their labels if it needs any."""
    rng = np.random.default_rng(0)
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


@pytest.mark.parametrize("kind", [kind for kind in models.KINDS if not models.KINDS[kind].weighs])
@pytest.mark.parametrize("weight", [{"beta": 4.0}, {"kl_schedule": "linear:0:1:5"}])
def test_a_weight_of_nothing_is_refused(kind, weight):
    with pytest.raises(ValueError, match=rf"model='{kind}' has no KL to weigh"):
        fitted(kind, **weight)


@pytest.mark.parametrize("kind", models.KINDS)
def test_what_it_does_not_take_is_refused_before_any_work(kind):
    takes = models.KINDS[kind].takes
    options = {"prior": {"prior": "mixture:3"}, "flow": {"flow": "planar:2"},
               "free_bits": {"free_bits": 0.1},
               "corruption": {"corruption": "noise:0.1"}}  # fmt: skip
    for name in set(options) - set(takes):
        with pytest.raises(ValueError, match=rf"model='{kind}' does not take {name}"):
            fitted(kind, **options[name])
