"""What bypass_mode means in verl's default trainer, by its own code: the old policy is the one that sampled each token.

The asynchronous files of the group `updates` and cfpo_verl.doctor rest on this.
"""

import asyncio

import pytest
import torch
from tensordict import TensorDict

from benchmarks.combinations import composing


@pytest.fixture(scope="module")
def compose():
    with composing() as compose:
        yield compose


class Queue:
    """Holds the fields of one batch, in place of TransferQueue."""

    def __init__(self, **fields):
        rows = {name: torch.nested.as_nested_tensor([value], layout=torch.jagged) for name, value in fields.items()}
        self.fields = TensorDict(rows, batch_size=1)

    def kv_batch_get(self, keys, partition_id, select_fields):
        return self.fields.select(*select_fields)

    def kv_batch_put(self, keys, partition_id, fields):
        self.fields.update(fields)


class Batch:
    keys, partition_id = ("row",), "train"


@pytest.mark.parametrize("updates", ["colocate_async", "one_step_off", "fully_async"])
def test_the_old_probabilities_are_those_of_the_rollout(updates, compose, monkeypatch):
    from verl.trainer.ppo.v1 import trainer_base
    from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
    from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

    sampled = torch.tensor([-0.5, -1.5, -2.5])
    queue = Queue(rollout_log_probs=sampled)
    monkeypatch.setattr(trainer_base, "tq", queue)
    config = compose("experiment=math_8gpu", f"updates={updates}")
    kind = PPOTrainerColocateAsync if config.trainer.v1.trainer_mode == "colocate_async" else PPOTrainerSeparateAsync
    trainer = object.__new__(kind)  # no workers: in this mode none is asked
    trainer.config, trainer.local_trigger_step = config, 1
    trainer._compute_old_log_prob(Batch(), {})
    assert torch.equal(queue.fields["old_log_probs"].values(), sampled)
    assert config.actor_rollout_ref.rollout.calculate_log_probs


def test_a_response_over_two_weight_versions_has_the_probabilities_of_both(compose, monkeypatch):
    """Generation is interrupted for new weights after two tokens and continues with those."""
    from verl.workers.rollout import llm_server
    from verl.workers.rollout.replica import TokenOutput

    parts = iter(
        [
            TokenOutput(
                token_ids=[5, 6], log_probs=[-0.5, -0.6], stop_reason="aborted", extra_fields={"global_steps": 3}
            ),
            TokenOutput(token_ids=[7], log_probs=[-0.7], stop_reason="completed", extra_fields={"global_steps": 4}),
        ]
    )
    asked = []

    async def generate(self, request_id, *, prompt_ids, **options):
        asked.append(list(prompt_ids))
        return next(parts)

    async def no_pause(_seconds):
        return None

    monkeypatch.setattr(llm_server.LLMServerClient, "generate", generate)
    monkeypatch.setattr(llm_server.asyncio, "sleep", no_pause)
    client = llm_server.FullyAsyncLLMServerClient(compose("experiment=math_8gpu", "updates=colocate_async"))
    output = asyncio.run(client.generate("one", prompt_ids=[1, 2], sampling_params={"max_tokens": 9}))
    assert (output.token_ids, output.log_probs) == ([5, 6, 7], [-0.5, -0.6, -0.7])
    assert asked == [[1, 2], [1, 2, 5, 6]]
    assert (output.extra_fields["min_global_steps"], output.extra_fields["max_global_steps"]) == (3, 4)
