"""optim.py: what the optimizers do with a network; one step is tested beside its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae import Tensor, nn, ops, optim

MAKE = [
    lambda parameters: optim.Adam(parameters, 0.1),
    lambda parameters: optim.Adam(parameters, 0.1, betas=(0.7, 0.8), eps=1e-3, weight_decay=0.2),
    lambda parameters: optim.SGD(parameters, 0.1),
    lambda parameters: optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.2),
]


def two(dtype=np.float64):
    return [Tensor(np.array([1.0, -2.0], dtype), True), Tensor(np.ones((2, 2), dtype), True)]


def run(optimizer, parameters, steps, *, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for tensor in parameters:
            tensor.grad = rng.normal(size=tensor.shape).astype(tensor.dtype)
        optimizer.step(scale=scale)


def adam_by_hand(parameters, steps, lr, betas, eps, weight_decay, scale):
    rng = np.random.default_rng(0)
    values = [t.data.copy() for t in parameters]
    m, v = [np.zeros_like(p) for p in values], [np.zeros_like(p) for p in values]
    for t in range(1, steps + 1):
        for i, p in enumerate(values):
            g = scale * rng.normal(size=p.shape)
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            m_hat, v_hat = m[i] / (1 - betas[0] ** t), v[i] / (1 - betas[1] ** t)
            values[i] = p - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)
    return values


@pytest.mark.parametrize(
    ("betas", "eps", "decay"), [((0.9, 0.999), 1e-8, 0), ((0.7, 0.8), 0.1, 0.2)]
)
def test_adam_agrees_with_plain_numpy(betas, eps, decay):
    parameters = two()
    expected = adam_by_hand(parameters, 5, 0.1, betas, eps, decay, scale=0.3)
    optimizer = optim.Adam(parameters, 0.1, betas=betas, eps=eps, weight_decay=decay)
    run(optimizer, parameters, 5, scale=0.3)
    for tensor, value in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(tensor.data, value, rtol=1e-11)


def test_adam_three_steps_by_hand():
    """The fractions are derived in test_kernels_optimizer.py."""
    x = Tensor(np.zeros(1), True)
    optimizer = optim.Adam([x], 0.1, betas=(0.5, 0.75), eps=1e-14)
    for gradient in (1.0, 2.0, -1.0):
        x.grad = np.array([gradient])
        optimizer.step()
    steps = [1, 5 / 3 / np.sqrt(19 / 7), 1 / 7 / np.sqrt(73 / 37)]
    np.testing.assert_allclose(x.data, [-0.1 * sum(steps)], rtol=1e-12)


def test_sgd_three_steps_by_hand():
    """velocity 1, 2.5, 0.25; then with decay on the parameter."""
    x = Tensor(np.zeros(1), True)
    optimizer = optim.SGD([x], 0.1, momentum=0.5)
    for gradient in (1.0, 2.0, -1.0):
        x.grad = np.array([gradient])
        optimizer.step()
    np.testing.assert_allclose(x.data, [-0.1 * (1 + 2.5 + 0.25)], rtol=1e-12)
    y = Tensor(np.full(1, 2.0), True)
    y.grad = np.zeros(1)
    optim.SGD([y], 0.1, weight_decay=0.5).step()
    np.testing.assert_allclose(y.data, [2 - 0.1 * 0.5 * 2])


@pytest.mark.parametrize("make", MAKE)
def test_parameters_are_updated_in_place(make):
    parameters = two(np.float32)
    arrays = [tensor.data for tensor in parameters]
    run(make(parameters), parameters, 2)
    for tensor, array in zip(parameters, arrays, strict=True):
        assert tensor.data is array
        assert array.dtype == np.float32


@pytest.mark.parametrize("make", MAKE)
def test_a_parameter_without_a_gradient_rests(make):
    parameters = two()
    optimizer, before = make(parameters), parameters[1].data.copy()
    parameters[0].grad = np.ones(2)
    optimizer.step()
    np.testing.assert_array_equal(parameters[1].data, before)
    assert optimizer.steps == 1
    optimizer.zero_grad()
    assert parameters[0].grad is None


@pytest.mark.parametrize("make", MAKE)
def test_a_loaded_state_continues_to_the_same_bits(make):
    whole, stopped = two(), two()
    run(make(whole), whole, 4)
    first = make(stopped)
    rng = np.random.default_rng(0)
    gradients = [[rng.normal(size=t.shape) for t in stopped] for _ in range(4)]
    second = make(stopped)
    for step, values in enumerate(gradients):
        optimizer = first if step < 2 else second
        if step == 2:
            second.load_state_dict({k: a.copy() for k, a in first.state_dict().items()})
        for tensor, value in zip(stopped, values, strict=True):
            tensor.grad = value
        optimizer.step()
    for tensor, expected in zip(stopped, whole, strict=True):
        np.testing.assert_array_equal(tensor.data, expected.data)


def test_state_has_names():
    parameters = two()
    assert list(optim.Adam(parameters).state_dict()) == ["m.0", "m.1", "v.0", "v.1", "steps"]
    assert list(optim.SGD(parameters).state_dict()) == ["velocity.0", "velocity.1", "steps"]


def test_a_state_of_other_parameters_is_refused():
    adam = optim.Adam(two())
    for other in (optim.SGD(two()), optim.Adam(two()[:1]), optim.Adam(two()[::-1])):
        with pytest.raises(ValueError, match="belongs to other parameters"):
            adam.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.Adam([]), "the optimizer got no parameters"),
        (lambda p: optim.Adam(p, 0.0), "learning_rate must be positive, got 0.0"),
        (lambda p: optim.SGD(p, np.nan), "learning_rate must be positive, got nan"),
        (lambda p: optim.Adam(p, betas=(1.0, 0.9)), r"betas must be in \[0, 1\)"),
        (lambda p: optim.Adam(p, betas=(0.9, -0.1)), r"betas must be in \[0, 1\)"),
        (lambda p: optim.Adam(p, eps=0.0), "eps > 0"),
        (lambda p: optim.SGD(p, momentum=1.0), r"momentum must be in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(two())


def test_learning_rate_may_change_between_steps():
    x = Tensor(np.zeros(1), True)
    optimizer = optim.SGD([x], 1.0)
    for learning_rate in (1.0, 0.5, 0.0):
        optimizer.learning_rate, x.grad = learning_rate, np.ones(1)
        optimizer.step()
    np.testing.assert_array_equal(x.data, [-1.5])


def test_gradient_norm_is_that_of_all_gradients_together():
    parameters = two(np.float32)
    assert optim.gradient_norm(parameters) == 0
    parameters[0].grad = np.array([3.0, 0.0], np.float32)
    assert optim.gradient_norm(parameters) == 3
    parameters[1].grad = np.full((2, 2), 2.0, np.float32)
    assert optim.gradient_norm(parameters) == 5


@pytest.mark.parametrize("make", MAKE)
def test_a_small_regression_is_learned(make, rng):
    layer, x = nn.Linear(3, 1, rng=rng, dtype=np.float64), rng.normal(size=(64, 3))
    y = x @ np.array([[1.0], [-2.0], [0.5]]) + 0.3
    optimizer, losses = make(layer.parameters()), []
    for _ in range(150):
        loss = ops.mean((layer(x) - y) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ---------------------------------------------------------------------------------------- groups
def groups_of(parameters, **options):
    return [optim.Group(parameters, **options)]


def test_a_group_moves_as_by_an_optimizer_of_its_own():
    """Two parameters in one Adam with a group: the same bits as two Adams."""
    apart, together = two(np.float32), two(np.float32)
    main = optim.Adam(apart[:1], 0.1, weight_decay=0.2)
    other = optim.Adam(apart[1:], 0.01, betas=(0.5, 0.9))
    both = optim.Adam(
        together, 0.1, weight_decay=0.2,
        groups=groups_of(together[1:], learning_rate=0.01, betas=(0.5, 0.9)),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for step in range(4):
        main.learning_rate = both.learning_rate = 0.1 / (1 + step)
        for one, same in zip(apart, together, strict=True):
            one.grad = rng.normal(size=one.shape).astype(np.float32)
            same.grad = one.grad.copy()
        main.step(scale=0.5)
        other.step()  # clipping is for the parameters of no group
        both.step(scale=0.5)
    for one, same in zip(apart, together, strict=True):
        np.testing.assert_array_equal(one.data, same.data)
    assert both.main == together[:1]
    assert both.state_dict().keys() == optim.Adam(together).state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"betas": (0.5, 1.0)}, r"betas must be in \[0, 1\)"),
    ],
)
def test_a_groups_options_out_of_range_are_refused(options, message):
    parameters = two()
    with pytest.raises(ValueError, match=message):
        optim.Adam(parameters, groups=groups_of(parameters[1:], **options))


def test_a_group_of_other_parameters_is_refused():
    with pytest.raises(ValueError, match="group 1 has a parameter that the optimizer lacks"):
        optim.Adam(two(), groups=groups_of(two()))
