"""Every attribute of another package that this project uses and that may change without notice.

These are all uses of verl and vLLM, and the private names of other packages.

python -m cfpo_verl.upstream            check the installed ones
python -m cfpo_verl.upstream FOLDER     compare them with the verl in a folder (see `make compat`)
"""

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.files import FileError
from cfpo_verl.terminal import App


@dataclass(frozen=True)
class Use:
    """Something of another package that this project relies on.

    Args:
        module: Its module.
        attribute: Its dotted name in the module; "" for a text in the module's source.
        where: Modules of ours that use it, comma-separated, without cfpo_verl.
        why: What it is used for.
        parameters: Parameters that we pass by keyword, or fields of a dataclass that we read.
        word: Text the module's source must contain, for behaviour that has no importable name.
    """

    module: str
    attribute: str
    where: str
    why: str
    parameters: tuple[str, ...] = ()
    word: str = ""

    @property
    def key(self) -> str:
        """The use in one line, unique among all."""
        return f"{self.module}.{self.attribute}" if self.attribute else f"{self.module} mentions {self.word}"


_CORE = "verl.trainer.ppo.core_algos"
_CONFIG = "verl.workers.config"
_PLATFORM = "verl.plugin.platform"
_TRAINER = "verl.trainer.ppo.v1.trainer_base"
_FSDP_CHECKPOINTS = "verl.utils.checkpoint.fsdp_checkpoint_manager"
USES = (
    Use(
        _CORE,
        "POLICY_LOSS_REGISTRY",
        "registration, config, doctor.algorithm, doctor.environment",
        "rejects a name that verl has",
    ),
    Use(_CORE, "ADV_ESTIMATOR_REGISTRY", "registration, doctor.environment", "rejects a name that verl has"),
    Use(_CORE, "register_policy_loss", "registration", "adds the losses", ("name",)),
    Use(_CORE, "register_adv_est", "registration", "adds the estimators", ("name_or_enum",)),
    Use(
        _CORE,
        "agg_loss",
        "registration",
        "aggregates token losses; global_batch_info holds the last four",
        (
            "loss_mat",
            "loss_mask",
            "loss_agg_mode",
            "dp_size",
            "batch_num_tokens",
            "global_batch_size",
            "loss_scale_factor",
        ),
    ),
    Use(
        _CONFIG,
        "ActorConfig",
        "registration, config",
        "the loss reads its options from it",
        (
            "strategy",
            "policy_loss",
            "global_batch_info",
            "loss_agg_mode",
            "loss_scale_factor",
            "clip_ratio",
            "clip_ratio_low",
            "clip_ratio_high",
        ),
    ),
    Use(_CONFIG, "PolicyLossConfig", "config", "base of our typed options", ("loss_mode",)),
    Use("verl", "", "plugin", "loads entry points of this group", word="verl.plugins"),
    Use(
        "transfer_queue",
        "kv_list",
        "registration",
        "keys of the responses, which tell conversations apart",
        ("partition_id",),
    ),
    Use(
        "verl.trainer.ppo.v1.agent_loop_tq",
        "",
        "advantages",
        "form of these keys",
        word='f"{uid}_{session_id}_{i}"',
    ),
    Use(
        "verl.utils.metric.utils", "", "config", "the minimum over mini-batches by a metric's name", word='"min" in key'
    ),
    Use("verl", "", "doctor.environment", "chooses the plugins to load", word="VERL_USE_EXTERNAL_PLUGINS"),
    Use("verl", "", "doctor.environment", "loads modules by name", word="VERL_USE_EXTERNAL_MODULES"),
    Use("verl.trainer.main_ppo", "main.__wrapped__", "train", "the trainer inside verl's Hydra decorator", ("config",)),
    Use("verl.utils.tracking", "", "train", "path of the metrics file", word="VERL_FILE_LOGGER_PATH"),
    Use(
        "verl.trainer.ppo.checkpoint_callback",
        "CheckpointCallback.on_save",
        "stop_request",
        "the trainer's only hook",
        ("trainer", "global_step", "checkpoint_dir", "async_save"),
    ),
    Use("verl.utils.import_utils", "load_class_from_fqn", "stop_request", "loads the user's own callback", ("fqn",)),
    Use(_TRAINER, "", "stop_request", "ends its loop", word="while current_epoch < self.config.trainer.total_epochs"),
    Use(_TRAINER, "", "stop_request", "saves this step", word="if self.config.trainer.save_freq > 0 and ("),
    Use(_TRAINER, "", "stop_request", "whether this step is the last", word="self.total_training_steps ="),
    Use(_TRAINER, "", "resume", "loads the named checkpoint", word='self.config.trainer.resume_mode == "resume_path"'),
    Use(_TRAINER, "", "checkpoints", "name of the data loader's state", word='"data.pt"'),
    Use(_TRAINER, "", "checkpoints", "name of the prompts in flight", word='"transfer_queue"'),
    *(
        Use(
            _FSDP_CHECKPOINTS, "", "checkpoints", "name of a shard", word=f"{name}_world_size_{{self.world_size}}_rank_"
        )
        for name in ("model", "optim", "extra_state")
    ),
    Use(_FSDP_CHECKPOINTS, "", "checkpoints", "number of ranks that saved", word='"fsdp_config.json"'),
    *(
        Use("verl.utils.megatron_utils", "", "checkpoints", "name in a Megatron checkpoint", word=f'"{name}"')
        for name in ("ckpt_contents.json", "huggingface", "dist_ckpt", "optimizer", "extra")
    ),
    Use("verl.utils.tracking", "Tracking.supported_backend", "doctor.tracking", "verl's loggers"),
    Use("verl.utils.tracking", "", "report.readers.tensorboard", "event files", word="SummaryWriter"),
    Use(_TRAINER, "", "report.readers.run_folder", "printed after the last step", word="Final validation metrics"),
    Use(_TRAINER, "", "report.readers.responses", "where responses are written", word="rollout_data_dir"),
    Use(_TRAINER, "", "report.readers.responses", "where responses are written", word="validation_data_dir"),
    Use(
        "verl.utils.config",
        "validate_config",
        "doctor.algorithm",
        "verl's own rules",
        ("config", "use_reference_policy", "use_critic"),
    ),
    Use("verl.utils.config", "omega_conf_to_dataclass", "doctor.algorithm", "builds typed configs", ("config",)),
    Use("verl.trainer.ppo.utils", "need_critic", "doctor.algorithm", "argument of verl's rules", ("config",)),
    Use("verl.trainer.ppo.utils", "need_reference_policy", "doctor.algorithm", "argument of verl's rules", ("config",)),
    Use(
        "verl.trainer.ppo.reward",
        "get_custom_reward_fn",
        "doctor.data",
        "loads the reward as a worker does",
        ("config",),
    ),
    Use(
        "verl.utils.reward_score",
        "default_compute_score",
        "doctor.data",
        "whether verl has a reward for a data source",
        ("data_source", "solution_str", "ground_truth"),
    ),
    Use(
        "verl.single_controller.ray",
        "ResourcePoolManager",
        "demands",
        "CPUs that each GPU of a pool holds",
        ("resource_pool_spec", "max_colocate_count"),
    ),
    Use(_PLATFORM, "PlatformBase", "cpu.platform", "base of the CPU platform"),
    Use(_PLATFORM, "PlatformRegistry.register", "cpu.platform", "adds the CPU platform", ("platform",)),
    Use(f"{_PLATFORM}.platform_manager", "", "cpu", "selects the platform", word="VERL_PLATFORM"),
    Use(
        "verl.workers.engine.base",
        "",
        "hydra_configs.platform.cpu",
        "selects the engine's device",
        word="VERL_ENGINE_DEVICE",
    ),
    Use(
        "verl.utils.distributed",
        "initialize_global_process_group_ray",
        "cpu.verl_shims",
        "replaced on a CPU",
        ("timeout_second", "backend"),
    ),
    Use(
        "verl.utils.fsdp_utils",
        "CPUOffloadPolicy",
        "cpu.verl_shims",
        "replaced on a CPU, where memory cannot be pinned",
    ),
    Use(
        "verl.trainer.ppo.v1.replay_buffer",
        "ReplayBuffer",
        "cpu.replay_buffer",
        "polled more often on a CPU",
        ("poll_interval",),
    ),
    Use(
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer",
        "BucketedWeightReceiver.receive_weights",
        "cpu.vllm_shims",
        "its callback gets copies on a CPU",
        ("on_bucket_received",),
    ),
    Use(
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer",
        "BucketedWeightReceiver.__init__",
        "sockets",
        "its socket moves into the folder of the job",
        ("zmq_handle",),
    ),
    Use(
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer",
        "BucketedWeightSender.__init__",
        "sockets",
        "its socket moves into the folder of the job",
        ("zmq_handle",),
    ),
    Use("verl.third_party.vllm", "", "cpu.vllm_metadata", "asks for the version of vllm", word='package_name = "vllm"'),
    Use(
        "vllm.model_executor.layers.utils",
        "dispatch_cpu_unquantized_gemm",
        "cpu.vllm_shims",
        "replaced on a CPU, where it drops the weights",
        ("layer", "remove_weight"),
    ),
    Use("verl.utils", "hf_tokenizer", "evaluation.prompts", "the tokenizer as training has it", ("trust_remote_code",)),
    Use(
        "verl.utils.tokenizer.continuous_token_wiring",
        "create_continuous_token_builder",
        "evaluation.prompts",
        "the tokens of a prompt as the agent loop makes them",
        ("tokenizer", "hf_model_type", "chat_template_kwargs"),
    ),
    Use(
        "verl.utils.tokenizer.continuous_token",
        "ContinuousTokenBuilder.build_initial_tokens",
        "evaluation.prompts",
        "the tokens of a prompt",
        ("messages",),
    ),
    Use(
        "verl.model_merger.base_model_merger",
        "",
        "export.merge",
        "options of verl's merger",
        word="--tie-word-embedding",
    ),
    Use(
        "verl.model_merger.base_model_merger",
        "",
        "export.merge",
        "an adapter is written separately",
        word="lora_train_meta.json",
    ),
    Use("verl.model_merger.__main__", "main", "export.merge", "verl's merger"),
    Use("vllm", "EngineArgs", "evaluation.engine", "arguments of an engine", ("model", "max_model_len")),
    Use("vllm", "LLMEngine.from_engine_args", "evaluation.engine", "starts an engine", ("engine_args",)),
    Use("vllm", "LLMEngine.add_request", "evaluation.engine", "adds a request", ("request_id", "prompt", "params")),
    Use("vllm", "LLMEngine.step", "evaluation.engine", "generates"),
    Use("vllm", "LLMEngine.has_unfinished_requests", "evaluation.engine", "whether requests are left"),
    Use(
        "vllm",
        "SamplingParams",
        "evaluation.engine",
        "how a response is sampled",
        ("temperature", "top_p", "top_k", "max_tokens", "seed", "detokenize", "output_kind"),
    ),
    Use("vllm.sampling_params", "RequestOutputKind.DELTA", "evaluation.engine", "outputs only new tokens"),
    Use("vllm.plugins", "", "cpu.vllm_shims", "loads entry points of this group", word="vllm.general_plugins"),
    Use(
        "hydra._internal.config_repository",
        "ConfigRepository.load_config",
        "benchmarks.combinations",
        "replaced by one that reads each file once",
        ("config_path",),
    ),
    Use("ray._private.utils", "get_num_cpus", "doctor.machine", "the CPUs that ray.init counts in a container"),
    Use(
        "multiprocessing.forkserver",
        "_forkserver.__init__",
        "rewards.workers",
        "forgets a fork server that belongs to the parent process",
    ),
    Use(
        "multiprocessing.context",
        "ForkServerProcess._Popen",
        "rewards.workers",
        "starts a worker process",
        ("process_obj",),
    ),
    Use("typer.core", "TyperGroup.resolve_command", "cli", "imports a command when it runs", ("ctx", "args")),
    Use("typer.core", "TyperCommand.invoke", "terminal", "runs a command", ("ctx",)),
    Use("typer.main", "get_command", "cli", "makes a command of an application", ("typer_instance",)),
)


def describe(use: Use) -> str:
    """Return the signature of what is used, or its type if it is not callable.

    Raises:
        LookupError: If it is missing, or lacks one of the parameters.
    """
    if not use.attribute:
        try:
            spec = find_spec(use.module)
        except ImportError:  # its parent package is missing
            spec = None
        if spec is None or spec.origin is None or use.word not in Path(spec.origin).read_text():
            raise LookupError(f"{use.key}: it does not")
        return "mentioned"
    try:
        value = importlib.import_module(use.module)
        for name in use.attribute.split("."):
            value = getattr(value, name)
    except Exception as error:  # importing another version may fail in any way
        raise LookupError(f"{use.key}: {error}") from error
    if not callable(value):
        return type(value).__name__
    signature = inspect.signature(value)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    lacking = [name for name in use.parameters if name not in signature.parameters and not takes_any]
    if lacking:
        raise LookupError(f"{use.key}: no parameter {', '.join(lacking)} in {signature}")
    # Without defaults and annotations, whose text depends on the version of Python.
    return f"({', '.join(signature.parameters)})"


def describe_all(uses: Iterable[Use] = USES) -> tuple[dict[str, str], list[str]]:
    """Return {key: signature or type} of what exists, and a message for each use that is missing."""
    from cfpo_verl.cpu import vllm_metadata

    vllm_metadata.install()  # verl's modules for vLLM need a distribution of that name
    described, missing = {}, []
    for use in uses:
        try:
            described[use.key] = describe(use)
        except LookupError as error:
            missing.append(f"{error} (used by cfpo_verl.{use.where}: {use.why})")
    return described, missing


def _compose_all() -> list[str]:
    """Compose every shipped experiment with the installed verl, and return what fails."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from cfpo_verl.composing import ConfigError, compose
    from cfpo_verl.config_groups import names

    problems = []
    for experiment in names("experiment"):
        try:
            OmegaConf.to_container(compose([f"experiment={experiment}"]), resolve=True)
        except (ConfigError, OmegaConfBaseException) as error:
            problems.append(f"experiment={experiment} does not compose: {error}")
    return problems


def _described_by_subprocess(folder: Path | None) -> dict[str, object]:
    """Describe all uses in a new process, with a folder first on its path."""
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none"}  # our plugin would reject another version
    if folder is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder.absolute()), env.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "cfpo_verl.upstream", "--json"]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = [line for line in answer.stdout.splitlines() if line.startswith('{"verl"')]
    if not lines:
        raise RuntimeError(f"the check itself failed:\n{answer.stderr}")
    return dict(json.loads(lines[-1]))


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return a message for each signature that differs."""
    return [f"{key} was {before[key]}, is {after[key]}" for key in before if key in after and before[key] != after[key]]


app = App()


@app.command(
    epilog="Example: pip install --no-deps --target build/newest verl && python -m cfpo_verl.upstream build/newest"
)
def _main(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder with another verl to compare with the installed one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the uses as JSON, for comparison.")] = False,
) -> None:
    """Check that everything cfpo_verl uses of verl, vLLM and others exists. Exit status 1 if something is missing."""
    if as_json:
        described, missing = describe_all()
        typer.echo(json.dumps({"verl": version("verl"), "uses": described, "missing": [*missing, *_compose_all()]}))
        raise SystemExit(1 if missing else 0)
    if folder is not None and not (folder / "verl" / "__init__.py").is_file():
        raise FileError(f"{folder}: no package verl here. Make one with pip install --no-deps --target {folder} verl")
    found = [_described_by_subprocess(place) for place in dict.fromkeys((None, folder))]
    last = found[-1]
    missing, described = list(last["missing"]), dict(last["uses"])  # type: ignore[call-overload]
    typer.echo(f"verl {last['verl']}: {len(described)} of {len(USES)} uses are there")
    for line in missing:
        typer.echo(f"gone: {line}")
    if len(found) > 1:
        typer.echo(f"against verl {found[0]['verl']}:")
        for line in compare(dict(found[0]["uses"]), described) or ["nothing changed"]:  # type: ignore[call-overload]
            typer.echo(f"  {line}")
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    app()
