"""Find the model to evaluate, and the config of the run it comes from."""

import hashlib
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfpo_verl.doctor.model import is_folder
from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.export.checkpoints import find_checkpoint, is_model, lookup, run_config
from cfpo_verl.export.merge import RECORD, exported
from cfpo_verl.files import read_json_object, reading

_EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class EvalModel:
    """A model that vLLM can load.

    Args:
        path: Hub id, or folder as an absolute path, since engines may have another working directory.
        given: The model as the user wrote it.
        run_dir: Folder of the `cfpo-verl train` run it comes from.
        step: Training step.
        config: Resolved config of that run; empty if there is none.
    """

    path: str
    given: str
    run_dir: str | None = None
    step: int | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Default name of its evaluation."""
        return Path(self.run_dir or self.path).name

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template in the run's config."""
        return dict(lookup(self.config, "data.apply_chat_template_kwargs", {}))

    def as_dict(self) -> dict[str, Any]:
        """Return the entry `model` of summary.json."""
        return {"path": self.path, "given": self.given, "run_dir": self.run_dir, "step": self.step}


def find_model(given: str, step: int | None = None, trust_remote_code: bool = False) -> EvalModel:
    """Find the model that a command-line argument refers to. A verl checkpoint is exported first.

    Args:
        given: A Hugging Face folder, a hub id, a run folder of `cfpo-verl train`, or a verl checkpoint.
        step: Step of the run's checkpoint; None for the last complete one.
        trust_remote_code: Whether the model folder's own Python code may run.

    Raises:
        CheckpointError: If it is a folder with neither a model nor a checkpoint.
        ExportError: If the export fails.
        EvaluationError: If `step` is given for something other than a run.
    """
    path = Path(os.path.expanduser(given))
    if is_model(path):
        if step is not None:
            raise EvaluationError(f"{given} is a single model: --step needs a run folder")
        record = path / RECORD
        made_from = read_json_object(record).get("checkpoint") if record.is_file() else None
        folder = str(path.absolute())
        if not isinstance(made_from, str) or not Path(made_from).is_dir():
            return EvalModel(folder, given)
        checkpoint = find_checkpoint(Path(made_from))
        return _of_run(folder, given, checkpoint.run_dir, checkpoint.step)
    if not is_folder(given):
        return EvalModel(given, given)
    checkpoint = find_checkpoint(path, step)
    return _of_run(str(exported(checkpoint, trust_remote_code)), given, checkpoint.run_dir, checkpoint.step)


def _of_run(path: str, given: str, run_dir: Path | None, step: int | None) -> EvalModel:
    if run_dir is None:
        return EvalModel(path, given, None, step)
    return EvalModel(path, given, str(run_dir), step, run_config(run_dir))


def fingerprint(path: str, revision: str | None) -> str:
    """Hash a model's files, so that an evaluation is not resumed with another model in the same folder.

    Only the size and the first and last MiB of each file are hashed, since training changes nearly all weights.

    Args:
        path: Folder or hub id.
        revision: Commit on the hub.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{revision}"
    digest = hashlib.sha256()
    with reading(folder):
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name not in (RECORD, "README.md"):
                size = file.stat().st_size
                digest.update(f"{file.name} {size}".encode())
                with file.open("rb") as opened:
                    digest.update(opened.read(_EDGE_BYTES))
                    opened.seek(max(0, size - _EDGE_BYTES))
                    digest.update(opened.read(_EDGE_BYTES))
    return digest.hexdigest()


def command_line() -> str:
    """Return the command line of this process, quoted for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
