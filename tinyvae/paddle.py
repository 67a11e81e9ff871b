"""A ball, three walls and a paddle: a world of small black-and-white frames, played by formulas.

The ball flies diagonally, one pixel a step, and bounces off the left, the right and the upper wall.
The paddle at the bottom moves by -1, 0 or 1 pixel as it is told; a ball that meets it bounces, one
that misses it starts again above, at a random place in a random direction.  A frame shows where
things are, but not where the ball is going: that takes two.

N episodes    T steps    H = W = size pixels
"""

from __future__ import annotations

import numpy as np

ACTIONS = (-1, 0, 1)  # pixels to the right
_BALL, _PADDLE = 2, 4  # the ball is 2 x 2 pixels, the paddle 1 x 4
_HOLD = 0.7  # chance that a random player does the same again


def episodes(
    n: int, steps: int, *, seed: int = 0, size: int = 12, actions: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`n` episodes of so many steps, and the actions that were taken in them.

    actions: (N, T) of -1, 0, 1, or None for a random player.  An action at t leads to frame t + 1.
    Returns frames (N, T, H, W) uint8, 0 and 1, and actions (N, T) int8.
    Raises ValueError for sizes that are too small and actions that do not fit.

    >>> frames, actions = episodes(3, 20)
    >>> frames.shape, actions.shape
    ((3, 20, 12, 12), (3, 20))
    """
    if n < 0 or steps < 1 or size < 8:
        raise ValueError(f"n must be >= 0, steps >= 1 and size >= 8, got {n}, {steps} and {size}")
    rng = np.random.default_rng(seed)
    actions = _random_player(rng, n, steps) if actions is None else _checked(actions, n, steps)
    frames = np.zeros((n, steps, size, size), np.uint8)
    ball, speed = _serve(rng, n, size)
    paddle = rng.integers(0, size - _PADDLE + 1, n)
    rows = np.arange(n)
    for t in range(steps):
        for i in range(_BALL):
            for j in range(_BALL):
                frames[rows, t, ball[:, 0] + i, ball[:, 1] + j] = 1
        for j in range(_PADDLE):
            frames[rows, t, size - 1, paddle + j] = 1
        paddle = np.clip(paddle + actions[:, t], 0, size - _PADDLE)
        ball, speed = _move(rng, ball, speed, paddle, size)
    return frames, actions


def _random_player(rng: np.random.Generator, n: int, steps: int) -> np.ndarray:
    """Actions that are often held: the paddle gets somewhere."""
    actions = rng.choice(np.array(ACTIONS, np.int8), (n, steps))
    held = rng.random((n, steps)) < _HOLD
    for t in range(1, steps):
        actions[held[:, t], t] = actions[held[:, t], t - 1]
    return actions


def _checked(actions: np.ndarray, n: int, steps: int) -> np.ndarray:
    actions = np.asarray(actions)
    if actions.shape != (n, steps):
        raise ValueError(f"actions has shape {actions.shape}, expected {(n, steps)}")
    if not np.isin(actions, ACTIONS).all():
        raise ValueError(f"actions must be among {ACTIONS}, got {np.setdiff1d(actions, ACTIONS)}")
    return actions.astype(np.int8)


def _serve(rng: np.random.Generator, n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2), row and column, in the upper half, and directions (n, 2) of -1 and 1."""
    row = rng.integers(0, size // 2 - 1, n)
    column = rng.integers(0, size - _BALL + 1, n)
    return np.stack([row, column], axis=1), rng.choice([-1, 1], (n, 2))


def _move(
    rng: np.random.Generator, ball: np.ndarray, speed: np.ndarray, paddle: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ball and direction one step later."""
    low, high = 0, np.array([size - 1 - _BALL, size - _BALL])  # the last row is the paddle's
    to = ball + speed
    speed = np.where((to < low) | (to > high), -speed, speed)
    lost = (to[:, 0] > high[0]) & (
        (ball[:, 1] + _BALL <= paddle) | (ball[:, 1] >= paddle + _PADDLE)
    )
    again, direction = _serve(rng, len(ball), size)  # drawn for all: no episode sees another
    ball = np.where(lost[:, None], again, ball + speed)
    return ball, np.where(lost[:, None], direction, speed)
