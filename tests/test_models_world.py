"""models/world.py: the bound and its gradients, the mixture, forecasts, a world that is learned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

import tinyvae as tv
from tinyvae import Tensor, devices, gradcheck, ops, paddle
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import Parts
from tinyvae.models.vae import VAENetwork
from tinyvae.models.world import Memory, Mixture, World
from tinyvae.ops.noise import Draw

B, T, SIZE, Z, A = 3, 4, 5, 2, 3


def world(*, likelihood=None, shape=(T, SIZE, SIZE), latent_dim=Z, **options):
    parts = Parts(
        shape, latent_dim, likelihood or Bernoulli(), hidden=(6,), activation="tanh",
        condition=shape[0] * A, rng=np.random.default_rng(0), dtype=np.float64,
    )  # fmt: skip
    return World(units=5, components=2, **options).build(parts)


def batch_of(rng, steps=T):
    x = (rng.random((B, steps, SIZE, SIZE)) < 0.4).astype(float)
    return Batch(x, rng.normal(size=(B, steps * A)))


def draw(rows=B, seed=1):
    return Draw(rows, seed=seed, dtype=np.float64)


# ----------------------------------------------------------------------------------- the objective
def test_gradients_of_the_joint_bound(rng):
    model, batch = world(joint=True), batch_of(rng)
    gradcheck(
        lambda *_: model.loss(batch, draw(), beta=0.7, rows=B).loss, *model.parameters(), rtol=1e-6
    )


def test_gradients_of_the_memory(rng):
    model, batch = world(), batch_of(rng)
    memory = model.memory.parameters()
    gradcheck(lambda *_: model.loss(batch, draw(), beta=0.7, rows=B).loss, *memory, rtol=1e-6)


def test_without_joint_training_the_vision_is_a_vae_of_single_frames(rng):
    """The memory learns from the latents, and does not change them."""
    model, batch = world(), batch_of(rng)
    terms = model.loss(batch, draw(), beta=0.7, rows=B)
    terms.loss.backward()
    found = [tensor.grad for name, tensor in model.named_parameters() if "memory" not in name]
    vae = VAENetwork(model.encoder, model.decoder, Z)
    vae.zero_grad()
    frames = Batch(batch.x.reshape(B * T, SIZE, SIZE, 1))
    alone = vae.loss(frames, draw(B * T), beta=0.7, rows=B)  # the same noise, frame by frame
    alone.loss.backward()
    np.testing.assert_allclose(terms.nll, np.reshape(alone.nll, (B, T)).sum(1), rtol=1e-12)
    np.testing.assert_allclose(terms.kl, np.reshape(alone.kl, (B, T)).sum(1), rtol=1e-12)
    for gradient, tensor in zip(found, vae.parameters(), strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-9, atol=1e-12)


def test_a_memory_that_knows_nothing_gives_the_standard_prior(rng):
    """All zeros: the mixture is N(0, I) at every step, and both kinds of training agree."""
    batch, weights = batch_of(rng), []
    for joint in (True, False):
        model = world(joint=joint)
        for tensor in model.memory.parameters():
            tensor.data[...] = 0
        weights.append(model.log_weights(batch, draw()))
        if joint:
            terms = model.evaluation(batch, draw())
            np.testing.assert_allclose(terms.elbo, weights[0], rtol=1e-12)
    np.testing.assert_allclose(*weights, rtol=1e-12)


def test_the_parts_of_a_batch_add_up(rng):
    for joint in (True, False):
        model, batch = world(joint=joint), batch_of(rng)
        whole = model.loss(batch, draw(), beta=0.5, rows=B).loss.item()
        parts = [
            model.loss(batch[i : i + 1], Draw(1, seed=1, first=i, dtype=np.float64), beta=0.5,
                       rows=B).loss.item()
            for i in range(B)
        ]  # fmt: skip
        assert sum(parts) == pytest.approx(whole, rel=1e-12)


# -------------------------------------------------------------------------------------- the mixture
def test_log_prob_of_a_mixture_is_that_of_scipy(rng):
    logits, mu, logvar = rng.normal(size=(4, 3)), *rng.normal(size=(2, 4, 3, 2))
    z = rng.normal(size=(4, 2))
    each = stats.norm.logpdf(z[:, None], mu, np.exp(logvar / 2)).sum(axis=2)
    expected = special.logsumexp(special.log_softmax(logits, axis=1) + each, axis=1)
    found = Mixture(Tensor(logits), Tensor(mu), Tensor(logvar)).log_prob(Tensor(z))
    np.testing.assert_allclose(found.data, expected, rtol=1e-12)


def test_log_prob_of_a_mixture_integrates_to_one(rng):
    grid = np.linspace(-30, 30, 20001)[:, None]
    mixture = Mixture(*(Tensor(rng.normal(size=shape)) for shape in ((3,), (3, 1), (3, 1))))
    density = np.exp(mixture.log_prob(Tensor(grid)).data)
    assert density.sum() * (grid[1, 0] - grid[0, 0]) == pytest.approx(1, rel=1e-6)


def test_samples_of_a_mixture_are_distributed_as_it_says(rng):
    logits, mu, logvar = np.log([0.2, 0.5, 0.3]), np.array([-4.0, 0, 5]), np.array([0.0, -2, 1])
    n = 100_000
    mixture = Mixture(
        *(Tensor(np.broadcast_to(a, (n, *a.shape))) for a in (logits, mu[:, None], logvar[:, None]))
    )
    z = mixture.sample(rng.random(n), rng.normal(size=(n, 1)))[:, 0]
    mean = 0.2 * -4 + 0.3 * 5
    var = 0.2 * (1 + 16) + 0.5 * np.exp(-2) + 0.3 * (np.e + 25) - mean**2
    assert z.mean() == pytest.approx(mean, abs=4 * np.sqrt(var / n))
    assert z.var() == pytest.approx(var, rel=0.02)
    cold = mixture.sample(rng.random(n), rng.normal(size=(n, 1)), temperature=0.0)
    assert (cold == 0).all()  # the middle of the likeliest component


# ----------------------------------------------------------------------------- forecasts and dreams
def test_the_memory_goes_on_from_its_state(rng):
    memory = Memory(Z, A, 5, 2, rng=rng, dtype=np.float64)
    z, a = rng.normal(size=(B, T, Z)), rng.normal(size=(B, T, A))
    whole, _ = memory.foresee(z, a)
    _, states = memory.foresee(z[:, :2], a[:, :2])
    rest, _ = memory.foresee(z[:, 2:], a[:, 2:], states[:, -1])
    for one, other in zip(whole, rest, strict=True):
        np.testing.assert_allclose(one.data[:, 2:], other.data, rtol=1e-10)


def test_a_forecast_knows_the_past_and_its_actions_alone(rng):
    model, batch = world(), batch_of(rng)
    before = model.predict(batch.x, batch.y)
    assert before.shape == (B, T - 1, SIZE, SIZE)
    x, y = batch.x.copy(), batch.y.copy()
    x[:, 2] = 1 - x[:, 2]
    after = model.predict(x, y)
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert (after[:, 2] != before[:, 2]).any()
    y[:, A : 2 * A] += 1  # the action at step 1, which leads to frame 2
    moved = model.predict(batch.x, y)
    np.testing.assert_array_equal(moved[:, :1], before[:, :1])
    assert (moved[:, 1] != before[:, 1]).any()


def test_a_dream_begins_with_what_was_seen(rng):
    model, batch = world(), batch_of(rng)
    whole = model.reconstruct(batch)
    np.testing.assert_allclose(model.dream(batch.x, draw(), batch.y), whole, rtol=1e-10)
    one, same, other = (model.dream(batch.x[:, :2], draw(seed=s), batch.y) for s in (1, 1, 2))
    np.testing.assert_allclose(one[:, :2], whole[:, :2], rtol=1e-10)
    np.testing.assert_array_equal(one, same)
    assert (one[:, 2:] != other[:, 2:]).any(axis=(1, 2, 3)).all()
    cold = [model.dream(batch.x[:, :1], draw(seed=s), batch.y, temperature=0.0) for s in (1, 2)]
    np.testing.assert_array_equal(*cold)
    assert model.generate(B, draw(), batch.y).shape == whole.shape


def test_outputs_are_laid_out_as_the_likelihood_reads_them(rng):
    """Two parameters a pixel: of each line of a frame first all means, then all variances."""
    model, batch = world(likelihood=Gaussian("learned")), batch_of(rng)
    raw = model.decode(model.encode(batch.x)[0])
    assert raw.shape == (B, T, SIZE, 2 * SIZE)
    z = model.encode(batch.x)[0]
    whole = model.likelihood.nll(raw, batch.x).data
    np.testing.assert_allclose(whole, model._nll(z, batch).data, rtol=1e-12)


@pytest.mark.parametrize("joint", [False, True])
def test_the_same_on_a_gpu(joint, gpu, rng):
    model, batch = world(joint=joint), batch_of(rng)

    def results(device):
        model.to(device).zero_grad()
        x, y = devices.move(batch.x, device), devices.move(batch.y, device)
        noise = [Draw(B, seed=seed, dtype=np.float64, like=x) for seed in range(4)]
        terms = model.loss(Batch(x, y), noise[0], beta=1.0, rows=B)
        terms.loss.backward()
        found = [terms.elbo, model.log_weights(Batch(x, y), noise[1]), model.predict(x, y)]
        found += [model.generate(B, noise[2], y), model.dream(x[:, :2], noise[3], y)]
        return [devices.to_host(a) for a in found + [t.grad for t in model.parameters()]]

    expected = results("cpu")
    for one, other in zip(results("cuda"), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


def test_bad_arguments_are_refused(rng):
    model, batch = world(), batch_of(rng)
    with pytest.raises(ValueError, match=r"y has shape \(3, 4\), expected \(3, 12\)"):
        model.predict(batch.x, batch.y[:, :4])
    with pytest.raises(ValueError, match="x must have 1 to 4 frames, got 0"):
        model.dream(batch.x[:, :0], draw())
    with pytest.raises(ValueError, match=r"needs episodes .* got rows of shape \(8,\)"):
        world(shape=(8,))
    with pytest.raises(ValueError, match=r"actions of 4 steps, floats \(N, T A\), got 7 numbers"):
        World().build(Parts((T, SIZE, SIZE), Z, Bernoulli(), condition=7))
    with pytest.raises(ValueError, match="got 4 numbers a row"):
        World().build(Parts((T, SIZE, SIZE), Z, Bernoulli(), condition=4, classes=4))
    with pytest.raises(ValueError, match="components must be >= 1, got 0"):
        World(components=0)


# ----------------------------------------------------------------------------------------- learning
def played(n, seed):
    frames, actions = paddle.episodes(n, 12, seed=seed, size=8)
    return frames, np.eye(3, dtype=np.float32)[actions + 1].reshape(n, -1)


@pytest.mark.parametrize("joint", ["false", "true"])
def test_forecasts_beat_the_last_frame(joint, tmp_path):
    """On episodes that training has not seen; and the actions matter."""
    (x, y), (new, actions) = played(600, 0), played(100, 1)
    vae = tv.VAE(
        6, model=f"world:48:3:{joint}", hidden=(64,), epochs=10, batch_size=20,
        learning_rate=3e-3, random_state=0,
    )  # fmt: skip
    vae.fit(x, y)
    history = vae.history_
    assert history[-1]["elbo"] > history[0]["elbo"]
    assert history[-1]["forecast"] > history[0]["forecast"]
    seen = new.astype(np.float32)

    def error(frames):
        return ((frames - seen[:, 1:]) ** 2).sum(axis=(2, 3)).mean()

    forecast = error(vae.network_.predict(seen, actions))
    assert forecast < 0.5 * error(seen[:, :-1])
    assert forecast < error(vae.network_.predict(seen, np.roll(actions, 1, axis=0)))
    path = tmp_path / "world.safetensors"
    vae.save(path)
    again = tv.load(path)
    np.testing.assert_array_equal(again.transform(new), vae.transform(new))
    sampled = again.sample(3, 0, y=actions[:3])
    assert sampled.shape == (3, 12, 8, 8)
    np.testing.assert_array_equal(sampled, vae.sample(3, 0, y=actions[:3]))
    assert vae.reconstruct(new[:3], actions[:3]).shape == (3, 12, 8, 8)
    assert vae.evaluate(new, actions).elbo == pytest.approx(vae.score(new, actions), rel=1e-5)
    assert np.isfinite(vae.log_likelihood(new[:4], 3, y=actions[:4])).all()


def test_ops_used_by_the_mixture_are_stable():
    """A component far away, or as narrow as a point, leaves loss and gradient finite."""
    mu = Tensor(np.array([[0.0], [1e4]]), True)
    logvar = Tensor(np.array([[0.0], [-20.0]]), True)
    out = Mixture(Tensor(np.zeros(2)), mu, logvar).log_prob(Tensor(np.zeros((3, 1))))
    ops.sum(out).backward()
    assert np.isfinite(out.data).all()
    assert np.isfinite(mu.grad).all()
    assert np.isfinite(logvar.grad).all()
