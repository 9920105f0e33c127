"""Find and read the final answer of a response. Strings in, strings and numbers out."""

import re
from decimal import Decimal

# An optional sign, digits with optional thousands commas, optional decimals. Nothing else: no words, no units.
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+", re.ASCII)


def extract_answer(text: str) -> str:
    r"""Return the part of a response that states its answer.

    It is what follows the last `####` (GSM8K's marker), up to the end of that line; without the
    marker, the whole response. White space around it is dropped.

    Example:
        >>> extract_answer("3 + 4 is 7.\n#### 7\n")
        '7'
        >>> extract_answer(" 12 ")
        '12'
    """
    _before, marker, after = text.rpartition("####")
    if not marker:
        return text.strip()
    lines = after.strip().splitlines()
    return lines[0].strip() if lines else ""


def parse_number(text: str) -> Decimal | None:
    """Read a plain decimal number exactly, or return None.

    A leading dollar sign and thousands commas are allowed, as in GSM8K. Anything else around the
    number makes it not a number: a response must commit to one answer.

    Example:
        >>> parse_number("$1,234.50")
        Decimal('1234.50')
        >>> parse_number("12 apples") is None
        True
    """
    text = text.strip().removeprefix("$")
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None
