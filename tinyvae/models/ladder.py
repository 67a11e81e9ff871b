"""Hierarchies of latents: x <- z_1 <- z_2 <- .. <- z_L, each layer a Gaussian given the one above.

    p(x, z) = p(x | z_1) p(z_1 | z_2) .. p(z_{L-1} | z_L) N(z_L; 0, I)
    ELBO = E_q[log p(x | z_1)] - sum_i KL_i,   KL_i = E_q[log q(z_i | ..) - log p(z_i | z_{i+1})]

    bottom-up   q(z_1 | x) q(z_2 | z_1) ..: each layer from the sample below     Rezende et al. 2014
    ladder      q(z_L | x) .. q(z_1 | z_2, x): from the top down, on the way that the generative
                model takes, with what x says merged in                     Sonderby et al. 2016

Sizes: B batch, Z latent (of z_1, which the decoder sees), L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from .. import ops
from ..batches import Batch
from ..likelihoods import Likelihood
from ..nn import ACTIVATIONS, Linear, Sequential
from ..objectives import Terms, gaussian_log_prob, weighted
from ..ops.noise import Draw
from ..priors import StandardNormal
from ..tensor import Tensor
from .base import Model, Parts, Spec, refused
from .networks import GaussianEncoder

Gaussian = tuple[Tensor, Tensor]  # mu, logvar, each (B, size of the layer)


class Layer(NamedTuple):
    """A sample z_i (B, size), the q it was drawn from and the p that it should look drawn from."""

    z: Tensor
    q: Gaussian
    p: Gaussian | None  # None: N(0, I), of the top

    def log_ratio(self) -> Tensor:
        """log q(z_i) - log p(z_i) at the sample, (B,) nats: KL_i in expectation."""
        zeros = self.z * 0.0
        p = self.p or (zeros, zeros)
        return gaussian_log_prob(self.z, *self.q) - gaussian_log_prob(self.z, *p)

    def kl(self) -> Tensor:
        """KL(q || p), (B,) nats, in closed form: where p does not depend on z_i."""
        return (
            ops.gaussian_kl(*self.q)
            if self.p is None
            else ops.gaussian_kl_between(*self.q, *self.p)
        )


class Hierarchy(Model):
    """What both ways of inference share: the generative model, and the loss.

    encoders: L modules with a body and two heads, from x up.  generators: L - 1 modules
    z_{i+1} -> mu, logvar of p(z_i | z_{i+1}), from the one of z_1 up.  decoder: z_1 -> raw
    parameters.  sizes: of z_1 .. z_L.  free_bits: nats per layer and row below which its KL is not
    pressed any further (Kingma et al. 2016, appendix C.8, there over a minibatch).
    """

    gaussian = False

    def __init__(
        self,
        encoders: Sequence[GaussianEncoder],
        generators: Sequence[Callable],
        decoder: Callable,
        sizes: Sequence[int],
        *,
        likelihood: Likelihood,
        free_bits: float = 0.0,
    ):
        self.encoders, self.generators, self.decoder = list(encoders), list(generators), decoder
        self.sizes, self.latent_dim = tuple(sizes), sizes[0]
        self.likelihood, self.free_bits = likelihood, free_bits
        self.prior = StandardNormal(sizes[-1])

    def layers(self, posterior: Any, sample: Callable[[Tensor, Tensor], Tensor]) -> list[Layer]:
        """z_1 .. z_L, each `sample` of its q's mu and logvar; posterior: what `posterior` gave."""
        raise NotImplementedError(f"{type(self).__name__} defines no layers")

    def kl(self, layers: list[Layer]) -> list[Tensor]:
        """KL_i of each layer, (B,) nats; sampled where there is no closed form."""
        raise NotImplementedError(f"{type(self).__name__} defines no kl")

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative ELBO, the KL of each layer held up by free bits."""
        layers = self.layers(self.posterior(batch), _sampler(draw))
        nll = self.likelihood.nll(self.decode(layers[0].z), batch.x, batch.mask)
        kls = self.kl(layers)
        counted = [ops.clip(kl, low=self.free_bits) for kl in kls] if self.free_bits else kls
        found = weighted(nll, _total(counted), beta=beta, batch=rows)
        return found._replace(kl=_total(kls).data, log=_log(kls))

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO, without free bits."""
        layers = self.layers(posterior or self.posterior(batch), _sampler(draw))
        nll = self.likelihood.nll(self.decode(layers[0].z), batch.x, batch.mask)
        kls = self.kl(layers)
        return weighted(nll, _total(kls), batch=len(batch))._replace(log=_log(kls))

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x, z_1 .. z_L) - log q(z_1 .. z_L | x) at one sample, (B,) nats."""
        layers = self.layers(posterior or self.posterior(batch), _sampler(draw))
        nll = self.likelihood.nll(self.decode(layers[0].z), batch.x, batch.mask)
        return -(nll + _total([layer.log_ratio() for layer in layers])).data

    def encode(self, x: Any, y: Any = None) -> Gaussian:
        """Mean and log-variance of q(z_1 | ..), each (B, Z), the layers above at their means."""
        return self.layers(self.posterior(Batch(x, y)), lambda mu, logvar: mu)[0].q

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z_1)."""
        return self.decoder(z)

    def from_prior(self, n: int, draw: Draw, y: Any = None) -> Any:
        """n rows z_1, sampled from the top down."""
        z, sample = self.prior.sample(n, draw), _sampler(draw)
        for generator in self.generators[::-1]:
            z = sample(*generator(z)).data
        return z


class BottomUpNetwork(Hierarchy):
    """q(z_1 | x) q(z_2 | z_1) ..                        Rezende, Mohamed and Wierstra 2014

    encoders: the first x -> mu, logvar, the others z_{i-1} -> mu, logvar.
    KL_i is sampled, for p(z_i | z_{i+1}) depends on z_i by way of z_{i+1}; the top one is exact.
    """

    def posterior(self, batch: Batch) -> Gaussian:
        """q(z_1 | x)."""
        return self.encoders[0](batch.seen)

    def layers(self, posterior: Gaussian, sample: Callable) -> list[Layer]:
        """Each z from the one below; then what the generative model says of it."""
        qs, zs = [posterior], [sample(*posterior)]
        for encoder in self.encoders[1:]:
            qs.append(encoder(zs[-1]))
            zs.append(sample(*qs[-1]))
        ps = [generator(z) for generator, z in zip(self.generators, zs[1:], strict=True)]
        return [Layer(*three) for three in zip(zs, qs, [*ps, None], strict=True)]

    def kl(self, layers: list[Layer]) -> list[Tensor]:
        """log q(z_i | z_{i-1}) - log p(z_i | z_{i+1}), and KL(q(z_L | z_{L-1}) || N(0, I))."""
        *below, top = layers
        return [*(layer.log_ratio() for layer in below), top.kl()]


class LadderNetwork(Hierarchy):
    """q(z_L | x) .. q(z_1 | z_2, x), precision-weighted.          Sonderby et al. 2016, section 2.2

    On the way up x gives each layer d_i and an opinion N(mu^_i, var^_i); on the way down it is
    merged with the generative model's, N(mu_p, var_p) given the sample above:
        1 / var = 1 / var^ + 1 / var_p,   mu = var (mu^ / var^ + mu_p / var_p)     equations 10, 11
    encoders: the body of each takes the features of the one below, the first x.  All KL_i are
    exact, given the sample above.  Without the paper's batch normalisation.
    """

    def posterior(self, batch: Batch) -> list[Gaussian]:
        """The opinions mu^, logvar^ of all layers, from z_1's up."""
        opinions, features = [], batch.seen
        for encoder in self.encoders:
            features = encoder.body(features)
            opinions.append(encoder.heads(features))
        return opinions

    def layers(self, posterior: list[Gaussian], sample: Callable) -> list[Layer]:
        """The top from x alone, the others from x and the sample above."""
        *opinions, q = posterior
        found = [Layer(sample(*q), q, None)]
        for opinion, generator in zip(opinions[::-1], self.generators[::-1], strict=True):
            p = generator(found[0].z)
            q = merged(opinion, p)
            found.insert(0, Layer(sample(*q), q, p))
        return found

    def kl(self, layers: list[Layer]) -> list[Tensor]:
        """KL(q(z_i | z_{i+1}, x) || p(z_i | z_{i+1}))."""
        return [layer.kl() for layer in layers]


def merged(a: Gaussian, b: Gaussian) -> Gaussian:
    """The product of two Gaussians, normalised: precisions add up, means are weighted by them.

    log var = b - softplus(b - a) for log-variances a, b: nothing overflows.
    """
    (mu_a, a_logvar), (mu_b, b_logvar) = a, b
    apart = b_logvar - a_logvar
    mu = ops.sigmoid(apart) * mu_a + ops.sigmoid(-apart) * mu_b
    return mu, b_logvar - ops.softplus(apart)


def _sampler(draw: Draw) -> Callable[[Tensor, Tensor], Tensor]:
    """mu, logvar -> a sample, with new noise at every call."""
    return lambda mu, logvar: ops.reparameterize(mu, logvar, draw.normal(mu.shape[1]))


def _log(kls: list[Tensor]) -> dict[str, Any]:
    return {f"kl_{i}": kl.data for i, kl in enumerate(kls, 1)}


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


# ------------------------------------------------------------------------------------- as arguments
@dataclass(frozen=True)
class Hierarchical(Spec):
    """Latents in layers; z_1 has latent_dim numbers.

    above: the sizes of z_2 .. z_L, "10:5" for three layers in all.
    """

    name: ClassVar[str] = "hierarchical"
    refuses: ClassVar[dict[str, str]] = {
        "prior": "its layers are each other's, and the top one's is N(0, I)",
        "flow": "the posteriors of its layers must be Gaussian",
        "own": "each layer has networks of its own",
        **refused("free_bits is counted layer by layer", "grouped", "capacity"),
    }
    _model: ClassVar[type[Hierarchy]] = Hierarchy
    above: str = "10"

    def __post_init__(self) -> None:
        texts = self.above.split(":")
        if not all(text.isdigit() and int(text) >= 1 for text in texts):
            raise ValueError(f"sizes of layers must be whole numbers >= 1, got {self.above!r}")

    @property
    def sizes(self) -> list[int]:
        """Of z_2 .. z_L."""
        return [int(text) for text in self.above.split(":")]

    def build(self, parts: Parts) -> Hierarchy:
        """The model, with first weights."""
        encoder, decoder = parts.networks()
        assert isinstance(encoder, GaussianEncoder)
        features = encoder.mu.weight.shape[0]
        sizes = [parts.latent_dim, *self.sizes]
        below = self._below(features, sizes, parts)
        encoders = [_rung(*pair, parts) for pair in zip(below, sizes[1:], strict=True)]
        generators = [_rung(*pair, parts) for pair in zip(sizes[1:], sizes, strict=False)]
        return self._model(
            [encoder, *encoders], generators, decoder, sizes, likelihood=parts.likelihood,
            free_bits=parts.free_bits,
        )  # fmt: skip

    def _below(self, features: int, sizes: list[int], parts: Parts) -> list[int]:
        """How many numbers each encoder but the first takes."""
        raise NotImplementedError


@dataclass(frozen=True)
class BottomUp(Hierarchical):
    """Spelled "bottomup:10": each layer's posterior from the sample below, see BottomUpNetwork."""

    name: ClassVar[str] = "bottomup"
    _model: ClassVar[type[Hierarchy]] = BottomUpNetwork

    def _below(self, features: int, sizes: list[int], parts: Parts) -> list[int]:
        return sizes[:-1]


@dataclass(frozen=True)
class Ladder(Hierarchical):
    """Spelled "ladder:10": posteriors from the top down, see LadderNetwork."""

    name: ClassVar[str] = "ladder"
    _model: ClassVar[type[Hierarchy]] = LadderNetwork

    def _below(self, features: int, sizes: list[int], parts: Parts) -> list[int]:
        return [features, *[_width(parts)] * (len(sizes) - 2)]


def _width(parts: Parts) -> int:
    """Units of the hidden layers between the latents: as the encoder's last."""
    return parts.hidden[-1] if parts.hidden else 64


def _rung(inputs: int, outputs: int, parts: Parts) -> GaussianEncoder:
    """From one layer to the next: one hidden layer and two heads."""
    options: dict[str, Any] = {"rng": parts.rng, "dtype": parts.dtype}
    activation = parts.activation
    activation = ACTIVATIONS[activation] if isinstance(activation, str) else activation
    width = _width(parts)
    body = Sequential(Linear(inputs, width, **options), activation)
    return GaussianEncoder(body, width, outputs, **options)
