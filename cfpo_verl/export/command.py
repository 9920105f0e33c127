"""What `cfpo-verl export` does."""

import json
from collections.abc import Sequence
from pathlib import Path

from cfpo_verl.export.card import write_card
from cfpo_verl.export.checkpoints import CheckpointError, find_checkpoint
from cfpo_verl.export.merge import Check, export


def export_with_card(
    path: Path, out: Path, step: int | None, evaluations: Sequence[Path], trust_remote_code: bool
) -> Check:
    """Export a checkpoint, compare it on a prompt and write its model card.

    Args:
        path: Run folder or checkpoint.
        out: The folder to make.
        step: Which checkpoint of a run; None for the last one.
        evaluations: Folders of evaluations for the card.
        trust_remote_code: Whether code of the model's folder may run.

    Raises:
        CheckpointError: If there is no checkpoint or no evaluation, or `out` is taken.
        ExportError: If the merger fails, or the export says something else than the checkpoint.
    """
    checkpoint = find_checkpoint(path, step)
    files = [folder / "summary.json" for folder in evaluations]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file. --evaluation takes the folder of a finished `cfpo-verl eval`")
    summaries = [json.loads(file.read_text()) for file in files]
    return export(
        checkpoint,
        out,
        trust_remote_code,
        lambda folder, check: write_card(folder, out.absolute().name, checkpoint, check, summaries),
    )
