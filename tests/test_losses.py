"""cfpo_verl.losses: values worked by hand, the plain formula under autograd, then what defines the losses."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cfpo_verl.losses import (
    MAX_LOG_RATIO,
    STATISTICS,
    NonFiniteError,
    cfpo_sequence_loss,
    cfpo_token_loss,
    check_finite,
    drpo_token_loss,
)

SIZES = st.floats(0.01, 10)
SIGNS = st.sampled_from([-1.0, 1.0])
EPSILONS = st.floats(0.05, 0.9)
ADVANTAGES = st.floats(-10, 10)
RATIOS = st.floats(0.05, 5)
FLOATS_32 = st.floats(width=32, allow_nan=False, allow_infinity=False)

EPS = {"epsilon_low": 0.2, "epsilon_high": 0.2}
ASYMMETRIC = {"epsilon_low": 0.2, "epsilon_high": 0.28}
TAIL = {**EPS, "tail_start": 0.4}

# Every loss with options, to run what holds for all of them.
LOSSES = [
    pytest.param(cfpo_token_loss, EPS, id="cfpo"),
    pytest.param(cfpo_token_loss, ASYMMETRIC, id="cfpo-asymmetric"),
    pytest.param(cfpo_token_loss, TAIL, id="cfpo-tail"),
    pytest.param(cfpo_sequence_loss, EPS, id="cfpo_sequence"),
    pytest.param(cfpo_sequence_loss, TAIL, id="cfpo_sequence-tail"),
    pytest.param(drpo_token_loss, {"delta": 12.5}, id="drpo"),
    pytest.param(drpo_token_loss, {"delta": 0.1}, id="drpo-narrow"),
]


def one_token(loss, ratio: float, advantage: float, old_prob: float = 1.0, **options) -> tuple[float, float]:
    """Return value and gradient with respect to log_prob of a response of one token, in float64."""
    old = torch.tensor([[old_prob]], dtype=torch.float64).log()
    new = (old + math.log(ratio)).requires_grad_()
    values = loss(new, old, torch.full_like(old, advantage), torch.ones(1, 1), **options).values
    values.sum().backward()
    return values.item(), new.grad.item()


def make_batch(dtype=torch.float64, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """log_prob, old_log_prob, advantages, mask: responses of 6, 4, 2, 0 and 5 tokens, ratios on both sides of 1."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(5, 6, dtype=dtype, generator=generator) * 3
    new = old + torch.randn(5, 6, dtype=dtype, generator=generator) / 2
    advantages = torch.tensor([1.5, -0.7, 0, 1, -2], dtype=dtype).unsqueeze(1).repeat(1, 6)
    return new.requires_grad_(), old, advantages, torch.arange(6) < torch.tensor([6, 4, 2, 0, 5]).unsqueeze(1)


def plain(loss, log_prob, old_log_prob, advantages, mask, **options) -> torch.Tensor:
    """The formulas as the docstrings state them, left to autograd."""
    log_ratio = torch.where(mask, log_prob - old_log_prob, 0)
    if loss is cfpo_sequence_loss:
        mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(mask, mean.detach() + log_prob - log_prob.detach(), 0)
    ratio = log_ratio.exp()
    if loss is drpo_token_loss:
        curvature = old_log_prob.exp() / options["delta"]
    else:
        curvature = torch.where(advantages > 0, 1 / options["epsilon_high"], 1 / options["epsilon_low"])
    distance, tail_start = (ratio - 1).abs(), options.get("tail_start")
    penalty = distance.square() / 2
    if tail_start is not None:
        penalty = torch.where(distance <= tail_start, penalty, tail_start * distance - tail_start**2 / 2)
    return torch.where(mask, -advantages * ratio + advantages.abs() * curvature * penalty, 0)


# At epsilon = 0.2 the penalty is 2.5 * |A| * (r - 1)**2.
#   A = 2,  r = 1.2: -2.4 + 5.0 * 0.04 = -2.2
#   A = -1, r = 1.5:  1.5 + 2.5 * 0.25 =  2.125
#   A = -1, r = 0.5:  0.5 + 2.5 * 0.25 =  1.125
# epsilon_high = 0.28 (A > 0):           -1.28 + 0.0784 / 0.56 = -1.14
# tail from 0.4, A = 1, r = 2:            -2 + 5 * (0.4 - 0.08) = -0.4
# delta = 0.1, p_old = 0.5, A = 1, r = 1.4: -1.4 + 0.5 * 0.16 / 0.2 = -1.0
@pytest.mark.parametrize(
    ("loss", "options", "advantage", "ratio", "expected"),
    [
        pytest.param(cfpo_token_loss, EPS, 2.0, 1.2, -2.2, id="good-token-at-optimum"),
        pytest.param(cfpo_token_loss, EPS, -1.0, 1.5, 2.125, id="bad-token-made-likelier"),
        pytest.param(cfpo_token_loss, EPS, -1.0, 0.5, 1.125, id="bad-token-made-rarer"),
        pytest.param(cfpo_token_loss, EPS, 0.0, 3.0, 0.0, id="no-signal"),
        pytest.param(cfpo_token_loss, EPS, 1.5, 1.0, -1.5, id="on-policy"),
        pytest.param(cfpo_token_loss, ASYMMETRIC, 1.0, 1.28, -1.14, id="upper-half-width"),
        pytest.param(cfpo_token_loss, ASYMMETRIC, -1.0, 1.5, 2.125, id="lower-half-width"),
        pytest.param(cfpo_token_loss, TAIL, 1.0, 2.0, -0.4, id="in-the-tail"),
        pytest.param(cfpo_token_loss, TAIL, -1.0, 0.7, 0.925, id="before-the-tail"),
        pytest.param(cfpo_sequence_loss, EPS, -1.0, 1.5, 2.125, id="sequence-of-one-token"),
        pytest.param(drpo_token_loss, {"delta": 0.1, "old_prob": 0.5}, 1.0, 1.4, -1.0, id="drpo"),
    ],
)
def test_matches_hand_worked_values(loss, options, advantage, ratio, expected):
    assert one_token(loss, ratio, advantage, **options)[0] == pytest.approx(expected)


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
    assert one_token(cfpo_token_loss, ratio, advantage, **EPS)[1] == pytest.approx(-objective_gradient, abs=1e-12)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_value_and_slope_are_those_of_the_formula(loss, options):
    """The slope is written by hand; here autograd derives it."""
    new, old, advantages, mask = make_batch()
    again = new.detach().clone().requires_grad_()
    ours, expected = (
        loss(new, old, advantages, mask, **options).values,
        plain(loss, again, old, advantages, mask, **options),
    )
    torch.testing.assert_close(ours, expected)
    (ours * old).sum().backward()
    (expected * old).sum().backward()
    torch.testing.assert_close(new.grad, again.grad)
    assert new.grad.any()


@pytest.mark.parametrize(
    ("loss", "options"), [(cfpo_token_loss, EPS), (cfpo_token_loss, ASYMMETRIC), (drpo_token_loss, {"delta": 0.1})]
)
def test_gradient_agrees_with_finite_differences(loss, options):
    new, old, advantages, mask = make_batch()
    assert torch.autograd.gradcheck(lambda x: loss(x, old, advantages, mask, **options).values, [new])


@given(size=SIZES, sign=SIGNS, low=EPSILONS, high=EPSILONS)
def test_slope_changes_sign_only_at_the_edge_of_the_trust_region(size, sign, low, high):
    edge = 1 + high if sign > 0 else 1 - low

    def slope(ratio):
        return one_token(cfpo_token_loss, ratio, sign * size, epsilon_low=low, epsilon_high=high)[1]

    assert slope(edge) == pytest.approx(0, abs=1e-9)
    assert slope(0.9 * edge) < 0 < slope(1.1 * edge)


@given(size=SIZES, sign=SIGNS, delta=st.floats(0.01, 0.4))
def test_drpo_turns_where_the_probability_has_moved_by_delta(size, sign, delta):
    edge = 1 + sign * delta / 0.5

    def slope(ratio):
        return one_token(drpo_token_loss, ratio, sign * size, old_prob=0.5, delta=delta)[1]

    assert slope(edge) == pytest.approx(0, abs=1e-9)
    assert slope(0.9 * edge) < 0 < slope(1.1 * edge)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@given(advantage=ADVANTAGES, scale=st.floats(0.1, 10), ratio=RATIOS)
def test_is_homogeneous_in_the_advantage(loss, options, advantage, scale, ratio):
    value, slope = one_token(loss, ratio, advantage, **options)
    assert one_token(loss, ratio, scale * advantage, **options) == (
        pytest.approx(scale * value, rel=1e-9, abs=1e-12),
        pytest.approx(scale * slope, rel=1e-9, abs=1e-12),
    )


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@given(advantage=ADVANTAGES)
def test_on_policy_it_is_the_policy_gradient(loss, options, advantage):
    assert one_token(loss, 1.0, advantage, **options) == (
        pytest.approx(-advantage, abs=1e-12),
        pytest.approx(-advantage, abs=1e-12),
    )


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@given(advantage=ADVANTAGES, a=RATIOS, b=RATIOS, share=st.floats(0, 1))
def test_is_convex_in_the_ratio(loss, options, advantage, a, b, share):
    def value(ratio):
        return one_token(loss, ratio, advantage, **options)[0]

    between = value(share * a + (1 - share) * b)
    assert between <= share * value(a) + (1 - share) * value(b) + 1e-9


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_never_matters(loss, options, garbage):
    clean, dirty = make_batch(torch.float32), make_batch(torch.float32)
    mask = clean[-1]
    with torch.no_grad():
        for tensor in dirty[:3]:
            tensor[~mask] = garbage
    ours, theirs = loss(*clean, **options), loss(*dirty, **options)
    ours.values.sum().backward()
    theirs.values.sum().backward()
    assert ours.values.equal(theirs.values)
    assert ours.statistics.equal(theirs.statistics)
    assert clean[0].grad.equal(dirty[0].grad)
    assert not dirty[0].grad[~mask].any()
    assert not theirs.values[~mask].any()


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@given(new=FLOATS_32, old=FLOATS_32, advantage=st.floats(-1e9, 1e9))
@example(new=3e38, old=-3e38, advantage=1.0)  # differences overflow, in both directions
def test_is_finite_for_any_finite_input(loss, options, new, old, advantage):
    log_prob = torch.tensor([[new, old]], requires_grad=True)
    values = loss(
        log_prob, torch.tensor([[old, new]]), torch.full((1, 2), advantage), torch.ones(1, 2), **options
    ).values
    values.sum().backward()
    assert values.isfinite().all()
    assert log_prob.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32_whatever_comes_in(loss, options, dtype):
    half = [tensor.detach().to(dtype) for tensor in make_batch()[:3]]
    mask = make_batch()[3]
    log_prob = half[0].requires_grad_()
    ours, exact = loss(log_prob, *half[1:], mask, **options), loss(*[t.detach().float() for t in half], mask, **options)
    ours.values.sum().backward()
    assert ours.values.dtype == torch.float32
    assert ours.values.equal(exact.values)
    assert log_prob.grad.dtype == dtype


def test_holds_the_log_ratio_at_its_limit():
    at_limit = math.exp(MAX_LOG_RATIO)
    value, slope = one_token(cfpo_token_loss, math.exp(30), 1.0, **EPS)
    assert value == pytest.approx(-at_limit + 2.5 * (at_limit - 1) ** 2)
    assert slope == 0


@pytest.mark.parametrize("loss", [cfpo_token_loss, cfpo_sequence_loss])
@pytest.mark.parametrize(
    ("log_ratio", "held"), [(17.0, False), (19.0, False), (19.99, False), (20.0, True), (21.0, True)]
)
def test_the_parabola_has_its_slope_up_to_the_limit(loss, log_ratio, held):
    log_prob, one = torch.tensor([[log_ratio]], requires_grad=True), torch.ones(1, 1)
    token_loss = loss(log_prob, 0 * one, one, one, **EPS)
    token_loss.values.sum().backward()
    ratio = math.exp(log_ratio)
    assert log_prob.grad.item() == pytest.approx(0 if held else ((ratio - 1) / 0.2 - 1) * ratio, rel=1e-5)
    assert token_loss.statistics[STATISTICS.index("corrective")] == (not held)


@pytest.mark.parametrize(
    ("log_ratios", "mean"), [([50.0, -40.0], 5), ([-90.0, 60.0, 31.5], 0.5), ([200.0, -199.0], 0.5)]
)
def test_the_ratio_of_a_response_is_that_of_the_mean_whatever_its_tokens_are(log_ratios, mean):
    new = torch.tensor([log_ratios], dtype=torch.float64)
    one = torch.ones_like(new)
    values = cfpo_sequence_loss(new, 0 * new, one, one, **EPS).values
    ratio = math.exp(mean)
    assert values[0].tolist() == [pytest.approx(-ratio + 2.5 * (ratio - 1) ** 2)] * len(log_ratios)


@pytest.mark.parametrize("loss", [cfpo_token_loss, cfpo_sequence_loss])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("log_ratio", [-25.0, -15.0, -1.0, 1.0, 15.0, 19.9, 20.0, 25.0, 1e30])
def test_a_linear_tail_never_loses_its_slope(loss, sign, log_ratio):
    log_prob = torch.tensor([[log_ratio]], requires_grad=True)
    loss(log_prob, torch.zeros(1, 1), torch.full((1, 1), sign), torch.ones(1, 1), **TAIL).values.sum().backward()
    # Beyond 1 + 0.4 and 1 - 0.4 the penalty's slope in r is +-|A| * 0.4 / 0.2, the surrogate's -A.
    side = 1.0 if log_ratio > 0 else -1.0
    ratio = math.exp(min(max(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO))
    assert log_prob.grad.item() == pytest.approx((2 * side - sign) * ratio, rel=1e-5)
    assert log_prob.grad.item() != 0


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("edge", [0.6, 1.4])
def test_a_linear_tail_continues_the_parabola_smoothly(advantage, edge):
    step = 1e-7
    before, after = (one_token(cfpo_token_loss, edge + side * step, advantage, **TAIL) for side in (-1, 1))
    assert before == (pytest.approx(after[0], abs=1e-5), pytest.approx(after[1], abs=1e-5))
    inside = 1 + 0.9 * (edge - 1)
    assert one_token(cfpo_token_loss, inside, advantage, **TAIL) == one_token(cfpo_token_loss, inside, advantage, **EPS)


def test_the_weight_of_drpo_is_bounded_where_that_of_cfpo_is_not():
    """A token of probability 1e-6 becomes 1000 times likelier than it should: p - p_old = 0.001."""
    rare = {"ratio": 1000.0, "advantage": -1.0, "old_prob": 1e-6}
    assert one_token(drpo_token_loss, **rare, delta=12.5)[1] / 1000 == pytest.approx(1 + 0.000999 / 12.5)
    assert one_token(cfpo_token_loss, **rare, **EPS)[1] / 1000 == pytest.approx(1 + 999 / 0.2)


def test_the_mean_over_a_response_has_the_gradient_of_the_loss_of_its_ratio():
    new, old, advantages, mask = make_batch()
    values = cfpo_sequence_loss(new, old, advantages, mask, **EPS).values
    lengths = mask.sum(-1).clamp(min=1)
    (values.sum(-1) / lengths).sum().backward()

    again = new.detach().clone().requires_grad_()
    ratio = (torch.where(mask, again - old, 0).sum(-1) / lengths).exp()
    advantage = torch.where(mask.any(-1), advantages[:, 0], 0)
    expected = -advantage * ratio + advantage.abs() / 0.4 * (ratio - 1) ** 2
    expected.sum().backward()
    torch.testing.assert_close(values.sum(-1) / lengths, expected)
    torch.testing.assert_close(new.grad, again.grad)


def test_sequence_ratio_is_the_same_at_every_token():
    new, old, _advantages, mask = make_batch()
    values = cfpo_sequence_loss(new, old, torch.ones_like(old), mask, **EPS).values
    assert values[0].unique().numel() == 1
    assert len({round(value, 9) for value in values[[0, 1, 2, 4], 0].tolist()}) == 4


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_statistics_are_sums_over_response_tokens(loss, options):
    new, old, advantages, mask = make_batch()
    statistics = dict(zip(STATISTICS, loss(new, old, advantages, mask, **options).statistics.tolist(), strict=True))
    log_ratio = (new - old).detach()
    seen = log_ratio
    if loss is cfpo_sequence_loss:
        seen = (torch.where(mask, log_ratio, 0).sum(-1) / mask.sum(-1)).unsqueeze(-1).expand(5, 6)
    ratio, sign = seen.exp(), advantages.sign()
    width = (
        options["delta"] / old.exp()
        if loss is drpo_token_loss
        else torch.where(advantages > 0, options["epsilon_high"], options["epsilon_low"])
    )
    ppo_width = 0.2 if loss is drpo_token_loss else width
    past = sign * (ratio - 1) > width
    surrogate = torch.where(mask, -advantages * ratio, 0)
    expected = {
        "log_ratio": log_ratio,
        "ratio_deviation": (ratio - 1).abs(),
        "penalty": plain(loss, new, old, advantages, mask, **options).detach() - surrogate,
        "past_optimum": past,
        "past_optimum_low": past & (advantages < 0),
        "corrective": past,
        "rescued": sign * (ratio - 1) > ppo_width,
        "outlier": ratio > 2,
        "nonzero_advantage": advantages != 0,
    }
    assert statistics.pop("ratio_deviation_p99") == pytest.approx((ratio - 1).abs()[mask].max().item())
    assert statistics == {name: pytest.approx(values[mask].double().sum().item()) for name, values in expected.items()}


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        (cfpo_token_loss, EPS, (1, 0, 0)),
        (cfpo_token_loss, TAIL, (1, 1, 1)),
        (drpo_token_loss, {"delta": 0.1}, (1, 0, 0)),
        (drpo_token_loss, {"delta": 12.5}, (1, 0, 0)),
    ],
)
def test_a_token_held_at_the_limit_is_past_the_optimum_but_pulled_back_only_by_a_tail(loss, options, expected):
    one = torch.ones(1, 1)
    statistics = loss(25 * one, 0 * one, one, one, **options).statistics.tolist()
    named = dict(zip(STATISTICS, statistics, strict=True))
    assert (named["past_optimum"], named["corrective"], named["rescued"]) == expected


def test_drpo_counts_as_rescued_what_ppo_with_the_given_clipping_would_cut_off():
    new, old, advantages, mask = make_batch()
    counts = [
        loss.statistics[STATISTICS.index("rescued")].item()
        for loss in (
            drpo_token_loss(new, old, advantages, mask, delta=12.5, ppo_epsilon_low=low, ppo_epsilon_high=high)
            for low, high in [(0.01, 0.01), (0.01, 50), (0.99, 0.01), (0.99, 50)]
        )
    ]
    assert counts[0] == counts[1] + counts[2]
    assert counts[1] > 0
    assert counts[2] > 0
    assert counts[3] == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "high", "rescued"),
    [(1.3, 1, 0.5, 0.2, 1), (1.3, 1, 0.2, 0.5, 0), (0.7, -1, 0.2, 0.5, 1), (0.7, -1, 0.5, 0.2, 0)],
)
def test_ppo_clips_above_with_the_upper_half_width_and_below_with_the_lower(ratio, advantage, low, high, rescued):
    one = torch.ones(1, 1)
    statistics = drpo_token_loss(
        one * math.log(ratio), 0 * one, advantage * one, one, delta=12.5, ppo_epsilon_low=low, ppo_epsilon_high=high
    ).statistics
    assert statistics[STATISTICS.index("rescued")] == rescued


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_only_log_prob_gets_a_gradient(loss, options):
    new, old, advantages, mask = make_batch()
    old.requires_grad_()
    advantages.requires_grad_()
    token_loss = loss(new, old, advantages, mask, **options)
    token_loss.values.sum().backward()
    assert (old.grad, advantages.grad) == (None, None)
    assert not token_loss.statistics.requires_grad


@pytest.mark.parametrize("aggregate", [torch.mean, lambda values: values.square().sum()], ids=["linear", "square"])
@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_a_second_derivative_is_an_error_and_not_zero(loss, options, aggregate):
    new, old, advantages, mask = make_batch()
    plainly = torch.autograd.grad(aggregate(loss(new, old, advantages, mask, **options).values), new)[0]
    (gradient,) = torch.autograd.grad(
        aggregate(loss(new, old, advantages, mask, **options).values), new, create_graph=True
    )
    assert gradient.equal(plainly)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), new, allow_unused=True, retain_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (loss(new, old, advantages, mask, **options).values.sum() + gradient.norm()).backward()


def test_keeps_one_tensor_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda x: x):
        cfpo_token_loss(*make_batch(), **EPS)
    assert sorted(kept) == [0, 30]


@pytest.mark.parametrize(("tokens", "rank"), [(1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3), (1000, 10)])
def test_the_99th_percentile_leaves_out_at_most_a_hundredth_of_the_response_tokens(tokens, rank):
    """Among 1,000 tokens at random places, of which the others are padding with larger deviations."""
    generator = torch.Generator().manual_seed(tokens)
    places = torch.randperm(1000, generator=generator)
    ratios = torch.full((1000,), 5.0)
    ratios[places[:tokens]] = 1 + torch.arange(1, tokens + 1) / 2000
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[places[:tokens]] = True
    new, one = ratios.log().view(10, 100), torch.ones(10, 100)
    statistics = cfpo_token_loss(new, 0 * one, one, mask.view(10, 100), **EPS).statistics
    expected = (tokens + 1 - rank) / 2000
    assert statistics[STATISTICS.index("ratio_deviation_p99")].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(64, 4096), (1024, 64), (4096, 16), (1, 100000), (100000, 1), (300, 177)])
def test_the_99th_percentile_of_a_large_batch_is_that_of_a_fair_sample(shape):
    """Every column, and tokens at any place: deviations depend on the column, and half of the rows are short."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.rand(shape, generator=generator) * torch.linspace(0.1, 1, shape[1])
    lengths = torch.where(torch.arange(shape[0]) % 2 == 0, shape[1], max(shape[1] // 3, 1))
    mask = torch.arange(shape[1]) < lengths.unsqueeze(1)
    one = torch.ones(shape)
    statistics = cfpo_token_loss(deviations.add(1).log(), 0 * one, one, mask, **EPS).statistics
    exact = deviations[mask].quantile(0.99).item()
    assert statistics[STATISTICS.index("ratio_deviation_p99")].item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_response_token_has_no_deviation(rows):
    one = torch.ones(rows, 4)
    statistics = cfpo_token_loss(one, 0 * one, one, 0 * one, **EPS).statistics
    assert not statistics.any()


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_nothing_waits_for_the_device(loss, options):
    """On the meta device any look at a value, and any tensor left on the CPU, is an error, as the wait is on a GPU."""
    batch = [tensor.detach().to("meta") for tensor in make_batch(torch.float32)]
    batch[0].requires_grad_()
    token_loss = loss(*batch, **options)
    token_loss.values.sum().backward()
    assert {tensor.device.type for tensor in (*token_loss[:2], batch[0].grad)} == {"meta"}


@pytest.mark.parametrize(("ratio", "outlier"), [(1.999, 0), (2, 0), (2.001, 1)])
def test_an_outlier_has_moved_by_more_than_the_whole_old_probability(ratio, outlier):
    one = torch.ones(1, 1, dtype=torch.float64)
    statistics = cfpo_token_loss((one * ratio).log(), one * 0, one, one, **EPS).statistics
    assert statistics[STATISTICS.index("outlier")] == outlier


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_leaves_its_inputs_alone(loss, options):
    given_batch, kept = make_batch(torch.float32), make_batch(torch.float32)
    loss(*given_batch, **options).values.sum().backward()
    assert all(tensor.equal(copy) for tensor, copy in zip(given_batch, kept, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon_low": 0.0}, "epsilon_low must be greater than 0 and less than 1, got 0.0"),
        ({"epsilon_low": -0.1}, "got -0.1"),
        ({"epsilon_low": math.nan}, "got nan"),
        ({"epsilon_low": 1.0}, "optimum at a ratio of 1 - epsilon_low, which must be positive"),
        ({"epsilon_high": 0.0}, "epsilon_high must be positive and finite, got 0.0"),
        ({"epsilon_high": math.inf}, "epsilon_high must be positive and finite, got inf"),
        ({"epsilon_high": math.nan}, "epsilon_high must be positive and finite, got nan"),
        ({"tail_start": 0.2}, "tail_start must be finite and greater than .*got 0.2"),
        ({"epsilon_high": 0.5, "tail_start": 0.4}, "greater than epsilon_low=0.2 and epsilon_high=0.5"),
        ({"tail_start": math.inf}, "tail_start must be finite"),
    ],
)
@pytest.mark.parametrize("loss", [cfpo_token_loss, cfpo_sequence_loss])
def test_rejects_a_trust_region_without_meaning(loss, options, message):
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=message):
        loss(one, one, one, one, **{**EPS, **options})


def test_the_upper_half_width_may_exceed_1():
    assert one_token(cfpo_token_loss, 2.5, 1.0, epsilon_low=0.2, epsilon_high=1.5)[1] == pytest.approx(0)


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan, math.inf])
def test_rejects_a_delta_without_meaning(delta):
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=f"delta must be positive and finite, got {delta}"):
        drpo_token_loss(one, one, one, one, delta=delta)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize(("place", "name"), [(1, "old_log_prob"), (2, "advantages"), (3, "response_mask")])
def test_rejects_shapes_that_would_broadcast(loss, options, place, name):
    tensors = [torch.zeros(4, 8)] * 4
    tensors[place] = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=rf"log_prob \(4, 8\) and {name} \(4, 1\) differ in shape"):
        loss(*tensors, **options)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_statistics_give_away_what_is_not_finite(loss, options, place, value):
    batch = make_batch()
    with torch.no_grad():
        batch[place][1, 2] = value
    assert not loss(*batch, **options).statistics.isfinite().all()


def test_says_how_many_values_are_not_finite_and_where():
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    new, old = torch.zeros(2, 4), torch.zeros(2, 4)
    new[0, 1], new[0, 3], new[1, 0], new[1, 1], new[1, 2] = math.nan, math.inf, math.nan, -math.inf, math.nan
    old[1, 3] = math.nan  # padding
    check_finite(mask, old_log_prob=old)
    message = r"4 of 6 values of log_prob are NaN or infinite \(row 0 position 1, row 0 position 3, row 1 position 0, "
    with pytest.raises(NonFiniteError, match=message):
        check_finite(mask, log_prob=new, old_log_prob=old)
