"""Text files that are never half written."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is either the old or the new one, never half of it."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
