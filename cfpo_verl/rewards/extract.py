"""Find, read and compare final answers. Strings in, strings and numbers out."""

import re
from decimal import Decimal

# An optional sign, digits with optional thousands commas, optional decimals. Nothing else: no words, no units.
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+", re.ASCII)

# What changes how LaTeX looks and not what it says: spacing, sizes of brackets and fractions.
_LATEX_LOOKS = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[,;:! ]|~|\s+")


def extract_answer(text: str) -> str:
    r"""Return the part of a response that states its answer, without white space around it.

    What follows the last `####` (GSM8K's marker), up to the end of that line, unless a `\boxed{...}` comes later still:
    headings in markdown have that marker too. Without a marker, or with nothing behind it, what stands in the last
    `\boxed{...}`; without both the whole response.

    Example:
        >>> extract_answer("3 + 4 is 7.\n#### 7\n")
        '7'
        >>> extract_answer(r"#### Step 1: halve it. So it is \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> extract_answer(" 12 ")
        '12'
    """
    _before, marker, after = text.rpartition("####")
    if marker:
        boxed = last_boxed(after)
        stated = after.strip().splitlines()
        if boxed is None and stated:
            return stated[0].strip()
        return boxed or last_boxed(text) or ""
    boxed = last_boxed(text)
    return text.strip() if boxed is None else boxed


# A box, an escaped character, or a brace.
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s{\\$]+))|\\.|([{}])", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}` or `\fbox{...}` with balanced braces, or None.

    The last one is the one that begins last. Escaped braces do not count. `\boxed 5` is read as well. The time is
    linear in the length of the text, whatever it is: a policy that has lost its way repeats itself.

    Example:
        >>> last_boxed(r"\boxed{1} and then \boxed{\frac{2}{3}}")
        '\\frac{2}{3}'
        >>> last_boxed(r"\boxed{1} and then \boxed{2")
        '1'
        >>> last_boxed("no box") is None
        True
    """
    last: tuple[int, str] | None = None
    open_braces: list[int | None] = []  # where a box begins, None for other braces
    for token in _BOX_OR_BRACE.finditer(text):
        box, bare, brace = token.groups()
        if box:
            open_braces.append(token.end())
        elif bare:
            last = (token.end(), bare.rstrip(".,;"))
        elif brace == "{":
            open_braces.append(None)
        elif brace == "}" and open_braces:
            begin = open_braces.pop()
            if begin is not None and (last is None or begin > last[0]):
                last = (begin, text[begin : token.start()].strip())
    return None if last is None else last[1]


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
        return parse_number(answer.strip().removesuffix(".").removesuffix("$")) == gold_number
    answer = normalise_answer(answer)
    return bool(answer) and answer == normalise_answer(gold)


def canonical_answer(gold: str) -> str:
    r"""Return a text that is the same for gold answers that want the same.

    Example:
        >>> canonical_answer("2.0") == canonical_answer("2")
        True
        >>> canonical_answer(r"\dfrac12") == canonical_answer(r"\frac12")
        True
    """
    number = parse_number(gold)
    return normalise_answer(gold) if number is None else str(number.normalize())
