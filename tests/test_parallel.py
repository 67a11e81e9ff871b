import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import tinyvae as tv
from tinyvae import nn, ops, parallel
from tinyvae.models import networks, vae
from tinyvae.parallel import Shards, shard_count
from tinyvae_kernels import _threads, backend

B, D, Z = 13, 6, 2


@pytest.fixture
def network():
    return vae.build(
        "mlp", (D,), Z, hidden=(5,), channels=(), activation="tanh", seed=0,
        dtype=np.float64,
    )  # fmt: skip


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return (rng.random((B, D)) < 0.5).astype(np.float64), rng.standard_normal((B, Z))


def gradients(network, batch, count):
    x, eps = batch

    def step(replica, part):
        elbo = tv.objectives.elbo(
            replica, x[part], eps[part], likelihood=tv.likelihoods.Bernoulli()
        )
        elbo.loss.backward(len(elbo.nll) / B)
        return elbo.nll

    shards = Shards(network, count)
    try:
        nll = np.concatenate(shards.run(step, B))
    finally:
        shards.close()
    found = {name: tensor.grad for name, tensor in network.named_parameters()}
    network.zero_grad()
    return nll, found


@pytest.mark.parametrize("count", [2, 3, 5, 13])
def test_shards_add_up_to_the_whole_batch(network, batch, count):
    nll, whole = gradients(network, batch, 1)
    nll_sharded, sharded = gradients(network, batch, count)
    np.testing.assert_allclose(nll_sharded, nll, rtol=1e-12)
    for name in whole:
        np.testing.assert_allclose(sharded[name], whole[name], rtol=1e-10, atol=1e-14)
    _, again = gradients(network, batch, count)
    for name in whole:
        np.testing.assert_array_equal(sharded[name], again[name])


def test_replicas_share_weights_and_nothing_else(network):
    shards = Shards(network, 3)
    for replica in shards.networks[1:]:
        for own, other in zip(network.parameters(), replica.parameters(), strict=True):
            assert own is not other
            assert own.data is other.data


def test_replicas_share_buffers(network):
    network.average = nn.Buffer(np.zeros(2))
    shards = Shards(network, 2)
    network.average.data += 1
    np.testing.assert_array_equal(shards.networks[1].average.data, 1)


def test_more_shards_than_rows(network):
    shards = Shards(network, 4)
    seen = shards.run(lambda replica, part: (part.start, part.stop), 2)
    assert seen == [(0, 1), (1, 2)]
    assert shards.run(lambda replica, part: (part.start, part.stop), 4)[-1] == (3, 4)
    shards.close()


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_exception_in_a_shard_reaches_the_caller(network, bad):
    shards = Shards(network, 3)
    done = []

    def step(replica, part):
        if part.start == bad:
            raise ValueError(f"shard {bad}")
        done.append(part.start)

    with pytest.raises(ValueError, match=f"shard {bad}"):
        shards.run(step, 3)
    assert len(done) == 2  # the others were finished, not abandoned
    shards.close()


def test_shards_keep_the_callers_backend_and_error_state(network):
    """Both live in the context: a worker that lost them would warn, and run other code."""
    seen = []

    def step(replica, part):
        tv.ops.bernoulli_nll(np.full((1, 1), np.inf), np.ones((1, 1)))  # warns on NumPy, if it may
        seen.append(threading.get_ident())
        return np.geterr()["invalid"]

    shards = Shards(network, 2)
    with np.errstate(invalid="ignore"), backend("numpy"):
        assert shards.run(step, 2) == ["ignore", "ignore"]
    assert len(set(seen)) == 2
    shards.close()


def test_threads_end_with_the_training():
    before = set(threading.enumerate())  # of another test's, some may end meanwhile
    x = (np.random.default_rng(0).random((600, 784)) < 0.5).astype(np.float32)
    tv.VAE(4, hidden=(64,), batch_size=300, epochs=1, random_state=0).fit(x)
    assert set(threading.enumerate()) <= before


class BatchNorm(nn.Module):
    couples_rows = True

    def __call__(self, x):
        centred = x - ops.mean(x, axis=0, keepdims=True)
        return centred / ops.sqrt(ops.mean(centred * centred, axis=0, keepdims=True) + 1e-5)


def test_how_many_shards(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 4)
    small, large = nn.Linear(10, 10), nn.Linear(1000, 1000)
    assert shard_count(small, 100) == 1
    assert shard_count(large, 128) == 4
    assert shard_count(large, 3) == 1
    assert shard_count(large, 8) == 2
    coupled = nn.Sequential(large, BatchNorm())
    assert coupled.couples()
    assert shard_count(coupled, 128) == 1


def test_a_gpu_is_one_shard(gpu, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 4)
    assert shard_count(nn.Linear(1000, 1000).to("cuda"), 128) == 1


def test_kernels_use_one_thread_each_inside_shards(monkeypatch):
    """The shards are the threads already; a network in one piece leaves the kernels theirs."""
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 1)
    limits: list = []
    blas: list = []

    class Watching(nn.Module):
        def __init__(self, couples):
            self.inner, self.couples_rows = nn.Linear(2, 6), couples

        def __call__(self, z):
            limits.append(_threads._limit.get())
            blas.append({p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"})
            return self.inner(z)

    rng = np.random.default_rng(0)
    x = (rng.random((8, 6)) < 0.5).astype(np.float32)
    encoder = networks.GaussianEncoder(nn.Linear(6, 4, rng=rng), 4, 2, rng=rng)
    cases = ((False, 1, [1] * 4), (True, 1, [None] * 2), (True, 10**6, [1] * 2))
    for couples, worth, expected in cases:  # a small network in one piece is not worth them
        monkeypatch.setattr(parallel, "WORTH_A_THREAD", worth)
        limits.clear(), blas.clear()
        options = {"encoder": encoder, "decoder": Watching(couples), "batch_size": 4, "epochs": 1}
        tv.VAE(2, random_state=0, **options).fit(x)
        assert limits[1:-1] == expected  # between the trial at the start and the evaluation
        assert set.union(*blas[1:-1]) <= {1}


def test_a_network_that_couples_rows_trains_in_one_piece(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 1)
    sizes = []

    class Watching(BatchNorm):
        def __call__(self, x):
            sizes.append(len(x))
            return super().__call__(x)

    rng = np.random.default_rng(0)
    decoder = nn.Sequential(nn.Linear(2, 8, rng=rng), Watching(), nn.Linear(8, 6, rng=rng))
    encoder = networks.GaussianEncoder(nn.Linear(6, 8, rng=rng), 8, 2, rng=rng)
    x = (rng.random((40, 6)) < 0.5).astype(np.float32)
    tv.VAE(2, encoder=encoder, decoder=decoder, batch_size=20, epochs=1, random_state=0).fit(x)
    assert sizes == [2, 20, 20, 40]  # the trial at the start, two steps, the evaluation
