"""A model and where its training stands, as a file: `checkpoint` for the bytes, this for the sense.

The description is plain JSON: hyperparameters, shapes, seed and progress.  A finished model holds
the network alone; a checkpoint holds the optimizer and the best weights so far too.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    checkpoint,
    corruptions,
    flows,
    likelihoods,
    models,
    objectives,
    priors,
    schedules,
    spelling,
)
from .labels import Labels
from .train import Progress, Run


def write(
    path: str | Path, model: Any, run: Run | None = None, fingerprint: list[int] | None = None
) -> None:
    """Write a fitted model; with a run and the fingerprint of its data, a checkpoint of it."""
    arrays = checkpoint.prefixed("network", model.network_.state_dict())
    description = {
        "model": type(model).__name__,
        "parameters": plain_parameters(model),
        "own_network": model.encoder is not None,
        "seed": model.seed_,
        "row_shape": list(model.row_shape_),
        "data_shape": list(model.data_shape_),
        "scale": model.scale_,
        "classes": None if model.classes_ is None else model.classes_.tolist(),
        "condition": 0 if model.labels_ is None else model.labels_.columns,
        "progress": model.progress_.as_dict(),
    }
    if run is not None:
        arrays |= checkpoint.prefixed("optimizer", model.optimizer_.state_dict())
        arrays |= checkpoint.prefixed("best", run.best_state or {})
        description["fingerprint"] = fingerprint
    checkpoint.write(path, arrays, description)


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and description of a saved model; ValueError if it is of a kind unknown here."""
    arrays, description = checkpoint.read(path)
    if description.get("model") != "VAE":
        raise ValueError(f"{path} holds a {description.get('model')!r}, which this version lacks")
    return arrays, description


def restore(model: Any, arrays: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Make a model what the file says: its fitted attributes, weights and optimizer."""
    model.seed_ = description["seed"]
    model.row_shape_ = tuple(description["row_shape"])
    model.data_shape_ = tuple(description["data_shape"])
    model.n_features_in_ = math.prod(model.data_shape_)
    model.scale_ = description["scale"]
    classes, columns = description.get("classes"), description.get("condition", 0)
    used = classes is not None or columns
    model._learn(Labels(classes and np.array(classes), columns) if used else None)
    model.progress_ = Progress.from_dict(description["progress"])
    model.history_ = model.progress_.history
    model._build()
    model.network_.load_state_dict(checkpoint.part("network", arrays))
    if state := checkpoint.part("optimizer", arrays):
        model.optimizer_.load_state_dict(state)
    model._best_state = checkpoint.part("best", arrays) or None


def resume(path: str | Path, model: Any, X: np.ndarray, y: np.ndarray | None = None) -> None:
    """Restore a checkpoint for going on with training on X, and y if the model uses it.

    Raises ValueError if the file is no checkpoint, or was trained with other hyperparameters or
    on other data: only `epochs`, `patience` and `device` may change.
    """
    arrays, description = read(path)
    if "fingerprint" not in description:
        raise ValueError(f"{path} is a finished model, not a checkpoint to resume")
    model.likelihood_ = likelihoods.resolve(model.likelihood, model.variance)
    # what an older file does not know had the value that is still the default
    now, then = plain_parameters(model), type(model)().get_params() | description["parameters"]
    for name in now:
        if name not in ("epochs", "patience") and now[name] != then.get(name):
            raise ValueError(
                f"{path} was trained with {name}={then.get(name)!r}, not {now[name]!r}: resume "
                "with the same value"
            )
    if description["fingerprint"] != fingerprint(X, y):
        given = "X" if y is None else "X and y"
        raise ValueError(f"{path} was trained on other data than the {given} given")
    restore(model, arrays, description)
    if any(now[name] != then[name] for name in ("epochs", "patience")):
        model.progress_.stopped = False


def plain_parameters(model: Any) -> dict[str, Any]:
    """Hyperparameters as JSON can hold them: schedules and likelihood spelled out.

    Without the device: a file belongs to none, and its reader names one.
    Raises TypeError for a schedule that is a user's own function, or a likelihood of the user's.
    """
    parameters = model.get_params() | {"encoder": None, "decoder": None, "random_state": None}
    del parameters["device"]
    for name in ("kl_schedule", "learning_rate"):
        parameters[name] = schedules.spell(parameters[name])
    for name, kinds in (("model", models.KINDS), ("prior", priors.KINDS), ("flow", flows.KINDS)):
        if not isinstance(parameters[name], (str, type(None))):
            parameters[name] = spelling.spell(parameters[name], kinds)
    if not isinstance(parameters["corruption"], (str, type(None))):
        parameters["corruption"] = spelling.spell(parameters["corruption"], corruptions.KINDS)
    if isinstance(parameters["free_bits"], objectives.Group):
        parameters["free_bits"] = spelling.spell(parameters["free_bits"], objectives.FREE_BITS)
    text, variance = likelihoods.spell(model.likelihood_, parameters["variance"])
    parameters |= {"likelihood": text, "variance": variance}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items()}


def fingerprint(X: np.ndarray, y: np.ndarray | None = None) -> list[int]:
    """Enough of the data to notice that a run is resumed on other data."""
    some = np.ascontiguousarray(X[:: max(1, len(X) // 64)])
    labels = [] if y is None else [zlib.crc32(np.ascontiguousarray(y).tobytes())]
    return [len(X), zlib.crc32(some.tobytes()), *labels]
