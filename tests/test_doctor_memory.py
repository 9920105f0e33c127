"""cfpo_verl.doctor.memory: the estimate of memory against the GPU."""

from doctor_configs import failed, gpu_config, ok, quickstart, warnings

from cfpo_verl.doctor.memory import check_memory


def test_a_run_that_fits_says_how_much_it_takes():
    [found] = ok(check_memory(quickstart()))
    assert "GB at the peak of" in found


def test_a_model_that_is_too_large_is_warned_of_with_the_first_change():
    config = gpu_config("actor_rollout_ref.model.path=Qwen/Qwen2.5-32B", "trainer.n_gpus_per_node=2")
    [problem] = warnings(check_memory(config))
    assert problem.startswith("estimated to need too much memory: about ")
    assert "for H100-80GB with 80 GB. First trainer.nnodes=2 (not enough alone)" in problem
    assert failed(check_memory(config)) == []


def test_a_model_of_unknown_shape_is_not_estimated():
    [found] = ok(check_memory(gpu_config("actor_rollout_ref.model.path=somebody/unknown")))
    assert found.startswith("not estimated: actor_rollout_ref.model.path=somebody/unknown")
