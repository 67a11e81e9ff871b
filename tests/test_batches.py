"""batches.py: rows on their way to the network."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae.batches import Batch, Rows
from tinyvae.ops import noise
from tinyvae.ops.noise import Stream

SHAPE = (3, 2, 1)


@pytest.fixture
def grey(rng):
    """Grey images as uint8, twenty of them."""
    return rng.integers(0, 256, (20, *SHAPE)).astype(np.uint8)


def take(rows, index=slice(None), **options):
    return rows.take(index, stream=Stream.BINARIZE, **options).x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_converted_scaled_and_shaped(grey, dtype):
    x = take(Rows(grey, (6,), dtype=dtype, scale=255.0), [3, 1, 3])
    assert x.dtype == dtype
    np.testing.assert_allclose(x, grey[[3, 1, 3]].reshape(3, 6) / 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("binarize", [None, "dynamic", "static"])
def test_the_data_are_never_modified(grey, dtype, binarize):
    array = grey.astype(dtype)
    for _ in range(2):
        rows = Rows(array, SHAPE, dtype=np.float32, scale=255.0, binarize=binarize)
        rows = rows.binarized_once()
        take(rows)
        take(rows, [0, 1])
        list(rows.in_order(7))
    np.testing.assert_array_equal(array, grey)


def test_a_memory_map_is_read_by_the_batch(tmp_path, grey):
    np.save(tmp_path / "x.npy", grey)
    rows = Rows(np.load(tmp_path / "x.npy", mmap_mode="r"), SHAPE, scale=255.0)
    np.testing.assert_allclose(take(rows, [5, 2]), grey[[5, 2]] / 255, rtol=1e-6)
    np.testing.assert_allclose(take(rows.head(4)), grey[:4] / 255, rtol=1e-6)


def test_length_and_head(grey):
    rows = Rows(grey, SHAPE)
    assert len(rows) == 20
    assert len(rows.head(7)) == 7
    np.testing.assert_array_equal(take(rows.head(7)), grey[:7])


def test_in_order_gives_every_row_once(grey):
    rows, starts, parts = Rows(grey, SHAPE), [], []
    for start, batch in rows.in_order(8):
        x = batch.x
        starts.append(start)
        parts.append(x)
    assert starts == [0, 8, 16]
    assert [len(part) for part in parts] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(parts), grey)


# ------------------------------------------------------------------------------------ binarization
def test_dynamic_bits_differ_in_every_step_and_repeat_with_the_seed(grey):
    rows = Rows(grey, SHAPE, scale=255.0, binarize="dynamic", seed=4)
    first = take(rows, step=1)
    assert set(np.unique(first)) == {0, 1}
    assert first.dtype == np.float32
    np.testing.assert_array_equal(take(rows, step=1), first)
    assert not np.array_equal(take(rows, step=2), first)
    other = Rows(grey, SHAPE, scale=255.0, binarize="dynamic", seed=5)
    assert not np.array_equal(take(other, step=1), first)
    assert not np.array_equal(rows.take(slice(None), stream=Stream.STATIC, step=1).x, first)


def test_mean_of_the_bits_is_the_grey_value():
    """20,000 draws of each: 5 standard errors."""
    grey = np.array([0, 1, 64, 128, 254, 255], np.uint8)
    array = np.tile(grey, (20_000, 1))
    for binarize in ("dynamic", "static"):
        rows = Rows(array, (6,), scale=255.0, binarize=binarize).binarized_once()
        mean = take(rows).mean(axis=0, dtype=np.float64)
        p = grey / 255
        assert (np.abs(mean - p) <= 5 * np.sqrt(p * (1 - p) / 20_000)).all(), binarize


def test_bits_stay_bits():
    bits = np.array([[0, 1, 1, 0]], np.float32)
    for binarize in ("dynamic", "static"):
        rows = Rows(bits, (4,), binarize=binarize).binarized_once()
        np.testing.assert_array_equal(take(rows), bits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dynamic_bits_of_an_evaluation_do_not_depend_on_the_batch_size(grey, dtype):
    rows = Rows(grey, SHAPE, dtype=dtype, scale=255.0, binarize="dynamic", seed=4)
    whole = np.concatenate([batch.x for _, batch in rows.in_order(100)])
    for batch_size in (1, 7, 20):
        parts = np.concatenate([batch.x for _, batch in rows.in_order(batch_size)])
        np.testing.assert_array_equal(parts, whole)
    assert not np.array_equal(whole, take(rows))


def test_static_bits_are_drawn_once(rng):
    """More rows than are drawn at a time; the first rows do not depend on the later ones."""
    grey = rng.random((2500, 4)).astype(np.float32)
    rows = Rows(grey, (4,), binarize="static", seed=4)
    once = rows.binarized_once()
    assert once.array.dtype == np.uint8
    assert (once.binarize, once.scale, once.shape) == (None, 1.0, (4,))
    np.testing.assert_array_equal(once.array, rows.binarized_once().array)
    np.testing.assert_array_equal(once.array[:1500], rows.head(1500).binarized_once().array)
    u = noise.uniform((2500, 4), seed=4, stream=Stream.STATIC)
    np.testing.assert_array_equal(once.array, grey > u)
    other = Rows(grey, (4,), binarize="static", seed=5).binarized_once()
    assert not np.array_equal(once.array, other.array)
    parts = [batch.x for _, batch in once.in_order(64)]
    np.testing.assert_array_equal(np.concatenate(parts), once.array)


def test_static_bits_are_the_same_in_float32_and_float64(grey):
    found = [
        Rows(grey, SHAPE, dtype=dtype, scale=255.0, binarize="static").binarized_once().array
        for dtype in (np.float32, np.float64)
    ]
    np.testing.assert_array_equal(*found)


def test_only_static_rows_are_binarized_once(grey):
    for binarize in (None, "dynamic"):
        rows = Rows(grey, SHAPE, binarize=binarize)
        assert rows.binarized_once() is rows


def test_static_rows_never_give_grey_values(grey):
    """A network that learns bits must not see grey because a call of binarized_once was missed."""
    rows = Rows(grey, SHAPE, scale=255.0, binarize="static")
    try:
        x = take(rows)
    except (ValueError, RuntimeError) as error:
        assert "binarized_once" in str(error)  # noqa: PT017  (refusing is right too)
    else:
        assert set(np.unique(x)) <= {0, 1}


def test_unknown_binarization_is_named(grey):
    with pytest.raises(ValueError, match="unknown binarize 'dinamic': did you mean 'dynamic'"):
        Rows(grey, SHAPE, binarize="dinamic")


# ---------------------------------------------------------------------------------------- shuffling
def test_an_epoch_has_every_row_once_and_keeps_the_last_batch(grey):
    batches = Rows(grey, SHAPE, seed=3).shuffled(8, epoch=0)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(20))


def test_epochs_differ_and_seeds_decide(grey):
    def order(seed, epoch):
        return np.concatenate(Rows(grey, SHAPE, seed=seed).shuffled(8, epoch=epoch))

    np.testing.assert_array_equal(order(3, 1), order(3, 1))
    assert not np.array_equal(order(3, 1), order(3, 2))
    assert not np.array_equal(order(3, 1), order(4, 1))
    whole = np.concatenate(Rows(grey, SHAPE, seed=3).shuffled(20, epoch=1))
    np.testing.assert_array_equal(whole, order(3, 1))  # whatever the batch size


def test_a_batch_knows_how_many_rows_there_are_in_all():
    rows = Rows(np.zeros((10, 3), np.float32), (3,))
    batch = rows.take(np.arange(4), stream=Stream.BINARIZE)
    assert (len(batch), batch.total, batch[:2].total, len(batch[:2])) == (4, 10, 10, 2)
    assert [b.total for _, b in rows.in_order(4)] == [10, 10, 10]
    alone = Batch(rows.array)
    assert (alone.total, alone[:2].total) == (None, 10)


def test_rows_repeated():
    x = np.arange(6.0).reshape(3, 2)
    batch = Batch(x, np.arange(3), np.ones_like(x), corrupted=-x).repeated(2)
    assert len(batch) == 6
    assert batch.total == 3
    np.testing.assert_array_equal(batch.y, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(batch.x[::2], x)
    np.testing.assert_array_equal(batch.seen[1::2], -x)
    assert batch.mask.shape == (6, 2)
    assert Batch(x).repeated(2).mask is None
