"""What a check returns."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        status: "failed" if a run would die or train the wrong thing, "warning" if it may not be what is meant.
        found: The value and the rule, as a sentence without its full stop.
        way_out: What to do about it; nothing where all is well.
        check: Name of the check, set by `examine`.
    """

    status: Status
    found: str
    way_out: str = ""
    check: str = ""

    def __str__(self) -> str:
        """Return the finding and the way out as sentences."""
        return f"{self.found}. {self.way_out}" if self.way_out else self.found


def ok(found: str) -> Finding:
    """Return that all is well, and with what."""
    return Finding("ok", found)


def warning(found: str, way_out: str) -> Finding:
    """Return what is allowed but probably not meant."""
    return Finding("warning", found, way_out)


def failed(found: str, way_out: str) -> Finding:
    """Return what must not be started."""
    return Finding("failed", found, way_out)
