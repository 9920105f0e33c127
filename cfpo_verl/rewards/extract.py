"""Find, read and compare final answers. Strings in, strings and numbers out."""

import re
from decimal import Decimal

# An optional sign, digits with optional thousands commas, optional decimals. Nothing else: no words, no units.
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+", re.ASCII)

# What changes how LaTeX looks and not what it says: spacing, sizes of brackets and fractions.
_LATEX_LOOKS = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[,;:! ]|~|\s+")


def extract_answer(text: str) -> str:
    r"""Return the part of a response that states its answer.

    It is what follows the last `####` (GSM8K's marker), up to the end of that line; without the marker what stands in
    the last `\boxed{...}`; without that the whole response. White space around it is dropped.

    Example:
        >>> extract_answer("3 + 4 is 7.\n#### 7\n")
        '7'
        >>> extract_answer(r"So it is \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> extract_answer(" 12 ")
        '12'
    """
    _before, marker, after = text.rpartition("####")
    if marker:
        lines = after.strip().splitlines()
        return lines[0].strip() if lines else ""
    boxed = last_boxed(text)
    return text.strip() if boxed is None else boxed


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}` or `\fbox{...}` with balanced braces, or None.

    Escaped braces do not count. `\boxed 5` is read as well.

    Example:
        >>> last_boxed(r"\boxed{1} and then \boxed{\frac{2}{3}}")
        '\\frac{2}{3}'
        >>> last_boxed(r"\boxed{1} and then \boxed{2")
        '1'
        >>> last_boxed("no box") is None
        True
    """
    for opening in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*(\{|[^\s{\\$]+)", text))):
        if opening[1] != "{":
            return opening[1].rstrip(".,;")
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[opening.end() :]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[opening.end() : opening.end() + brace.start()].strip()
    return None


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


def normalise_answer(text: str) -> str:
    r"""Return an answer without what only changes how it looks.

    Dollar signs around it, a full stop behind it, white space, LaTeX spacing and bracket sizes are dropped; `\dfrac`
    and `\tfrac` become `\frac`. Nothing is computed.

    Example:
        >>> normalise_answer(r" $\left( 3, \dfrac{\pi}{2} \right)$. ")
        '(3,\\frac{\\pi}{2})'
    """
    text = text.strip().rstrip(".").strip()
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text.strip("$")
    return _LATEX_LOOKS.sub("", text).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")


def same_answer(answer: str, gold: str) -> bool:
    r"""Return whether an answer is the gold answer.

    A gold number wants the same number and nothing else; any other gold wants the same text after `normalise_answer`.
    An empty answer is never right.

    Example:
        >>> same_answer("1,000.0", "1000"), same_answer(r"\dfrac12", r"\frac12"), same_answer("0.5", r"\frac12")
        (True, True, False)
    """
    gold_number = parse_number(gold)
    if gold_number is not None:
        return parse_number(answer.strip().removesuffix("$")) == gold_number
    answer = normalise_answer(answer)
    return bool(answer) and answer == normalise_answer(gold)
