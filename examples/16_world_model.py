"""World model (Ha and Schmidhuber 2018): learn a small game from what it looks like, then dream it.

    python examples/16_world_model.py        writes world_model.png

The game is tinyvae.paddle: a ball, three walls and a paddle that is moved by actions.  A VAE makes
latents of single frames, a GRU foresees the next latent as a mixture of Gaussians.  The forecast of
the next frame is compared with the last frame on episodes that training has not seen.
"""

import numpy as np

import tinyvae as tv
from tinyvae import paddle, plots
from tinyvae.ops.noise import Draw

STEPS, SEEN = 20, 5


def play(n, seed):
    """Episodes, and their actions one-hot: (N, T, H, W) and (N, T 3)."""
    frames, actions = paddle.episodes(n, STEPS, seed=seed)
    return frames, np.eye(3, dtype=np.float32)[actions + 1].reshape(n, -1)


frames, actions = play(3000, seed=0)
new, new_actions = play(200, seed=1)
vae = tv.VAE(
    8, model="world:units=128:joint=true", hidden=(128,), epochs=25, batch_size=32,
    learning_rate=2e-3, random_state=0,
)  # fmt: skip
vae.fit(frames, actions)

x = new.astype(np.float32)
forecast = vae.network_.predict(x, new_actions)
for name, guess in (("forecast", forecast), ("last frame", x[:, :-1])):
    error = ((guess - x[:, 1:]) ** 2).sum(axis=(2, 3)).mean()
    print(f"{name}: squared error {error:.2f} a frame, of 8 white pixels")

dreams = vae.network_.dream(x[:4, :SEEN], Draw(4, seed=0), new_actions[:4])
pairs = np.stack([x[:4], vae.likelihood_.mean(dreams)], axis=1)  # (4, 2, T, H, W)
plots.image_grid(
    pairs.reshape(-1, *x.shape[2:], 1), "world_model.png", columns=STEPS,
    row_labels=["played", "dreamed"] * 4, column_labels=[str(t) for t in range(STEPS)],
)  # fmt: skip
print(f"wrote world_model.png: the dreams see {SEEN} frames, then only the actions")
