"""The models by name; one file per graph: what differs from the plain VAE in its graph.

`KINDS` maps the names that `tv.VAE(model=...)` and `tinyvae train --model` take to specifications.
"""

from __future__ import annotations

from .base import Model, Parts, Spec
from .vae import VAE

KINDS: dict[str, type[Spec]] = {kind.name: kind for kind in (VAE,)}

__all__ = ["KINDS", "Model", "Parts", "Spec"]
