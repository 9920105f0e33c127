"""Group-relative advantages, written as plain tensor functions. Nothing here knows verl, Ray or a config.

A group is the responses to one prompt. Every estimator takes one reward per response, `rewards [B]`, and the number of
its group, `groups [B]` with values 0 to P-1 for P prompts, in any order and of any sizes. It returns advantages `[B]`
in units of the rewards (of their standard deviation for `grpo_advantages`).

Groups of one response, and groups whose rewards are all equal, get exactly 0: there is nothing to compare with. Rows
without a response token (`has_response`) belong to no group.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch

# Added to a group's standard deviation, as in verl's grpo.
STD_FLOOR = 1e-6


class RewardError(ValueError):
    """A reward is NaN or infinite."""


class GroupError(ValueError):
    """Several rows of a batch are parts of one conversation."""


def number_groups(labels: np.ndarray | Sequence[object]) -> torch.Tensor:
    """Number the groups in order of appearance.

    Args:
        labels: The label of each response's group, for example verl's uid. Length B.

    Returns:
        Group numbers 0 to P-1, int64. Shape [B].
    """
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels], dtype=torch.int64)


def grpo_advantages(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return (R - mean) / (std + 1e-6), with the mean and the unbiased standard deviation of the group.

    Args:
        rewards: R. Shape [B].
        groups: Group numbers. Shape [B].

    Example:
        >>> grpo_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1]))
        tensor([ 1.1547, -0.5773, -0.5773,  0.0000])

    Reference:
        Shao et al., "DeepSeekMath", 2024, arXiv:2402.03300.
    """
    centred, sizes = _centre(rewards, groups)
    variances = _sum_groups(centred.square(), groups, len(sizes)) / (sizes - 1).clamp(min=1)
    return (centred / (variances.sqrt()[groups] + STD_FLOOR)).to(rewards.dtype)


def dr_grpo_advantages(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return R - mean, with the mean of the group.

    Args:
        rewards: R. Shape [B].
        groups: Group numbers. Shape [B].

    Example:
        >>> dr_grpo_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
        tensor([ 0.5000, -0.5000, -0.5000,  0.5000])

    Reference:
        Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective", 2025, arXiv:2503.20783.
    """
    return _centre(rewards, groups)[0].to(rewards.dtype)


def rloo_advantages(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return R minus the mean of the other responses of the group, which is n / (n - 1) * (R - mean) for n responses.

    Args:
        rewards: R. Shape [B].
        groups: Group numbers. Shape [B].

    Example:
        >>> rloo_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1]))
        tensor([ 1.0000, -0.5000, -0.5000,  0.0000])

    Reference:
        Ahmadian et al., "Back to Basics", 2024, arXiv:2402.14740.
    """
    centred, sizes = _centre(rewards, groups)
    return (centred * (sizes / (sizes - 1).clamp(min=1))[groups]).to(rewards.dtype)


def spread(advantages: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Give every token of a response the advantage of the response, and padding 0.

    Args:
        advantages: One advantage per response. Shape [B].
        response_mask: 1 for response tokens, 0 for padding. [B, T].

    Returns:
        Advantages per token, in the dtype of `advantages`. [B, T].
    """
    if response_mask.device.type == "cpu" and advantages.dtype == torch.float32:
        # Most of the time goes to the first touch of fresh memory, and numpy, unlike torch, asks for huge pages.
        tokens = torch.from_numpy(np.empty(response_mask.shape, dtype=np.float32))
    else:
        tokens = torch.empty(response_mask.shape, dtype=advantages.dtype, device=response_mask.device)
    return tokens.copy_(response_mask).mul_(advantages.unsqueeze(-1))


def has_response(response_mask: torch.Tensor) -> torch.Tensor:
    """Return for each row whether it has a response token.

    verl fills a batch up to a multiple of the mini-batch with rows that have none; a row all of whose tokens were
    rejected has none either.

    Args:
        response_mask: 1 for response tokens, 0 for padding. [B, T].

    Returns:
        Booleans. Shape [B].
    """
    found = response_mask[:, :1].any(dim=-1)
    # Nearly all rows begin with a response token, and reading the whole mask would take as long as everything else.
    others = (~found).nonzero().flatten()
    found[others] = response_mask[others].any(dim=-1)
    return found


def check_rewards(rewards: torch.Tensor, labels: np.ndarray | Sequence[object]) -> None:
    """Raise if a reward is NaN or infinite.

    Args:
        rewards: One reward per response. Shape [B].
        labels: The label of each response's group. Length B.

    Raises:
        RewardError: With the value, the row and the group of the first such reward, and how many there are.
    """
    # A finite sum has finite terms.
    if math.isfinite(rewards.sum()):
        return
    rows = (~rewards.isfinite()).nonzero().flatten().tolist()
    if rows:
        raise RewardError(
            f"{len(rows)} of {len(rewards)} rewards are NaN or infinite, the first is {rewards[rows[0]].item()} in row "
            f"{rows[0]}, group {labels[rows[0]]}. A reward function must return finite numbers"
        )


def check_one_output_each(labels: Sequence[object], keys: Iterable[str]) -> None:
    """Raise if a conversation of these groups has several outputs: each would count as a response of its own.

    Args:
        labels: The label of each response's group, verl's uid. Length B.
        keys: verl's keys of a partition, "<uid>_<session>_<output>" for a response and "<uid>" for a prompt. Those of
            other groups are ignored.

    Raises:
        GroupError: With the conversation and how many outputs it has.

    Example:
        >>> check_one_output_each(["a", "a"], ["a", "a_0_0", "a_1_0", "b_0_0", "b_0_1"])
    """
    groups = set(labels)
    outputs = Counter((group, session) for group, session, _output in _split(keys) if group in groups)
    several = [(group, session, count) for (group, session), count in outputs.items() if count > 1]
    if several:
        group, session, count = several[0]
        raise GroupError(
            f"conversation {session} of group {group} has {count} outputs ({len(several)} of {len(outputs)} "
            "conversations have several), and each would count as a response. verl tells its own grpo, but no other "
            "estimator, which rows belong to one conversation. Set algorithm.adv_estimator=grpo, which compares the "
            "last outputs; every policy_loss works with it"
        )


def _split(keys: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Split the keys of responses; a prompt's has fewer parts."""
    for key in keys:
        parts = key.rsplit("_", 2)
        if len(parts) == 3:
            yield parts[0], parts[1], parts[2]


def _centre(rewards: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return R - mean `[B]` in float64, and the sizes of the groups `[P]`."""
    sizes = torch.bincount(groups)
    # float64 holds the sum of a group of float32 rewards exactly, so equal rewards differ from their mean by exactly 0.
    rewards = rewards.double()
    return rewards - (_sum_groups(rewards, groups, len(sizes)) / sizes)[groups], sizes


def _sum_groups(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    return values.new_zeros(count).index_add_(0, groups, values)
