"""models/sequence.py: what is scored, what is not, and that sequences sum to one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import Tensor, devices, flows, gradcheck, priors
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli, Gaussian, Tokens
from tinyvae.models import Parts
from tinyvae.models.sequence import Sequence
from tinyvae.ops.noise import Draw

B, T, Z, S = 3, 5, 2, 3
DECODERS = ["gru", "transformer"]


def sequence(decoder="gru", *, shape=(T,), likelihood=None, more=None, **options):
    parts = Parts(
        shape, Z, likelihood or Tokens(S), hidden=(6,), **more or {},
        rng=np.random.default_rng(0), dtype=np.float64,
    )  # fmt: skip
    return Sequence(decoder, heads=2, layers=1, **options).build(parts)


def draw(rows=B, **options):
    return Draw(rows, **{"seed": 1, "dtype": np.float64} | options)


def rows_of_length(rng, lengths, steps=T):
    x = rng.integers(0, S, (len(lengths), steps)).astype(float)
    x[np.arange(steps) >= np.array(lengths)[:, None]] = -1
    return x


def all_sequences(steps, symbols):
    """Every sequence of 0 to `steps` symbols, ended by -1."""
    for length in range(steps + 1):
        for word in itertools.product(range(symbols), repeat=length):
            yield (*word, *(-1,) * (steps - length))


def nll(model, z, x, mask=None):
    """-log p(x | z) of each row with the true steps given, (B,)."""
    return told_nll(model, z, Batch(x, mask=mask)).data


def told_nll(model, z, batch):
    told = model._told(batch)
    return told.likelihood.nll(told.decode(Tensor(z)), told.x, batch.mask)


CASES = {
    "tokens": (Tokens(S), (T,)),
    "bits": (Bernoulli(), (T, 4, 1)),
    "values": (Gaussian("learned"), (T, 2, 3)),
    "shared": (Gaussian("shared"), (T,)),
}


def batch_of(name, rng):
    _, shape = CASES[name]
    if name == "tokens":
        return Batch(rows_of_length(rng, [5, 2, 0]))
    x = rng.normal(size=(B, *shape))
    x = (x > 0).astype(float) if name == "bits" else x
    mask = np.ones_like(x)
    mask[1, 3:] = mask[2, :1] = 0
    return Batch(x, mask=mask)


# ----------------------------------------------------------------------------------- the objective
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_whole_loss(name, decoder, rng):
    likelihood, shape = CASES[name]
    model = sequence(
        decoder, likelihood=likelihood, shape=shape, dropout=0.4, more={"free_bits": 0.01}
    )
    batch = batch_of(name, rng)
    gradcheck(
        lambda *_: model.loss(batch, draw(), beta=0.7, rows=B).loss, *model.parameters(), rtol=1e-6
    )


PARTS = {
    "mixture": {"prior": priors.Mixture(3)},
    "flow": {"flow": flows.Planar(2)},
    "both": {"prior": priors.Gaussian(), "flow": flows.Coupling(2)},
}


@pytest.mark.parametrize("more", PARTS.values(), ids=PARTS)
def test_gradients_with_any_prior_and_flow(more, rng):
    model, batch = sequence(dropout=0.4, more=more), batch_of("tokens", rng)
    gradcheck(
        lambda *_: model.loss(batch, draw(), beta=0.7, rows=B).loss, *model.parameters(), rtol=1e-6
    )


def test_gradients_with_pseudo_inputs(rng):
    likelihood, shape = CASES["bits"]
    model = sequence(likelihood=likelihood, shape=shape, more={"prior": priors.Vamp(2)})
    batch = batch_of("bits", rng)
    gradcheck(
        lambda *_: model.loss(batch, draw(), beta=0.7, rows=B).loss, *model.parameters(), rtol=1e-6
    )


@pytest.mark.parametrize("more", PARTS.values(), ids=PARTS)
def test_the_bound_is_the_mean_of_the_weights_with_any_prior_and_flow(more, rng):
    """One sample of each: the same noise, and the KL sampled too."""
    model, batch = sequence(more=more), batch_of("tokens", rng)
    terms = model.evaluation(batch, draw())
    np.testing.assert_allclose(terms.elbo, model.log_weights(batch, draw()), rtol=1e-10)


def test_the_parts_of_a_batch_add_up(rng):
    """Each row has its own noise, however the batch is cut."""
    model, batch = sequence(dropout=0.5), Batch(rows_of_length(rng, [5, 2, 0]))
    whole = model.loss(batch, draw(), beta=0.5, rows=B).loss.item()
    parts = [
        model.loss(batch[i : i + 1], draw(1, first=i), beta=0.5, rows=B).loss.item()
        for i in range(B)
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("decoder", DECODERS)
def test_all_sequences_sum_to_one(decoder, rng):
    model = sequence(decoder, shape=(4,))
    x = np.array(list(all_sequences(4, S)), float)
    assert len(x) == 1 + 3 + 9 + 27 + 81
    for z in rng.normal(size=(3, 1, Z)):
        log_p = -nll(model, np.repeat(z, len(x), axis=0), x)
        assert np.exp(log_p).sum() == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_true_steps_at_once_are_the_product_of_the_steps(decoder, rng):
    """One call with the true steps given, against step after step."""
    model, x, z = sequence(decoder), rows_of_length(rng, [5, 3, 0]), rng.normal(size=(B, Z))
    state, before = model.decoder.start(Tensor(z)), model.steps.before(np.zeros((B, 1)))
    log_p, open_rows = np.zeros(B), np.ones(B, bool)
    for t in range(T):
        raw, state = model.decoder.step(Tensor(z), state, before)
        e = np.exp(raw.data[:, 0])
        p = e / e.sum(axis=1, keepdims=True)
        chosen = p[np.arange(B), np.where(x[:, t] < 0, S, x[:, t]).astype(int)]
        log_p += np.where(open_rows, np.log(chosen), 0)
        open_rows &= x[:, t] >= 0
        before = model.steps(x[:, t : t + 1])
    np.testing.assert_allclose(-nll(model, z, x), log_p, rtol=1e-10)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", CASES)
def test_a_step_sees_the_steps_before_alone(name, decoder, rng):
    likelihood, shape = CASES[name]
    model, z = (
        sequence(decoder, likelihood=likelihood, shape=shape),
        Tensor(rng.normal(size=(1, Z))),
    )
    x = rng.normal(size=(1, *shape)) if name != "tokens" else np.array([[0.0, 1, 2, 0, 1]])

    def outputs(x):
        raw = model.decoder.outputs(z, model.steps.before(x))
        return raw.data[0]

    before = outputs(x)
    x[:, 2] = 1 if name == "tokens" else rng.normal(size=shape[1:])
    after = outputs(x)
    np.testing.assert_array_equal(after[:3], before[:3])
    assert (after[3:] != before[3:]).any(axis=1).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_padded_batch_of_tokens_equals_one_by_one(decoder, rng):
    """Codes, loss and gradients; a model of few steps has the weights of one of many."""
    lengths = [5, 2, 0]
    x, z = rows_of_length(rng, lengths), rng.normal(size=(B, Z))
    model = sequence(decoder)
    told_nll(model, z, Batch(x)).backward(np.ones(B))
    expected = {name: tensor.grad for name, tensor in model.named_parameters()}
    together, codes = nll(model, z, x), model.encode(x)[0].data
    found = dict.fromkeys(expected, 0.0)
    for i, length in enumerate(lengths):
        steps = min(length + 1, T)  # with the end
        short = sequence(decoder, shape=(steps,))
        state = {n: a[:steps] if n.endswith("place.weight") else a
                 for n, a in model.state_dict().items()}  # fmt: skip
        short.load_state_dict(state)
        row = Batch(x[i : i + 1, :steps])
        alone = told_nll(short, z[i : i + 1], row)
        alone.backward(np.ones(1))
        assert alone.data[0] == pytest.approx(together[i], rel=1e-12)
        np.testing.assert_allclose(short.encode(row.x)[0].data[0], codes[i], rtol=1e-12)
        for name, tensor in short.named_parameters():
            gradient = np.zeros_like(model.state_dict()[name])
            if tensor.grad is not None:
                gradient[tuple(map(slice, tensor.shape))] = tensor.grad
            found[name] = found[name] + gradient
    for name, gradient in expected.items():
        if gradient is not None:
            np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_padding_has_no_gradient_and_no_influence(decoder, rng):
    model, x = sequence(decoder), rows_of_length(rng, [5, 2, 0])
    raw = Tensor(model.score(Tensor(rng.normal(size=(B, Z))), x).data, True)
    model.likelihood.nll(raw, x).backward(np.ones(B))
    steps = raw.grad.reshape(B, S + 1, T)
    scored = np.array([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)  # the end is scored
    assert (steps.any(axis=1) == scored).all()
    model.loss(Batch(x), draw(), beta=1.0, rows=B).loss.backward()
    assert not model.steps.table.weight.grad[S].any()  # what is shown behind the end


@pytest.mark.parametrize("name", ["bits", "values"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_masked_values_change_nothing(name, decoder, rng):
    """Not even NaN; and a masked end is as if the sequence were shorter."""
    likelihood, shape = CASES[name]
    model, batch = sequence(decoder, likelihood=likelihood, shape=shape), batch_of(name, rng)
    z = rng.normal(size=(B, Z))
    loss, code = nll(model, z, batch.x, batch.mask), model.posterior(batch)[0].data
    other = Batch(np.where(batch.mask == 1, batch.x, np.nan), mask=batch.mask)
    np.testing.assert_array_equal(nll(model, z, other.x, other.mask), loss)
    np.testing.assert_array_equal(model.posterior(other)[0].data, code)
    short = sequence(decoder, likelihood=likelihood, shape=(3, *shape[1:]))
    short.load_state_dict({n: a[:3] if n.endswith("place.weight") else a
                           for n, a in model.state_dict().items()})  # fmt: skip
    row = batch.x[1:2, :3]
    np.testing.assert_allclose(short.posterior(Batch(row))[0].data[0], code[1], rtol=1e-12)
    np.testing.assert_allclose(nll(short, z[1:2], row), loss[1:2], rtol=1e-12)


def test_word_dropout_hides_the_past_in_training_alone(rng):
    model = sequence(dropout=1.0)
    z, u = Tensor(rng.normal(size=(2, Z))), np.full((2, T), 0.5)
    one, other = np.array([[0.0, 1, 2, 0, 1]] * 2), np.array([[2.0, 2, 2, 2, 2]] * 2)
    np.testing.assert_array_equal(model.score(z, one, u).data, model.score(z, other, u).data)
    assert (model.score(z, one).data != model.score(z, other).data).any()
    plain = sequence()
    plain.load_state_dict(model.state_dict())
    batch = Batch(one)
    terms = [m.evaluation(batch, draw(2)).elbo for m in (model, plain)]
    np.testing.assert_array_equal(*terms)
    losses = [m.loss(batch, draw(2), beta=1.0, rows=2).elbo for m in (model, plain)]
    assert (np.asarray(losses[0]) != np.asarray(losses[1])).all()


def test_evaluation_is_the_loss_without_dropout(rng):
    batch, model = Batch(rows_of_length(rng, [5, 2, 0])), sequence()
    loss, terms = model.loss(batch, draw(), beta=1.0, rows=B), model.evaluation(batch, draw())
    np.testing.assert_allclose(terms.elbo, loss.elbo, rtol=1e-12)
    np.testing.assert_allclose(terms.kl, loss.kl, rtol=1e-12)


def test_importance_weights_average_to_the_bound(rng):
    batch, model = Batch(np.repeat(rows_of_length(rng, [4]), 20_000, axis=0)), sequence()
    elbo = np.asarray(model.evaluation(batch, draw(20_000)).elbo)
    weights = model.log_weights(batch, draw(20_000))
    spread = np.sqrt(weights.var() / len(weights) + elbo.var() / len(elbo))
    assert weights.mean() == pytest.approx(elbo.mean(), abs=4 * spread)


# ---------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_scored_with_the_same_outputs(name, decoder, rng):
    likelihood, shape = CASES[name]
    model, z = sequence(decoder, likelihood=likelihood, shape=shape), rng.normal(size=(B, Z))
    raw, x = model._write(z, lambda raw, t: model.likelihood.mean(raw))
    assert x.shape == (B, *shape)
    ended = np.minimum.accumulate(x, axis=1) < 0 if name == "tokens" else np.zeros(x.shape, bool)
    again = model.score(Tensor(z), np.asarray(x, float)).data
    P = raw.shape[-1] // shape[-1]
    one, other = (np.asarray(a).reshape(*x.shape[:-1], P, -1) for a in (raw.data, again))
    keep = ~np.roll(ended, 1, axis=-1) | (np.arange(shape[-1]) == 0) if name == "tokens" else ~ended
    keep = np.broadcast_to(keep[..., None, :], one.shape)
    np.testing.assert_allclose(one[keep], other[keep], rtol=1e-9)


@pytest.mark.parametrize("decoder", DECODERS)
def test_samples_have_the_probabilities_that_are_scored(decoder, rng):
    """Step by step, with the end: the frequency of each sequence of at most two symbols."""
    model, n = sequence(decoder, shape=(2,)), 20_000
    z = np.repeat(rng.normal(size=(1, Z)), n, axis=0)
    _, x = model._write(z, lambda raw, t: model.likelihood.sample(raw, seed=3, step=t))
    words = np.array(list(all_sequences(2, S)))
    p = np.exp(-nll(model, z[: len(words)], words.astype(float)))
    found = (x[:, None] == words).all(axis=2).mean(axis=0)
    assert found.sum() == pytest.approx(1)
    assert (np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / n)).all()


def test_samples_depend_on_the_seed_and_not_on_the_batch(rng):
    model = sequence()
    one, same, other = (model.sample(6, draw(6, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    ends = np.minimum.accumulate(one, axis=1) < 0
    assert (one[ends] == -1).all()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["tokens", "bits"])
def test_the_same_on_a_gpu(name, decoder, gpu, rng):
    likelihood, shape = CASES[name]
    model = sequence(decoder, likelihood=likelihood, shape=shape, dropout=0.4)
    batch = batch_of(name, rng)

    def results(device):
        model.to(device).zero_grad()
        x, mask = (None if a is None else devices.move(a, device) for a in (batch.x, batch.mask))
        there = Batch(x, mask=mask)
        noise = [draw(seed=seed, like=x) for seed in range(4)]
        terms = model.loss(there, noise[0], beta=1.0, rows=B)
        terms.loss.backward()
        found = [terms.elbo, model.log_weights(there, noise[1]), model.generate(B, noise[2])]
        found += [model.sample(B, noise[3]), model.reconstruct(there)]
        return [devices.to_host(a) for a in found + [t.grad for t in model.parameters()]]

    expected = results("cpu")
    for one, other in zip(results("cuda"), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


# --------------------------------------------------------------------------------------- arguments
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown decoder 'grru': did you mean 'gru'"):
        Sequence("grru")
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\], got 2"):
        Sequence(dropout=2)
    for other in ({"hidden": ()}, {"hidden": (9, 5)}, {"architecture": "conv"}):
        with pytest.raises(ValueError, match="has networks of its own: one size of hidden units"):
            Sequence().build(Parts((T,), Z, Tokens(S), **other))
    with pytest.raises(ValueError, match="prior='vamp' learns inputs, which tokens cannot be"):
        tv.VAE(2, model="sequence", likelihood="tokens:3", prior="vamp:5").fit(grammar(10, 0))
    with pytest.raises(ValueError, match="free_bits needs the closed-form KL"):
        tv.VAE(2, model="sequence", likelihood="tokens:3", prior="mixture:5", free_bits=0.1).fit(
            grammar(10, 0)
        )
    with pytest.raises(ValueError, match="does not take an encoder and a decoder of one's own"):
        tv.VAE(2, model="sequence", encoder=len, decoder=len).fit(grammar(10, 0))
    with pytest.raises(ValueError, match="6 features cannot be shared by 4 heads"):
        Sequence("transformer").build(Parts((T,), Z, Tokens(S), hidden=(6,)))


# ----------------------------------------------------------------------------------------- learning
def grammar(n, seed):
    """0 1 0 1 ... or 1 2 1 2 ..., of 2 to 6 symbols."""
    rng = np.random.default_rng(seed)
    first, lengths = rng.integers(0, 2, n), rng.integers(2, 7, n)
    x = first[:, None] + np.arange(6) % 2
    return np.where(np.arange(6) < lengths[:, None], x, -1)


def is_grammatical(row):
    word = row[row >= 0]
    return len(word) >= 2 and any(
        (word == first + np.arange(len(word)) % 2).all() for first in (0, 1)
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_small_grammar_is_learned_and_saved(decoder, tmp_path):
    x, new = grammar(400, 0), grammar(50, 1)
    vae = tv.VAE(
        2, model=f"sequence:{decoder}:0.2", likelihood="tokens:3", hidden=(32,), epochs=12,
        batch_size=20, learning_rate=5e-3, kl_schedule="linear:0:1:6", free_bits=0.1,
        random_state=0,
    )  # fmt: skip
    vae.fit(x)
    assert vae.history_[-1]["nll"] < 0.6 * vae.history_[0]["nll"]
    samples = vae.sample(200, 0, mean=False)
    assert samples.shape == (200, 6)
    assert samples.dtype == np.int64
    assert np.mean([is_grammatical(row) for row in samples]) > 0.8
    assert vae.reconstruct(new).shape == new.shape
    # two kinds times five lengths, equally likely: nothing can be better than log 10
    assert -3.5 < vae.log_likelihood(new, 50).mean() < -np.log(10) + 0.1
    path = tmp_path / "sequence.safetensors"
    vae.save(path)
    again = tv.load(path)
    np.testing.assert_array_equal(again.sample(5, 1, mean=False), vae.sample(5, 1, mean=False))
    assert again.evaluate(new) == vae.evaluate(new)
    np.testing.assert_array_equal(again.sample(3, 1), vae.sample(3, 1))


def test_lines_of_an_image_are_a_sequence():
    x = (tv.data.load("digits").train[:300] > 0.5).astype(np.uint8)
    vae = tv.VAE(4, model="sequence", hidden=(32,), epochs=3, random_state=0, batch_size=32)
    vae.fit(x)
    assert vae.history_[-1]["elbo"] > vae.history_[0]["elbo"]
    assert vae.sample(2, 0).shape == vae.sample(2, 0, mean=False).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_resumed_run_gives_the_same_bits(decoder, tmp_path):
    x, path = grammar(60, 0), tmp_path / "run.safetensors"
    options = {"model": f"sequence:{decoder}:0.3", "likelihood": "tokens:3", "hidden": (8,),
               "batch_size": 20, "random_state": 0}  # fmt: skip
    whole = tv.VAE(2, epochs=4, **options).fit(x)
    tv.VAE(2, epochs=2, **options).fit(x, checkpoint=path)
    resumed = tv.VAE(2, epochs=4, **options).fit(x, checkpoint=path, resume=True)
    for name, array in whole.network_.state_dict().items():
        np.testing.assert_array_equal(resumed.network_.state_dict()[name], array)


def test_values_of_different_lengths():
    """NaN behind the end of a shorter series."""
    rng = np.random.default_rng(0)
    phase, lengths = rng.uniform(0, 6, 300), rng.integers(4, 11, 300)
    x = np.sin(phase[:, None] + 0.6 * np.arange(10))
    x[np.arange(10) >= lengths[:, None]] = np.nan
    vae = tv.VAE(
        2, model="sequence", likelihood="gaussian", variance="shared", hidden=(24,), epochs=8,
        batch_size=20, learning_rate=5e-3, missing=True, random_state=0,
    )  # fmt: skip
    vae.fit(x)
    assert vae.history_[-1]["elbo"] > vae.history_[0]["elbo"] + 2
    assert np.isfinite(vae.elbo(x)).all()
    assert np.isfinite(vae.sample(3, 0, mean=False)).all()
    ends = np.where(np.isnan(x[:5]), 9.0, x[:5])  # another padding, which nobody sees
    batch, other = (Batch(rows, mask=~np.isnan(x[:5])) for rows in (np.nan_to_num(x[:5]), ends))
    np.testing.assert_array_equal(*(vae.network_.code(b)[0].data for b in (batch, other)))
    np.testing.assert_allclose(vae.transform(x[:5]), vae.network_.code(batch)[0].data, atol=1e-5)
    with pytest.raises(ValueError, match=r"impute needs p\(x, z\)"):
        vae.impute(x[:5])


def test_a_wrong_symbol_is_found_by_what_comes_before_it():
    """Contributions to -log p(x | z): the steps before are the true ones."""
    x = grammar(400, 0)
    vae = tv.VAE(
        2, model="sequence", likelihood="tokens:3", hidden=(32,), epochs=15, batch_size=20,
        learning_rate=5e-3, random_state=0,
    )  # fmt: skip
    detector = tv.AnomalyDetector(vae, score="elbo").fit(x)
    wrong = np.array([[0, 1, 0, 0, 1, 0], [1, 2, 2, -1, -1, -1]])
    found = detector.contributions(wrong)
    assert found.argmax(axis=1).tolist() == [3, 2]
    assert (found[1, 4:] == 0).all()
    assert detector.predict(wrong).tolist() == [-1, -1]
