"""Policy losses, written as plain tensor functions. Nothing here knows verl, Ray or a config.

All three losses are one function of the importance ratio r and differ in r and in the curvature k:

    loss = -A * r  +  |A| * k * P(r - 1),    P(d) = d**2 / 2

| loss                 | r                                                 | k                       |
| -------------------- | ------------------------------------------------- | ----------------------- |
| `cfpo_token_loss`    | exp(log pi - log pi_old) of the token             | 1 / epsilon             |
| `cfpo_sequence_loss` | exp of the mean log-ratio of the response         | 1 / epsilon             |
| `drpo_token_loss`    | exp(log pi - log pi_old) of the token             | pi_old(token) / delta   |

Every function takes log-probabilities in nats as verl hands them over, `[B, T]` for B responses of at most T tokens,
and returns a `TokenLoss`. Padding may hold anything, NaN included: it reaches neither value, gradient nor statistics.
"""

from typing import Any, NamedTuple

import torch

# exp(20)**2 is about 2e17: far beyond any useful ratio, yet safe in float32.
MAX_LOG_RATIO = 20.0

# A hair below exp(20), so that rounding in exp cannot hide that a log-ratio was held there.
_HELD_RATIO = 4.851e8

# For the 99th percentile. Among 8,192 tokens its rank is 82 from above, give or take 9.
PERCENTILE_PLACES = 8192

# What our losses sum over response tokens; the docs of the metrics have the formulas.
STATISTICS = (
    "log_ratio",  # log pi - log pi_old
    "ratio_deviation",  # |r - 1|
    "penalty",
    "past_optimum",  # tokens past the optimum: sign(A) * (r - 1) * k > 1
    "past_optimum_low",  # those of them with A < 0
    "corrective",  # tokens whose gradient pulls them back
    "rescued",  # tokens with a gradient where PPO with the same half-widths has none
    "outlier",  # tokens with |r - 1| > 1
    "nonzero_advantage",  # tokens with A != 0
    "ratio_deviation_p99",  # no sum: the 99th percentile of |r - 1|, in a large batch over a part of the tokens
)


class TokenLoss(NamedTuple):
    """A loss per token, before averaging, and its statistics. Losses of other packages return one as well."""

    values: torch.Tensor
    """Loss per token, in reward units; finite on padding. Shape [B, T]. Carries the gradient."""

    statistics: torch.Tensor
    """Sums over response tokens, one for each name, still on the device. Shape [S]. If a log-ratio or an advantage of
    a response token is NaN or infinite, one of these is, or one of the values."""

    names: tuple[str, ...]
    """Names of the statistics. Those of our losses are `STATISTICS`."""


class NonFiniteError(ValueError):
    """Log-probabilities, advantages or weights of response tokens are NaN or infinite."""


class _ClippingFreeLoss(torch.autograd.Function):
    """The common form, with its slope computed beside its value.

    By hand because autograd keeps a tensor for every step of the formula: with the statistics, twice the time and
    three times the memory (`python -m benchmarks.losses`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_prob: torch.Tensor,
        anchor: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        curvature: tuple[float, float] | torch.Tensor,
        tail_start: float | None,
        ppo_epsilons: tuple[float, float] | None,
        per_sequence: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(log_prob.dtype, torch.float32)
        mask = response_mask.bool()
        padding = ~mask
        log_ratio = (log_prob.to(dtype) - old_log_prob.to(dtype)).masked_fill_(padding, 0)
        advantages = advantages.to(dtype).masked_fill(padding, 0)
        log_ratio_sum = log_ratio.sum()
        if per_sequence:
            # Far beyond any log-ratio, and yet the sum of a response cannot overflow.
            log_ratio.clamp_(-1e30, 1e30)
            mean = log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
            log_ratio = torch.where(mask, mean, 0)

        ratio = log_ratio.clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp_()
        deviation = ratio - 1
        if isinstance(curvature, torch.Tensor):
            weight = advantages.abs().mul_(curvature)
        elif curvature[0] == curvature[1]:
            weight = advantages.abs().mul_(curvature[0])
        else:
            weight = torch.where(advantages > 0, advantages * curvature[1], advantages * -curvature[0])
        if tail_start is None:
            pull = weight.mul_(deviation)  # the slope of the penalty in r
            penalty = (pull * deviation).mul_(0.5)
        else:
            bounded = deviation.clamp(-tail_start, tail_start)
            pull = weight.mul_(bounded)
            penalty = (deviation - bounded.mul_(0.5)).mul_(pull)
        penalty_sum = penalty.sum()
        values = penalty.addcmul_(advantages, ratio, value=-1)

        slope = pull.sub_(advantages)
        past = slope * advantages > 0
        past_low = torch.count_nonzero(past & (advantages < 0))
        past_sum = torch.count_nonzero(past)
        slope.mul_(ratio)
        corrective = past_sum
        if tail_start is None:
            held = ratio >= _HELD_RATIO
            slope.masked_fill_(held, 0)
            corrective = torch.count_nonzero(past > held)
        rescued = corrective
        if ppo_epsilons is not None:
            low, high = ppo_epsilons
            clipped = torch.where(advantages > 0, deviation > high, (advantages < 0) & (deviation < -low))
            rescued = torch.count_nonzero(clipped.logical_and_(slope != 0))
        counts = torch.stack(
            [
                past_sum,
                past_low,
                corrective,
                rescued,
                torch.count_nonzero(deviation > 1),
                torch.count_nonzero(advantages),
            ]
        ).to(dtype)
        sums = torch.stack([log_ratio_sum, torch.linalg.vector_norm(deviation, 1), penalty_sum])
        statistics = torch.cat([sums, counts, _percentile_99(deviation, mask)])
        ctx.save_for_backward(slope, anchor)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)  # of the statistics, which autograd would make in each backward pass
        return values, statistics

    @staticmethod
    def backward(ctx: Any, grad_values: torch.Tensor | None, _grad_statistics: None) -> tuple[torch.Tensor | None, ...]:
        if grad_values is None:
            return (None,) * 9
        slope, anchor = ctx.saved_tensors
        gradient = grad_values * slope if not torch.is_grad_enabled() else _Slope.apply(grad_values, slope, anchor)
        return (gradient, *[None] * 8)


class _Slope(torch.autograd.Function):
    """The first derivative, where autograd keeps its graph (create_graph=True), and no second one.

    torch's once_differentiable would not do: it returns a constant where grad_values is one, as it is for a mean, and a
    gradient penalty would then be left out silently.
    """

    @staticmethod
    def forward(ctx: Any, grad_values: torch.Tensor, slope: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return grad_values * slope

    @staticmethod
    def backward(ctx: Any, *_gradients: torch.Tensor) -> None:
        raise RuntimeError(
            "our losses have no second derivative. For a gradient penalty, write the formula of the loss with torch's "
            "own operations"
        )


def cfpo_token_loss(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    tail_start: float | None = None,
) -> TokenLoss:
    """Score every token with the CFPO objective, negated so that lower is better.

    With r = exp(log_prob - old_log_prob) and epsilon = epsilon_high where A > 0, epsilon_low where A < 0:

        loss = -A * r  +  |A| * (r - 1)**2 / (2 * epsilon)

    It is smallest at r = 1 + epsilon_high for A > 0 and at r = 1 - epsilon_low for A < 0, where PPO would start to
    clip; a token beyond that point is pulled back rather than ignored. Its gradient with respect to log_prob is
    -A * r * (1 - sign(A) * (r - 1) / epsilon).

    With `tail_start` the parabola (r - 1)**2 / 2 continues as the straight line t * |r - 1| - t**2 / 2 beyond
    |r - 1| = t. The gradient of an outlier then grows like r and no longer like r**2.

    Log-ratios are held at +-`MAX_LOG_RATIO`. Beyond it a value stays what it is there. The gradient is zero above the
    upper limit for the parabola, as in the authors' implementation; with a tail it keeps the slope of the limit.

    Args:
        log_prob: log pi of each token, in nats. [B, T]. Carries the gradient.
        old_log_prob: log pi_old of each token, in nats. [B, T].
        advantages: A, in reward units. [B, T]. A constant.
        response_mask: 1 for response tokens, 0 for padding. [B, T].
        epsilon_low: Half-width of the trust region where A < 0. Dimensionless, between 0 and 1.
        epsilon_high: Half-width of the trust region where A > 0. Dimensionless, greater than 0.
        tail_start: |r - 1| from which the penalty is linear, greater than both half-widths; None for never.

    Returns:
        The loss per token in float32 (float64 if log_prob is), and its statistics.

    Raises:
        ValueError: If an option is outside its range, or if two shapes differ (broadcasting would silently mix
            responses).

    Example:
        >>> old, mask = torch.zeros(1, 2), torch.ones(1, 2)
        >>> cfpo_token_loss(old, old, torch.tensor([[1.0, -0.5]]), mask, epsilon_low=0.2, epsilon_high=0.2).values
        tensor([[-1.0000,  0.5000]])

    Reference:
        Cagatan et al., "Clipping-Free Policy Optimization for Large Language Models", 2026, arXiv:2601.22801. The
        same function of r is the loss of SPO: Xie et al., "Simple Policy Optimization", arXiv:2401.16025. Two
        half-widths and the tail are ours.
    """
    check_trust_region(epsilon_low, epsilon_high, tail_start)
    _check_shapes(log_prob, old_log_prob, advantages, response_mask)
    curvature = (1 / epsilon_low, 1 / epsilon_high)
    return _apply(log_prob, old_log_prob, advantages, response_mask, curvature, tail_start=tail_start)


def cfpo_sequence_loss(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    tail_start: float | None = None,
) -> TokenLoss:
    """Score every token by the length-normalised ratio of its whole response.

    `cfpo_token_loss` with r replaced, at every token of a response, by

        s = exp(mean over the tokens of the response of (log_prob - old_log_prob))

    The gradient goes through each token's own log-probability: d s / d log_prob[t] is taken as s, as in GSPO's token
    form s_t = stop(s) * pi_t / stop(pi_t). Averaged over the tokens of a response (verl's seq-mean-token-mean), loss
    and gradient are those of the loss of s itself.

    Args:
        log_prob: log pi of each token, in nats. [B, T]. Carries the gradient.
        old_log_prob: log pi_old of each token, in nats. [B, T].
        advantages: A, in reward units. [B, T]. A constant.
        response_mask: 1 for response tokens, 0 for padding. [B, T].
        epsilon_low: Half-width of the trust region on s where A < 0. Dimensionless, between 0 and 1.
        epsilon_high: Half-width of the trust region on s where A > 0. Dimensionless, greater than 0.
        tail_start: |s - 1| from which the penalty is linear, greater than both half-widths; None for never.

    Returns:
        The loss per token in float32 (float64 if log_prob is), and its statistics, in which r is s.

    Raises:
        ValueError: If an option is outside its range, or if two shapes differ.

    Example:
        >>> old, mask = torch.zeros(1, 2), torch.ones(1, 2)
        >>> new = torch.tensor([[0.3, -0.3]])  # the mean log-ratio is 0, so s = 1
        >>> cfpo_sequence_loss(new, old, torch.ones(1, 2), mask, epsilon_low=0.1, epsilon_high=0.1).values
        tensor([[-1., -1.]])

    Reference:
        s and its token form: Zheng et al., "Group Sequence Policy Optimization", 2025, arXiv:2507.18071. Its
        combination with the penalty of CFPO is ours; the CFPO paper is on tokens.
    """
    check_trust_region(epsilon_low, epsilon_high, tail_start)
    _check_shapes(log_prob, old_log_prob, advantages, response_mask)
    curvature = (1 / epsilon_low, 1 / epsilon_high)
    return _apply(
        log_prob, old_log_prob, advantages, response_mask, curvature, tail_start=tail_start, per_sequence=True
    )


def drpo_token_loss(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    delta: float,
    ppo_epsilon_low: float = 0.2,
    ppo_epsilon_high: float = 0.2,
) -> TokenLoss:
    """Score every token with a penalty weighted by the old probability of the token.

    With r = exp(log_prob - old_log_prob) and p_old = exp(old_log_prob):

        loss = -A * r  +  |A| * p_old * (r - 1)**2 / (2 * delta)

    Its gradient with respect to log_prob is -A * r * (1 - sign(A) * (p - p_old) / delta): the weight is bounded by
    1 + 1 / delta, also for a token that was rare and whose ratio is therefore large.

    Args:
        log_prob: log pi of each token, in nats. [B, T]. Carries the gradient.
        old_log_prob: log pi_old of each token, in nats. [B, T].
        advantages: A, in reward units. [B, T]. A constant.
        response_mask: 1 for response tokens, 0 for padding. [B, T].
        delta: Half-width of the trust region on p - p_old. Greater than 0; from 1 on no token can leave it.
        ppo_epsilon_low: Only for the statistic "rescued": what PPO would clip below.
        ppo_epsilon_high: Only for the statistic "rescued": what PPO would clip above.

    Returns:
        The loss per token in float32 (float64 if log_prob is), and its statistics.

    Raises:
        ValueError: If delta is not positive and finite, or if two shapes differ.

    Example:
        >>> old, mask = torch.zeros(1, 2), torch.ones(1, 2)
        >>> drpo_token_loss(old, old, torch.tensor([[1.0, -0.5]]), mask, delta=12.5).values
        tensor([[-1.0000,  0.5000]])

    Reference:
        DRPO, arXiv:2606.09821, whose experiments use delta = 12.5.
    """
    check_delta(delta)
    _check_shapes(log_prob, old_log_prob, advantages, response_mask)
    # A log-probability above 0 is rounding; on padding it may be anything, and the advantage there is 0.
    with torch.no_grad():
        dtype = torch.promote_types(old_log_prob.dtype, torch.float32)
        old_prob = old_log_prob.to(dtype).masked_fill(~response_mask.bool(), 0).clamp_(max=0).exp_()
    return _apply(
        log_prob,
        old_log_prob,
        advantages,
        response_mask,
        old_prob.div_(delta),
        ppo_epsilons=(ppo_epsilon_low, ppo_epsilon_high),
    )


def check_trust_region(epsilon_low: float, epsilon_high: float, tail_start: float | None) -> None:
    """Refuse half-widths and a tail with which the loss has no meaning.

    Raises:
        ValueError: With the value and the rule.
    """
    if not 0 < epsilon_low < 1:  # not true of NaN either
        raise ValueError(
            f"epsilon_low must be greater than 0 and less than 1, got {epsilon_low}: tokens with a negative advantage "
            "have their optimum at a ratio of 1 - epsilon_low, which must be positive"
        )
    if not 0 < epsilon_high < float("inf"):
        raise ValueError(f"epsilon_high must be positive and finite, got {epsilon_high}")
    if tail_start is not None and not max(epsilon_low, epsilon_high) < tail_start < float("inf"):
        raise ValueError(
            f"tail_start must be finite and greater than epsilon_low={epsilon_low} and epsilon_high={epsilon_high}, "
            f"got {tail_start}: a penalty that is linear from the optimum on or earlier cannot pull a token back"
        )


def check_delta(delta: float) -> None:
    """Refuse a delta with which the loss has no meaning.

    Raises:
        ValueError: With the value and the rule.
    """
    if not 0 < delta < float("inf"):
        raise ValueError(f"delta must be positive and finite, got {delta}")


def check_finite(response_mask: torch.Tensor, **tensors: torch.Tensor) -> None:
    """Raise if a response token has a NaN or an infinity, with its place. Padding may hold anything.

    Copies to the host: meant for when the statistics of a loss say that something is wrong.

    Args:
        response_mask: 1 for response tokens, 0 for padding. [B, T].
        **tensors: What to look at, by the name to report. Each [B, T].

    Raises:
        NonFiniteError: How many, and the row and position of the first ones.
    """
    mask = response_mask.bool()
    found = []
    for name, tensor in tensors.items():
        places = (mask & ~tensor.isfinite()).nonzero().tolist()
        if places:
            shown = ", ".join(f"row {row} position {position}" for row, position in places[:3])
            more = ", ..." if len(places) > 3 else ""
            found.append(f"{len(places)} of {int(mask.sum())} values of {name} are NaN or infinite ({shown}{more})")
    if found:
        raise NonFiniteError("; ".join(found))


def _check_shapes(log_prob: torch.Tensor, *others: torch.Tensor) -> None:
    for name, other in zip(("old_log_prob", "advantages", "response_mask"), others, strict=True):
        if other.shape != log_prob.shape:
            raise ValueError(f"log_prob {tuple(log_prob.shape)} and {name} {tuple(other.shape)} differ in shape")


def _percentile_99(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the 99th percentile of the absolute values within the mask; outside it they must be 0. [B, T] to [1].

    That is the value of rank ceil(N / 100) from above, for N tokens. The host does not wait for it. Of a large batch, a
    regular sample of about `PERCENTILE_PLACES` is looked at: all of it would take as long as the loss.
    """
    if not values.numel():
        return values.new_zeros(1)
    # Odd, so that no column of a power of two is looked at more often than the others.
    stride = values.numel() // PERCENTILE_PLACES | 1
    values, mask = values.flatten()[::stride].abs(), mask.flatten()[::stride]
    largest = values.topk(-(-values.numel() // 100)).values
    rank = (torch.count_nonzero(mask) + 99) // 100
    return largest.index_select(0, (rank - 1).clamp(min=0).view(1))


def _apply(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    curvature: tuple[float, float] | torch.Tensor,
    tail_start: float | None = None,
    ppo_epsilons: tuple[float, float] | None = None,
    per_sequence: bool = False,
) -> TokenLoss:
    # Depends on log_prob for autograd, and takes no memory.
    anchor = log_prob[:0]
    # autograd.Function takes arguments by position only.
    values, statistics = _ClippingFreeLoss.apply(
        log_prob, anchor, old_log_prob, advantages, response_mask, curvature, tail_start, ppo_epsilons, per_sequence
    )
    return TokenLoss(values, statistics, STATISTICS)
