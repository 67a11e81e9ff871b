"""The models by name; one file per graph: what differs from the plain VAE in its graph.

`KINDS` maps the names that `tv.VAE(model=...)` and `tinyvae train --model` take to specifications.
"""

from __future__ import annotations

from .ae import AE
from .base import Model, Parts, Spec
from .correlation import Factor, TotalCorrelation
from .cvae import CVAE
from .discrete import Bernoulli, Categorical, Gumbel
from .gan import GAN
from .ladder import BottomUp, Ladder
from .m2 import M2
from .sequence import Sequence
from .vae import IWAE, VAE
from .vq import VQ
from .world import World

_ALL: tuple[type[Spec], ...] = (
    VAE,
    AE,
    IWAE,
    CVAE,
    M2,
    Gumbel,
    Categorical,
    Bernoulli,
    VQ,
    Ladder,
    BottomUp,
    Sequence,
    World,
    TotalCorrelation,
    Factor,
    GAN,
)
KINDS: dict[str, type[Spec]] = {kind.name: kind for kind in _ALL}

__all__ = ["KINDS", "Model", "Parts", "Spec"]
