"""What a check returns."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Args:
        status: "failed" if the run would crash or train something else than asked for, "warning" if the setting is
            allowed but probably a mistake.
        found: The value and the rule, a sentence without its full stop.
        way_out: How to correct it; empty if nothing is wrong.
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
    """Return a finding that nothing is wrong, with what was seen."""
    return Finding("ok", found)


def warning(found: str, way_out: str) -> Finding:
    """Return a finding that is allowed but probably a mistake."""
    return Finding("warning", found, way_out)


def failed(found: str, way_out: str) -> Finding:
    """Return a finding that forbids a start."""
    return Finding("failed", found, way_out)


def failed_with(message: str) -> Finding:
    """Return an error message as a failure. The last sentence of our own messages is the way out.

    Example:
        >>> failed_with("epsilon is 2. Choose less than 1").way_out
        'Choose less than 1'
    """
    found, stop, way_out = message.rpartition(". ")
    return failed(found, way_out) if stop else failed(message, "See the keys with --cfg job")
