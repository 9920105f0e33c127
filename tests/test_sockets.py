"""Where verl's socket for weights lies when a job says so."""

import json

from cfpo_verl.config_groups import platform_env

PROBE = """
import json
import verl  # loads the plugin, as in every process of a run
import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender
handle = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
print(json.dumps([
    BucketedWeightSender(zmq_handle=handle).zmq_handle,
    BucketedWeightReceiver(zmq_handle=handle, device=torch.device("cpu")).zmq_handle,
    BucketedWeightSender("tcp://10.0.0.1:5000").zmq_handle,
]))
"""
NAME = "rl-colocate-zmq-01000000-replica-0-rank-0.sock"


def ends(run_forked, **env: str) -> list[str]:
    # verl's package asks for a vLLM, which the CPU platform finds.
    result = run_forked(PROBE, **platform_env("cpu"), **env)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_both_ends_move_together(run_forked):
    moved = ends(run_forked, CFPO_VERL_SOCKET_DIR="/tmp/job-7")
    assert moved == [f"ipc:///tmp/job-7/{NAME}"] * 2 + ["tcp://10.0.0.1:5000"]


def test_without_the_variable_verls_names_stay(run_forked):
    assert ends(run_forked) == [f"ipc:///tmp/{NAME}"] * 2 + ["tcp://10.0.0.1:5000"]
