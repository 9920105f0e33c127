"""Seconds of a step: worked by hand on a GPU with round numbers."""

import math
from dataclasses import replace

import pytest

from cfpo_verl.plan.hardware import Gpu
from cfpo_verl.plan.memory import kv_tokens
from cfpo_verl.plan.run import Batch, Rollout, Run, Trainer
from cfpo_verl.plan.scale import scale, stops_paying_at
from cfpo_verl.plan.shapes import ModelShape, shape_of
from cfpo_verl.plan.step_time import Lengths, concurrency, decode_step_s, generation, squared_lengths, step_time

# 1 TFLOPS, 1 GB/s everywhere, all of it reached, no overheads.
PLAIN = Gpu(
    name="plain",
    memory_gb=100,
    peak_tflops=1,
    memory_gb_s=1,
    nvlink_gb_s=1,
    network_gb_s=1,
    host_gb_s=1,
    matmul_efficiency=1,
    expert_efficiency=1,
    inference_efficiency=1,
    bandwidth_efficiency=1,
    network_efficiency=1,
    decode_step_overhead_s=0,
    request_overhead_s=0,
    micro_batch_overhead_s=0,
    weight_sync_overhead_s=0,
    reserved_gb=0,
    engine_reserved_gb=0,
)
# As in test_plan_memory: 17,192 parameters.
SHAPE = ModelShape(8, 2, 2, 1, 4, 16, 1000, False)
# All 16 responses of the same length: 20 tokens after 10.
BATCH = Batch(8, 2, 4, 1, 10, 20, 16, 20, limit_share=0)


def run_of(batch=BATCH, gpus=1, rollout=None, shape=SHAPE, **trainer) -> Run:
    trainer = {"engine": "fsdp2", "gpus": gpus, "gpus_per_node": 8, "shards": gpus, **trainer}
    return Run(shape, Trainer(**trainer), rollout or Rollout(gpus, 8, kv_cache_gb=1), batch)


def test_arithmetic_is_a_forward_pass_and_four_with_recomputation():
    times = step_time(run_of(), PLAIN)
    forward_s = SHAPE.forward_flops(16 * 30, 16 * 30**2) / 1e12
    assert times.old_log_prob_s == pytest.approx(forward_s, rel=1e-3)
    assert times.ref_log_prob_s == 0
    # Two optimiser steps touch weights, gradients and moments: 7 * 4 bytes of each parameter, at 1 GB/s.
    assert times.update_s == pytest.approx(4 * forward_s + 2 * 28 * 17192 / 1e9, rel=1e-3)
    without = step_time(run_of(recompute=False, reference=True, recomputes_old_log_prob=False), PLAIN)
    assert without.update_s == pytest.approx(times.update_s - forward_s, rel=1e-3)
    assert (without.old_log_prob_s, without.ref_log_prob_s) == (0, times.old_log_prob_s)


def test_padding_is_computed_too():
    padded = step_time(run_of(pads_sequences=True), PLAIN)
    assert padded.old_log_prob_s == pytest.approx(SHAPE.forward_flops(16 * 36, 16 * 36**2) / 1e12)


def test_fsdp_waits_for_the_ring():
    """Each micro-batch gathers bf16 weights for the forward pass: 3/4 of 2 bytes of each parameter at 1 GB/s."""
    slow = replace(PLAIN, peak_tflops=1e6)
    times = step_time(run_of(gpus=4, log_prob_tokens=60, update_tokens=60), slow)
    # 4 sequences of 30 tokens on each GPU: two micro-batches of 60 tokens.
    ring_s = 0.75 * 17192 / 1e9
    assert times.old_log_prob_s == pytest.approx(2 * 2 * ring_s)
    # Two optimiser steps of one micro-batch each: weights twice in bf16, gradients in fp32.
    optimizer_s = 2 * 28 * 17192 / 4 / 1e9
    assert times.update_s == pytest.approx(2 * (2 + 2 + 4) * ring_s + optimizer_s)


def test_a_pipeline_has_a_bubble():
    whole = step_time(run_of(gpus=2, engine="megatron", tensor_parallel=1, update_tokens=120), PLAIN)
    staged = step_time(run_of(gpus=2, engine="megatron", pipeline_parallel=2, update_tokens=120), PLAIN)
    # 8 sequences of 30 tokens in micro-batches of 120: two, so (2 - 1) / 2 more.
    optimizer = 2 * 28 * 17192 / 2 / 1e9
    assert (staged.update_s - optimizer) == pytest.approx(
        1.5 * SHAPE.forward_flops(480, 16 * 30**2) * 4 / 2e12, rel=1e-3
    )
    assert whole.update_s < staged.update_s + 6 * 17192 * 2 / 1e9


def test_offloaded_states_travel_both_ways_once_a_step():
    plain = step_time(run_of(), PLAIN).update_s
    both = step_time(run_of(param_offload=True, optimizer_offload=True), PLAIN).update_s
    # Weights, and two moments, of 4 bytes, out and back.
    assert both - plain == pytest.approx(2 * 3 * 4 * 17192 / 1e9)


def test_decoding_reads_weights_and_contexts():
    run = run_of()
    # Weights without the embedding that is looked up; 100 tokens of context of 32 bytes each for 3 sequences.
    read = (17192 - 8000) * 2 + 3 * 100 * 32
    assert decode_step_s(SHAPE, run, replace(PLAIN, peak_tflops=1e6), 3, 100) == pytest.approx(read / 1e9)
    flops = 3 * (2 * (2 * 576 + 8000) + 4 * 2 * 8 * 100)
    assert decode_step_s(SHAPE, run, replace(PLAIN, memory_gb_s=1e6), 3, 100) == pytest.approx(flops / 1e12)


def test_decoding_reads_the_experts_that_are_chosen():
    shape, fast = shape_of("Qwen/Qwen3-30B-A3B"), replace(PLAIN, peak_tflops=1e9)
    one, many = (decode_step_s(shape, run_of(shape=shape), fast, sequences, 0) for sequences in (1, 1000))
    active = shape.parameters - shape.embedding_parameters - 48 * 120 * 3 * 2048 * 768
    assert one == pytest.approx(active * 2 / 1e9)
    assert many == pytest.approx((shape.parameters - shape.embedding_parameters) * 2 / 1e9, rel=1e-6)


def test_generation_of_equal_responses_in_two_waves():
    fast = replace(PLAIN, peak_tflops=1e6)
    run = run_of(rollout=Rollout(1, 8, kv_cache_gb=1, max_sequences=8))
    # 16 responses, 8 at once: 20 steps at the mean context, then 20 with the contexts growing from 10 to 30.
    step = ((17192 - 8000) * 2 + 8 * 20 * 32) / 1e9
    assert generation(run, fast) == pytest.approx(40 * step, rel=1e-3)
    assert generation(run, replace(fast, request_overhead_s=1)) == pytest.approx(16 + 40 * step, rel=1e-3)


def test_a_small_cache_limits_sequences():
    # 32 bytes a token; 20 tokens in the middle of a response: 640 bytes each.
    run = run_of(rollout=Rollout(1, 8, kv_cache_gb=6400 / 1e9, max_sequences=100))
    assert concurrency(run, PLAIN) == pytest.approx(10)


@pytest.mark.parametrize("mean", [1, 100, 500, 900, 1000])
def test_lengths_have_the_mean_that_is_asked_for(mean):
    lengths = Lengths(mean, 1000, 0.01)
    # The mean of what is never negative is the integral of the share that is longer.
    width = 1000 / 100_000
    found = sum(lengths.longer_than((i + 0.5) * width) for i in range(100_000)) * width
    assert found == pytest.approx(mean, rel=1e-3)
    assert lengths.longer_than(1000) >= lengths.share > 0


def test_the_longest_response_holds_up_the_step():
    short = run_of(replace(BATCH, response_tokens=20, max_response_tokens=20))
    long = run_of(replace(BATCH, response_tokens=20, max_response_tokens=2000, limit_share=0.01))
    assert generation(long, PLAIN) > 3 * generation(short, PLAIN)


def test_a_generation_ends_with_its_longest_response():
    """Of 16 exponential lengths of mean 20 the longest is 20 * (1 + 1/2 + ... + 1/16) on average; a step takes 1 s."""
    fast = replace(PLAIN, peak_tflops=1e9, memory_gb_s=1e9, decode_step_overhead_s=1)
    run = run_of(replace(BATCH, response_tokens=20, max_response_tokens=400, limit_share=0))
    assert generation(run, fast) == pytest.approx(20 * sum(1 / i for i in range(1, 17)), rel=0.01)


def test_squares_of_equal_lengths():
    assert squared_lengths(BATCH) == pytest.approx(30**2, rel=1e-3)
    # Of an exponential of mean 20, far below its limit: twice the square of the mean.
    spread = replace(BATCH, prompt_tokens=0, max_response_tokens=1000, limit_share=0)
    assert squared_lengths(spread) == pytest.approx(2 * 20**2, rel=0.02)


def test_separate_engines_overlap_with_training():
    run = run_of(gpus=2, rollout=Rollout(2, 8, colocated=False, kv_cache_gb=1))
    times = step_time(run, PLAIN)
    assert times.total_s == max(times.generation_s, times.training_s) + times.weight_sync_s


def test_more_gpus_pay_until_they_do_not():
    batch = Batch(512, 16, 128, 1, 100, 1000, 1024, 8192)
    run = run_of(batch, gpus=8, shape=shape_of("Qwen/Qwen2.5-7B"), rollout=Rollout(8, 8))
    slow = replace(PLAIN, peak_tflops=100, memory_gb_s=1000, nvlink_gb_s=100, network_gb_s=10)
    rows = scale(run, slow)
    assert [row.gpus for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert rows[0].efficiency == 1
    for row in rows:
        assert row.efficiency == pytest.approx(rows[0].step_s * 8 / (row.step_s * row.gpus))
        assert row.gpu_hours_per_100_steps == pytest.approx(100 * row.gpus * row.step_s / 3600)
    end = stops_paying_at(rows)
    assert [row.efficiency < 0.5 for row in rows] == [row.gpus >= end for row in rows]
    # The longest response takes the same time on any number of GPUs.
    assert rows[-1].generation_s > rows[0].generation_s / 128


def test_numbers_of_gpus_that_do_not_divide_are_left_out():
    run = run_of(gpus=12, engine="megatron", tensor_parallel=4, pipeline_parallel=3, rollout=Rollout(12, 12))
    assert scale(run, PLAIN) == []
    run = run_of(gpus=16, engine="megatron", tensor_parallel=4, pipeline_parallel=4, rollout=Rollout(16, 8))
    assert [row.gpus for row in scale(run, PLAIN)] == [16, 32, 64, 128, 256, 512, 1024]


def test_shares_of_trainer_and_engines_stay():
    run = run_of(gpus=12, rollout=Rollout(4, 4, colocated=False)).on_gpus(64)
    assert (run.trainer.gpus, run.rollout.gpus, run.trainer.shards) == (48, 16, 48)
    assert math.isclose(run.gpus, 64)


def test_experts_have_an_efficiency_of_their_own():
    gpu = replace(PLAIN, matmul_efficiency=0.5, expert_efficiency=0.25)
    experts = ModelShape(8, 2, 2, 1, 4, 16, 1000, False, experts=4, experts_per_token=2)
    for shape, slower in ((SHAPE, 2), (experts, 4)):
        run = run_of(shape=shape)
        assert step_time(run, gpu).old_log_prob_s == pytest.approx(slower * step_time(run, PLAIN).old_log_prob_s)


def test_groups_without_a_sequence_do_nothing():
    """16 responses keep 16 of 32 GPUs busy, so twice as many take no less time than 16."""
    instant = replace(PLAIN, network_gb_s=1e9, nvlink_gb_s=1e9)
    sixteen, more = (step_time(run_of(gpus=gpus), instant).old_log_prob_s for gpus in (16, 32))
    assert more == pytest.approx(sixteen)


def test_tensor_parallel_gpus_exchange_the_hidden_state():
    times = [step_time(run_of(gpus=2, engine="megatron", tensor_parallel=n), PLAIN) for n in (1, 2)]
    # 480 tokens of 8 bf16 values, in 2 layers: two all-reduces each of 2 * 1/2 of the bytes.
    hidden_bytes = 480 * 8 * 2 * 2
    assert times[1].old_log_prob_s - times[0].old_log_prob_s == pytest.approx(4 * hidden_bytes / 2 / 1e9)


def test_weights_are_gathered_as_stored_and_copied_as_used():
    times = step_time(run_of(gpus=4), replace(PLAIN, weight_sync_overhead_s=1))
    assert times.weight_sync_s == pytest.approx(1 + 0.75 * 4 * 17192 / 1e9 + 2 * 17192 / 1e9)


def test_prompts_are_read_before_generation():
    long = run_of(replace(BATCH, prompt_tokens=1000, max_prompt_tokens=1000))
    instant = replace(PLAIN, memory_gb_s=1e9)
    prefill_s = 16 * SHAPE.forward_flops(1000, 1000**2) / 1e12
    decode_s = 20 * 16 * (2 * (2 * 576 + 8000) + 4 * 2 * 8 * 1010) / 1e12
    assert generation(long, instant) == pytest.approx(prefill_s + decode_s, rel=1e-3)


def test_keys_and_values_are_shared_among_their_heads_only():
    """One head of keys on two GPUs is there twice; weights are shared among both."""
    fast, two = replace(PLAIN, peak_tflops=1e9, nvlink_gb_s=1e9), Rollout(2, 8, kv_cache_gb=1, tensor_parallel=2)
    read = (17192 - 8000) * 2 / 2 + 3 * 100 * 32
    assert decode_step_s(SHAPE, run_of(gpus=2, rollout=two), fast, 3, 100) == pytest.approx(read / 1e9)
    assert kv_tokens(run_of(gpus=2, rollout=two), fast) == kv_tokens(run_of(), fast)
