"""A mini-batch as verl's engines hold it (nested tensors), and the actor's config as our files compose it."""

from functools import cache, partial

import hydra
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

import cfpo_verl.train  # noqa: F401  registers the resolver that the primary config uses
from cfpo_verl.config import LOSS_CONFIGS

LOSSES = [loss.NAME for loss in LOSS_CONFIGS]
AGGREGATIONS = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
PROMPT_LENGTHS = [3, 1, 2, 4, 2, 3, 1, 2]
RESPONSE_LENGTHS = [5, 2, 8, 1, 4, 6, 3, 7]
VOCABULARY = 256


def compose(*overrides: str):
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        return hydra.compose("train", overrides=["experiment=cpu_quickstart", *overrides])


@cache
def actor_config(policy_loss: str, loss_agg_mode: str, *others: str):
    """Return what a worker builds of actor_rollout_ref.actor. Wide trust regions: tokens on both sides of them."""
    overrides = [f"policy_loss={policy_loss}", f"actor_rollout_ref.actor.loss_agg_mode={loss_agg_mode}"]
    if policy_loss == "cfpo_sequence":
        overrides.append("actor_rollout_ref.actor.policy_loss.epsilon=0.05")
    return omega_conf_to_dataclass(compose(*overrides, *others).actor_rollout_ref.actor)


def loss_function(policy_loss: str, loss_agg_mode: str, *others: str):
    """Return what verl's worker hands to its engine."""
    return partial(ppo_loss, actor_config(policy_loss, loss_agg_mode, *others))


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def make_batch() -> TensorDict:
    """Eight responses of 1 to 8 tokens; the old policy is about uniform over the vocabulary, as a fresh model is."""
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[torch.Tensor]] = {}
    for prompt_length, length, advantage in zip(
        PROMPT_LENGTHS, RESPONSE_LENGTHS, [1.0, -1.0, 0.5, -2.0, 0.0, 1.5, -0.5, 2.0], strict=True
    ):
        prompt = torch.randint(VOCABULARY, (prompt_length,), generator=generator)
        response = torch.randint(VOCABULARY, (length,), generator=generator)
        noise = torch.randn(length, generator=generator) / 4
        row = {
            "prompts": prompt,
            "responses": response,
            "input_ids": torch.cat([prompt, response]),
            "position_ids": torch.arange(prompt_length + length),
            "response_mask": torch.ones(length, dtype=torch.long),
            "loss_mask": torch.ones(length, dtype=torch.long),
            "old_log_probs": noise - torch.tensor(float(VOCABULARY)).log(),
            "advantages": torch.full((length,), advantage),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return TensorDict({name: nested(values) for name, values in rows.items()}, batch_size=len(PROMPT_LENGTHS))


def part_of(batch: TensorDict, parts: int, part: int) -> TensorDict:
    return tu.chunk_tensordict(batch, parts)[part]
