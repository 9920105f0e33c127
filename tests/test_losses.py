"""cfpo_verl.losses: values worked by hand, then the properties that define CFPO."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfpo_verl.losses import MAX_LOG_RATIO, cfpo_token_loss

SIZES = st.floats(0.01, 10)
SIGNS = st.sampled_from([-1.0, 1.0])
EPSILONS = st.floats(0.05, 0.9)


def loss_at(ratio: float, advantage: float, epsilon: float = 0.2) -> float:
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log()
    return cfpo_token_loss(log_ratio, torch.full_like(log_ratio, advantage), epsilon).item()


def gradient_at(ratio: float, advantage: float, epsilon: float = 0.2) -> float:
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    cfpo_token_loss(log_ratio, torch.full_like(log_ratio, advantage), epsilon).sum().backward()
    return log_ratio.grad.item()


# At epsilon = 0.2 the penalty is 2.5 * |A| * (r - 1)**2.
#   A = 2,  r = 1.2: -2.4 + 5.0 * 0.04 = -2.2
#   A = -1, r = 1.5:  1.5 + 2.5 * 0.25 =  2.125
#   A = -1, r = 0.5:  0.5 + 2.5 * 0.25 =  1.125
@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    [
        pytest.param(2.0, 1.2, -2.2, id="good-token-at-optimum"),
        pytest.param(-1.0, 1.5, 2.125, id="bad-token-made-likelier"),
        pytest.param(-1.0, 0.5, 1.125, id="bad-token-made-rarer"),
        pytest.param(0.0, 3.0, 0.0, id="no-signal"),
        pytest.param(1.5, 1.0, -1.5, id="on-policy"),
    ],
)
def test_matches_hand_worked_values(advantage, ratio, expected):
    assert loss_at(ratio, advantage) == pytest.approx(expected)


# Gradient with respect to log pi of the maximised objective, A * r * (1 - sign(A) * (r - 1) / 0.2):
#   A = 1,  r = 0.5:  0.5 * (1 + 2.5) =  1.75
#   A = -1, r = 2:   -2.0 * (1 + 5)   = -12
@pytest.mark.parametrize(
    ("advantage", "ratio", "objective_gradient"),
    [
        (1, 0.5, 1.75),
        (1, 0.8, 1.6),
        (1, 1.0, 1.0),
        (1, 1.2, 0.0),
        (1, 1.4, -1.4),
        (1, 2.0, -8.0),
        (-1, 0.5, 0.75),
        (-1, 0.8, 0.0),
        (-1, 1.0, -1.0),
        (-1, 1.2, -2.4),
        (-1, 2.0, -12.0),
    ],
)
def test_matches_reference_gradients(advantage, ratio, objective_gradient):
    assert gradient_at(ratio, advantage) == pytest.approx(-objective_gradient, abs=1e-12)


@given(size=SIZES, sign=SIGNS, epsilon=EPSILONS)
def test_slope_changes_sign_only_at_the_edge_of_the_trust_region(size, sign, epsilon):
    edge = 1 + sign * epsilon
    assert gradient_at(edge, sign * size, epsilon) == pytest.approx(0, abs=1e-9)
    assert gradient_at(0.9 * edge, sign * size, epsilon) < 0 < gradient_at(1.1 * edge, sign * size, epsilon)


@given(size=SIZES, sign=SIGNS, epsilon=EPSILONS, scale=st.floats(0.1, 10), ratio=st.floats(0.1, 5))
def test_is_homogeneous_in_the_advantage(size, sign, epsilon, scale, ratio):
    scaled = loss_at(ratio, scale * sign * size, epsilon)
    assert scaled == pytest.approx(scale * loss_at(ratio, sign * size, epsilon), rel=1e-9, abs=1e-12)


@given(advantage=st.floats(-10, 10), epsilon=EPSILONS)
def test_on_policy_gradient_is_the_policy_gradient(advantage, epsilon):
    assert gradient_at(1.0, advantage, epsilon) == pytest.approx(-advantage, abs=1e-12)


def test_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    log_ratio = (torch.randn(3, 4, dtype=torch.float64) / 2).requires_grad_()
    advantages = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: cfpo_token_loss(x, advantages, 0.2), [log_ratio])


@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stays_finite_when_policies_are_far_apart(log_ratio, dtype):
    loss = cfpo_token_loss(torch.tensor([[log_ratio]], dtype=dtype), torch.ones(1, 1, dtype=dtype), epsilon=0.2)
    assert loss.isfinite().all()


def test_holds_the_log_ratio_at_its_limit():
    at_limit = math.exp(MAX_LOG_RATIO)
    assert loss_at(math.exp(30), 1.0) == pytest.approx(-at_limit + 2.5 * (at_limit - 1) ** 2)


def test_advantages_are_constants():
    advantages = torch.ones(1, 2, requires_grad=True)
    cfpo_token_loss(torch.zeros(1, 2, requires_grad=True), advantages, 0.2).sum().backward()
    assert advantages.grad is None


@pytest.mark.parametrize("epsilon", [0.0, -0.1, math.nan])
def test_rejects_an_epsilon_without_meaning(epsilon):
    with pytest.raises(ValueError, match=f"epsilon must be positive, got {epsilon}"):
        cfpo_token_loss(torch.zeros(1, 1), torch.zeros(1, 1), epsilon)


def test_rejects_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"log_ratio \(4, 8\) and advantages \(4, 1\) differ"):
        cfpo_token_loss(torch.zeros(4, 8), torch.zeros(4, 1), epsilon=0.2)
