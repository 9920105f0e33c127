"""Policy losses, written as plain tensor functions. Nothing here knows verl, Ray or a config."""

import torch

# exp(20)**2 is about 2e17: far beyond any useful ratio, yet safe in float32 and bfloat16.
MAX_LOG_RATIO = 20.0


def importance_ratio(log_ratio: torch.Tensor) -> torch.Tensor:
    """Return r = exp(log_ratio), with the log-ratio held at +-`MAX_LOG_RATIO`.

    Args:
        log_ratio: log pi(token) - log pi_old(token), in nats. Any shape.

    Returns:
        The importance ratio, same shape and dtype, finite for every finite input.
    """
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def cfpo_penalty(ratio: torch.Tensor, advantages: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return CFPO's quadratic penalty |A| * (r - 1)**2 / (2 * epsilon), per token.

    Args:
        ratio: Importance ratio r. Shape [B, T].
        advantages: A, in reward units. Shape [B, T].
        epsilon: Half-width of the trust region on r. Dimensionless, greater than 0.

    Returns:
        Penalty per token, in reward units, never negative. Shape [B, T].
    """
    return advantages.abs() / (2 * epsilon) * (ratio - 1).square()


def cfpo_token_loss(log_ratio: torch.Tensor, advantages: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Score every token with the CFPO objective, negated so that lower is better.

    With the importance ratio r = exp(log_ratio), the advantage A and the half-width epsilon:

        loss = -A * r  +  |A| * (r - 1)**2 / (2 * epsilon)

    The first term is the usual surrogate, the second grows with the distance from the old
    policy. Their sum is smallest at r = 1 + sign(A) * epsilon, where PPO would start to clip;
    a token beyond that point is pulled back rather than ignored. The gradient with respect to
    log pi is -A * r * (1 - sign(A) * (r - 1) / epsilon).

    Args:
        log_ratio: log pi(token) - log pi_old(token), in nats. Shape [B, T]. Carries the
            gradient. Held at +-`MAX_LOG_RATIO`; beyond that the gradient is zero.
        advantages: A, in reward units. Shape [B, T]. Treated as a constant.
        epsilon: Half-width of the trust region on r. Dimensionless, greater than 0.

    Returns:
        Loss per token, in reward units, before masking and averaging. Shape [B, T].

    Raises:
        ValueError: If epsilon is not positive, or if the two shapes differ (broadcasting
            here would silently mix responses).

    Example:
        >>> on_policy = torch.zeros(1, 2)  # r = 1, so the penalty is zero
        >>> cfpo_token_loss(on_policy, torch.tensor([[1.0, -0.5]]), epsilon=0.2)
        tensor([[-1.0000,  0.5000]])

    Reference:
        Cagatan et al., "Clipping-Free Policy Optimization for Large Language Models", 2026,
        arXiv:2601.22801. The same function of r is the loss of SPO: Xie et al., "Simple Policy
        Optimization", arXiv:2401.16025.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if log_ratio.shape != advantages.shape:
        raise ValueError(f"log_ratio {tuple(log_ratio.shape)} and advantages {tuple(advantages.shape)} differ")

    ratio = importance_ratio(log_ratio)
    advantages = advantages.detach()
    return -advantages * ratio + cfpo_penalty(ratio, advantages, epsilon)
