"""paddle.py: the small world of a ball and a paddle."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae import paddle


def centres(frames):
    """Upper left corner of the ball in each frame, (N, T, 2)."""
    field = frames[:, :, :-1].astype(int)
    rows, columns = field.any(axis=3), field.any(axis=2)
    return np.stack([rows.argmax(axis=2), columns.argmax(axis=2)], axis=2)


def test_every_frame_shows_one_ball_and_one_paddle():
    frames, actions = paddle.episodes(50, 40, seed=1)
    assert frames.shape == (50, 40, 12, 12)
    assert (frames.dtype, actions.dtype) == (np.uint8, np.int8)
    assert (frames[:, :, -1].sum(axis=2) == 4).all()
    assert (frames[:, :, :-1].sum(axis=(2, 3)) == 4).all()
    assert set(np.unique(actions)) == {-1, 0, 1}


def test_the_seed_decides_all():
    one, same, other = (paddle.episodes(5, 20, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    assert not np.array_equal(one[0], other[0])


def test_the_ball_moves_one_pixel_a_step_or_starts_again():
    frames, _ = paddle.episodes(200, 60, seed=2, size=10)
    step = np.diff(centres(frames), axis=1)
    flies = (np.abs(step) == 1).all(axis=2)
    assert flies.mean() > 0.9
    before = centres(frames)[:, :-1]
    assert (before[~flies][:, 0] == 10 - 3).all()  # it was lost just above the paddle
    assert (centres(frames)[:, 1:][~flies][:, 0] < 5).all()


def test_the_paddle_obeys_and_stays_inside():
    frames, actions = paddle.episodes(20, 30, seed=5)
    place = frames[:, :, -1].argmax(axis=2).astype(int)
    np.testing.assert_array_equal(place[:, 1:], np.clip(place[:, :-1] + actions[:, :-1], 0, 8))


def test_a_player_who_follows_the_ball_never_loses_it():
    """And the actions make a difference: one who stands still does lose it."""
    follow = np.zeros((30, 80), np.int8)
    for t in range(80):  # the future does not change the past
        frames, _ = paddle.episodes(30, t + 1, seed=7, actions=follow[:, : t + 1])
        ball = centres(frames)[:, t, 1]
        place = frames[:, t, -1].argmax(axis=1).astype(int) + 1
        follow[:, t] = np.sign(ball - place)
    lost = []
    for actions in (follow, np.zeros_like(follow)):
        frames, _ = paddle.episodes(30, 80, seed=7, actions=actions)
        lost.append((np.abs(np.diff(centres(frames), axis=1)) != 1).any(axis=2)[:, 20:].sum())
    assert lost[0] == 0 < lost[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps >= 1 and size >= 8, got 2, 0 and 12"),
        ({"size": 7}, "got 2, 3 and 7"),
        ({"actions": np.zeros((2, 4))}, r"actions has shape \(2, 4\), expected \(2, 3\)"),
        ({"actions": np.full((2, 3), 2)}, r"among \(-1, 0, 1\), got \[2\]"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        paddle.episodes(2, **{"steps": 3} | options)
