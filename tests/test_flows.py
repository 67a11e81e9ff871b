"""flows.py: one test for all flows, and what holds for some of them."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae import Tensor, devices, flows, gradcheck, ops
from tinyvae.tensor import no_grad

N, Z, C = 5, 4, 3
SPECS = {
    "planar": flows.Planar(3),
    "radial": flows.Radial(3),
    "coupling": flows.Coupling(3, hidden=7),
    "iaf": flows.InverseAutoregressive(2, hidden=7),
    "householder": flows.Householder(3),
    "sylvester": flows.Sylvester(2, reflections=3),
}
BY_BISECTION = ("planar", "sylvester")
each = pytest.mark.parametrize("kind", flows.KINDS)
amortized = pytest.mark.parametrize("features", [None, C], ids=["own", "amortized"])


def build(kind, rng, *, latent_dim=Z, features=None, size=0.5):
    """A flow far from its start: every parameter is moved."""
    flow = SPECS[kind].build(latent_dim, features, rng, np.float64)
    for tensor in flow.parameters():
        tensor.data = tensor.data + size * rng.standard_normal(tensor.shape)
    return flow


def inputs(rng, features, n=N, latent_dim=Z):
    return rng.normal(size=(n, latent_dim)), rng.normal(size=(n, C)) if features else None


def test_every_kind_is_tested():
    assert set(SPECS) == set(flows.KINDS)
    for kind, spec in SPECS.items():
        assert type(spec) is flows.KINDS[kind]


# ------------------------------------------------------------------------------- the base test
@each
@amortized
def test_gradients(kind, features, rng):
    """z2 and logdet together, with respect to z, the context and every parameter."""
    flow, (z, context) = build(kind, rng, features=features), inputs(rng, features)

    def both(z, *rest):
        z2, logdet = flow.forward(z, rest[0] if features else None)
        return ops.concatenate([z2, ops.reshape(logdet, (N, 1))])

    given = (z, context) if features else (z,)
    assert gradcheck(both, *given, *flow.parameters()) < 1e-6


@each
@amortized
def test_logdet_is_that_of_the_numerical_jacobian(kind, features, rng):
    flow, (z, context) = build(kind, rng, features=features), inputs(rng, features)
    jacobian, h = np.empty((N, Z, Z)), 1e-6
    for i in range(Z):
        step = h * np.eye(Z)[i]
        above, below = (flow.forward(z + s, context)[0].data for s in (step, -step))
        jacobian[:, :, i] = (above - below) / (2 * h)
    logdet = flow.forward(z, context)[1].data
    assert logdet.shape == (N,)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(jacobian)[1], rtol=1e-7, atol=1e-7)
    if kind != "householder":
        assert np.abs(logdet).max() > 0.1


@each
@amortized
def test_the_inverse_undoes_the_map(kind, features, rng):
    flow, (z, context) = build(kind, rng, features=features), inputs(rng, features)
    z2, logdet = flow.forward(z, context)
    back, logdet_back = flow.inverse(z2.data, context)
    np.testing.assert_allclose(back.data, z, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(logdet_back.data, -logdet.data, rtol=1e-8, atol=1e-8)
    assert np.abs(z2.data - z).max() > 0.1


@each
@pytest.mark.parametrize("size", [0.2, 0.4])
def test_a_density_pushed_through_integrates_to_one(kind, size):
    """log q(z2) = log N(z) + log |dz/dz2|, summed over a grid in two dimensions."""
    flow = build(kind, np.random.default_rng(1), latent_dim=2, size=size)
    axis, step = np.linspace(-10, 10, 501, retstep=True)
    z2 = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    with no_grad():
        z, logdet = (a.data for a in flow.inverse(z2))
    log_q = -0.5 * (z**2).sum(axis=1) - np.log(2 * np.pi) + logdet
    assert abs(np.exp(log_q).sum() * step**2 - 1) < 0.01


@each
@amortized
def test_it_starts_near_the_identity(kind, features, rng):
    """Where the gate of an IAF starts at 0.88, by its paper, it is near in this sense."""
    spec = flows.KINDS[kind]()
    flow = spec.build(Z, features, rng, np.float64)
    z, context = inputs(rng, features, n=50)
    z2, logdet = (a.data for a in flow.forward(z, context))
    if kind == "iaf":
        gate = 1 / (1 + np.exp(-2.0))
        np.testing.assert_allclose(z2, gate**spec.steps * z, rtol=1e-12)
        np.testing.assert_allclose(logdet, spec.steps * Z * np.log(gate), rtol=1e-12)
    else:
        assert np.abs(z2 - z).mean() < 0.05
        assert np.abs(logdet).mean() < 0.1


@each
@amortized
@pytest.mark.parametrize("n", [0, 1])
def test_few_rows_and_float32(kind, features, n):
    rng = np.random.default_rng(0)
    flow = flows.KINDS[kind]().build(Z, features, rng, np.float32)
    z, context = (None if a is None else a.astype(np.float32) for a in inputs(rng, features, n=n))
    z2, logdet = flow.forward(z, context)
    assert (z2.shape, z2.dtype) == ((n, Z), np.float32)
    assert (logdet.shape, logdet.dtype) == ((n,), np.float32)
    (ops.sum(z2) + ops.sum(logdet)).backward()
    back, logdet = flow.inverse(z2.data, context)
    assert (back.shape, back.dtype, logdet.dtype) == ((n, Z), np.float32, np.float32)
    np.testing.assert_allclose(back.data, z, rtol=1e-4, atol=1e-4)


@each
def test_huge_numbers_stay_finite(kind):
    """Invertible to the last bit: where softplus or tanh round, the volume stays above zero."""
    rng = np.random.default_rng(3)
    for size in (10, 50):
        flow = build(kind, rng, size=size).astype(np.float32)
        z = (10 * rng.standard_normal((200, Z))).astype(np.float32)
        z2, logdet = flow.forward(Tensor(z, True))
        loss = ops.sum(z2) + ops.sum(logdet)
        loss.backward()
        assert np.isfinite(loss.data)
        for tensor in flow.parameters():
            assert tensor.grad is None or np.isfinite(tensor.grad).all()


@each
def test_a_context_is_missed(kind, rng):
    flow = build(kind, rng, features=C)
    with pytest.raises(ValueError, match=r"features.*: it needs a context"):
        flow.forward(np.zeros((2, Z)))


@each
def test_every_row_has_its_own_context(kind, rng):
    """One row at a time gives what all rows at once give."""
    flow, (z, context) = build(kind, rng, features=C), inputs(rng, C)
    z2, logdet = flow.forward(z, context)
    for i in range(N):
        one, alone = flow.forward(z[i : i + 1], context[i : i + 1])
        np.testing.assert_allclose(one.data[0], z2.data[i], rtol=1e-12)
        np.testing.assert_allclose(alone.data[0], logdet.data[i], rtol=1e-12, atol=1e-14)
    other, _ = flow.forward(z, context[::-1].copy())
    assert np.abs(other.data - z2.data).max() > 1e-3


@each
def test_the_generator_decides_the_first_weights(kind):
    one, same, other = (
        flows.KINDS[kind]().build(Z, C, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(array, same.state_dict()[name])
    assert any((a != other.state_dict()[n]).any() for n, a in one.state_dict().items())


@each
def test_only_an_exact_inverse_has_a_gradient(kind, rng):
    flow = build(kind, rng, size=0.3)
    z, logdet = flow.inverse(Tensor(rng.normal(size=(N, Z)), True))
    assert z.requires_grad == (kind not in BY_BISECTION)
    assert logdet.requires_grad == (kind not in (*BY_BISECTION, "householder"))
    if z.requires_grad:
        assert gradcheck(lambda z2, *_: flow.inverse(z2)[0], z.data, *flow.parameters()) < 1e-6


@each
def test_the_same_on_a_gpu(kind, gpu, rng):
    flow, (z, context) = build(kind, rng, features=C), inputs(rng, C)

    def results(device):
        flow.to(device)
        here = [devices.move(a, device) for a in (z, context)]
        z2, logdet = flow.forward(Tensor(here[0], True), here[1])
        (ops.sum(z2 * z2) + ops.sum(logdet)).backward()
        found = [z2, logdet, *flow.inverse(z2.data, here[1])]
        return [a.numpy() for a in found] + [devices.to_host(t.grad) for t in flow.parameters()]

    expected = results("cpu")
    for one, other in zip(results("cuda"), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


# --------------------------------------------------------------------------------- one by one
def test_planar_and_radial_are_the_formulas_of_the_paper(rng):
    z = rng.normal(size=(N, Z))
    flow = build("planar", rng).flows[0]
    u, w, b = (tensor.data[0] for tensor in flow.raw())
    u = u + (np.log1p(np.exp(w @ u)) - 1 - w @ u) * w / (w @ w)
    t = np.tanh(z @ w + b)
    z2, logdet = flow.forward(z)
    np.testing.assert_allclose(z2.data, z + t[:, None] * u, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logdet.data, np.log(abs(1 + (1 - t * t) * (u @ w))), rtol=1e-4)

    flow = build("radial", rng).flows[0]
    z0, a, b = (tensor.data[0] for tensor in flow.raw())
    alpha = np.log1p(np.exp(a))
    beta, r = np.log1p(np.exp(b)) - alpha, np.linalg.norm(z - z0, axis=1)
    h, slope = 1 / (alpha + r), -1 / (alpha + r) ** 2
    expected = (Z - 1) * np.log1p(beta * h) + np.log1p(beta * h + beta * slope * r)
    z2, logdet = flow.forward(z)
    np.testing.assert_allclose(z2.data, z + beta * h[:, None] * (z - z0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logdet.data, expected, rtol=1e-4)


def test_sylvester_is_the_formula_of_the_paper(rng):
    flow, z = build("sylvester", rng).flows[0], rng.normal(size=(N, Z))
    v, matrix, r, s, b = (tensor.data[0] for tensor in flow.raw())
    Q = np.eye(Z)
    for row in v:
        Q = Q @ (np.eye(Z) - 2 * np.outer(row, row) / (row @ row))
    np.testing.assert_allclose(Q @ Q.T, np.eye(Z), atol=1e-12)
    R = np.triu(matrix, 1) + np.diag(np.tanh(r))
    S = np.triu(matrix.T, 1) + np.diag(np.tanh(s))
    expected = z + np.tanh(z @ Q @ S.T + b) @ R.T @ Q.T
    np.testing.assert_allclose(flow.forward(z)[0].data, expected, rtol=1e-4)


def test_planar_at_one_dimension_is_a_sylvester(rng):
    """The latter is the former's generalization: they agree where both are defined."""
    planar = flows.PlanarFlow(1, None, rng, np.float64)
    sylvester = flows.SylvesterFlow(1, None, rng, np.float64, reflections=2)
    w, r = 0.8, 0.6
    planar.raw.own[1].data[:] = w
    goal = r / w * w  # w.u^ wanted: softplus(w.u) - 1 = r w
    planar.raw.own[0].data[:] = np.log(np.expm1(goal * w + 1)) / w
    sylvester.raw.own[2].data[:], sylvester.raw.own[3].data[:] = np.arctanh(r), np.arctanh(w)
    z = rng.normal(size=(N, 1))
    for one, other in zip(planar.forward(z), sylvester.forward(z), strict=True):
        np.testing.assert_allclose(one.data, other.data, rtol=1e-4)


def test_iaf_and_coupling_are_triangular(rng):
    """d z2_i / d z_j = 0 for j > i: what the logdet of a single step relies on."""
    step = flows.InverseAutoregressiveFlow(Z, None, rng, np.float64, hidden=50)
    for tensor in step.parameters():
        tensor.data = tensor.data + rng.standard_normal(tensor.shape)
    z = rng.normal(size=(1, Z))
    before = step.forward(z)[0].data[0]
    for j in range(Z):
        moved = z.copy()
        moved[0, j] += 1
        changed = step.forward(moved)[0].data[0] != before
        assert not changed[:j].any()
        assert changed[j:].all()


def test_a_householder_flow_turns_the_covariance(rng):
    """mu and a diagonal become any Gaussian: covariance U D U^T with orthogonal U."""
    flow = build("householder", rng)
    U = flow.forward(np.eye(Z))[0].data.T
    np.testing.assert_allclose(U @ U.T, np.eye(Z), atol=1e-12)
    covariance = U @ np.diag([1.0, 2, 3, 4]) @ U.T
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.1


def test_all_dimensions_get_their_turn(rng):
    for kind in ("coupling", "iaf"):
        flow = build(kind, rng)
        turns = sum(isinstance(part, flows.Reverse) for part in flow.flows)
        assert turns % 2 == 0
        z = rng.normal(size=(1, Z))
        before = flow.forward(z)[0].data
        for j in range(Z):
            moved = z.copy()
            moved[0, j] += 1
            changed = flow.forward(moved)[0].data != before
            assert changed.sum() > 1, (kind, j)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="steps of a flow must be a whole number >= 1, got 0"):
        flows.Planar(0)
    with pytest.raises(ValueError, match=r"hidden of a flow must be .* got 2.5"):
        flows.Coupling(2, hidden=2.5)
    with pytest.raises(ValueError, match="latent_dim must be >= 2, got 1"):
        flows.Coupling().build(1)


def test_an_unfinished_flow_says_so():
    with pytest.raises(NotImplementedError, match="Flow defines no forward"):
        flows.Flow()(1)
    with pytest.raises(NotImplementedError, match="Flow has no inverse"):
        flows.Flow().inverse(1)
    with pytest.raises(NotImplementedError, match="FlowSpec builds nothing"):
        flows.FlowSpec().build(1)
