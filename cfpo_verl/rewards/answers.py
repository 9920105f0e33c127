"""Parse answers: numbers, expressions, tuples, lists, sets, intervals, matrices and words, with units.

`read` turns the text of an answer into a tree. Spacing, sizes of brackets and fractions, thousands separators and other
variations in notation are normalised.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from cfpo_verl.rewards import algebra
from cfpo_verl.rewards.units import is_bare_unit, unit_name

# Longer texts are not parsed; the longest gold answer of the public sets has about 250 characters.
MAX_CHARACTERS = 1000
_MAX_ITEMS = 64
_REMEMBERED_CHARACTERS = 200
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Leaf:
    """An expression, a number or words.

    Args:
        text: The expression in normalised notation.
        unit: Its unit in canonical spelling, "%", "°", "$" or "".
        node: The parsed expression, if `algebra` can parse it.
        value: Its value, if it has no variables.
        words: Whether it is words, not mathematics.
    """

    text: str
    unit: str = ""
    node: algebra.Node | None = None
    value: algebra.Value | None = None
    words: bool = False


@dataclass(frozen=True)
class Group:
    r"""Several answers that belong together.

    Args:
        kind: "list" (of solutions, in any order), "set" (in any order), "union" (of intervals and sets), "matrix", or
            the brackets of a tuple or interval such as "()" or "[)".
        items: The parts. Those of a matrix are its rows, groups of kind "row".
        is_interval: Whether it was written as an inequality, so that it cannot be a tuple.
    """

    kind: str
    items: tuple["Answer", ...]
    is_interval: bool = False


@dataclass(frozen=True)
class Assignment:
    """A name and its value: x = 5, f(x) = 2x.

    Args:
        name: The left side.
        right: The right side.
        text: The whole text.
    """

    name: str
    right: "Answer"
    text: str


Answer = Leaf | Group | Assignment


# Unicode forms of mathematical signs. Look-alikes of digits and letters are left out on purpose.
_SIGNS = {
    "\u2212": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u00f7": r"\div ",
    "\u03c0": r"\pi ",
    "\u221a": r"\sqrt ",
    "\u221e": r"\infty ",
    "\u00b0": r"^\circ ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u00b1": r"\pm ",
    "\u00b2": "^2",
    "\u00b3": "^3",
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "\u03b8": r"\theta ",
    "\u03b1": r"\alpha ",
    "\u03b2": r"\beta ",
    "\u03bb": r"\lambda ",
}
_SIGN_TABLE = str.maketrans(_SIGNS)

_REPLACED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:mathbf|boldsymbol|bm|bf)(?![A-Za-z])\s*(?=\{(?:[^{}A-Za-z]|[A-Za-z](?![A-Za-z])|\\))", ""),
        (r"^(?:\\approx|\\sim|=)(?![A-Za-z])", ""),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"^\\mathbb\s*\{R\}$", r"(-\\infty,\\infty)"),
        (r"\\\\\[\w+\]", r"\\\\"),
        # Some gold answers of Minerva contain numpy code.
        (r"(?<![A-Za-z\\])np\.(?=[a-z]+\()", r"\\"),
        # Thousands: 10,\!080 and 11,\! 111 and 10{,}000 and 10\,000.
        (r"(?<=\d)(?:\{,\}|,\s*\\!)\s*(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)\\[, ](?=\d{3}(?!\d))", ""),
        (r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigg|Bigg)[lr]?(?![A-Za-z])", " "),
        (r"\\[!]", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"(?<=[A-Za-z)}])('+)", lambda match: "^{" + r"\prime" * len(match[1]) + "}"),
        (r"\((\w+)\)(?=_)", r"\1"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])", r"\\le "),
        (r"\\(?:gt)(?![A-Za-z])", ">"),
        (r"\\(?:lt)(?![A-Za-z])", "<"),
        (r"\\(?:neq|ne)(?![A-Za-z])", r"\\ne "),
        (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\(?:mathbb|mathcal|boldsymbol|mathbf|bm)\s*\{([A-Za-z0-9])\}", r"\1"),
        (r"\\(?:mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|boldsymbol|text|operatorname)\s*\{", r"\\text{"),
        (r"\\text\{\s*(arc)?(sin|cos|tan|cot|sec|csc|log|ln)\s*\}", r"\\\1\2 "),
        (r"\\text\{\s*([A-Za-z])\s*\}(?=[\^_(]|\s*[=<>])", r"\1"),
        (r"\\cdotp?(?![A-Za-z])|\\times(?![A-Za-z])|\*", r"\\cdot "),
        (r"\^\s*\{?\s*(?:\\circ|\\text\{\s*o\s*\})\s*\}?|\\degree(?![A-Za-z])", "°"),
        (r"\\%", "%"),
        (r"\\\$", "$"),
        (r"\\(?:dots|ldots|cdots)(?![A-Za-z])", "..."),
        (r"\s+", " "),
    )
)
# All spacing except the thin space of 10\,000.
_SPACES = re.compile(r"(?<!\\)\\(?:[;:>\s]|quad(?![A-Za-z])|qquad(?![A-Za-z])|,(?!\d{3})|$)|(?<![\\\d])\\,|~")
_OUTER_MATH = re.compile(r"\$+([^$]*)\$+|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)


def _tidy(text: str) -> str:
    """Normalise the notation of an answer."""
    text = _SPACES.sub(" ", text.translate(_SIGN_TABLE)).strip()
    while True:
        stripped = text.rstrip(".,;: \n").strip()
        match = _OUTER_MATH.fullmatch(stripped)
        if match:
            stripped = next(part for part in match.groups() if part is not None).strip()
        if stripped == text:
            break
        text = stripped
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    # Adjacent formulas such as `$69$,$84$`, unlike amounts of money, which start with the sign.
    return (text.replace("$", "") if text.endswith("$") or "$,$" in text else text).strip()


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text at separators outside all brackets."""
    if not separator.search(text):
        return [text]
    parts, depth, begin, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] not in ("{", "}"):
            match = separator.match(text, position) if depth == 0 else None
            if match is None:
                position += 2
                continue
        elif character == "\\":
            depth += 1 if text[position + 1] == "{" else -1
            position += 2
            continue
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        match = separator.match(text, position) if depth == 0 else None
        if match and match.end() > position:
            parts.append(text[begin:position])
            begin = position = match.end()
        else:
            position += 1
    return [*parts, text[begin:]]


_COMMA = re.compile(r",|;")
_WIDE_COMMA = re.compile(r", |;")
_AND = re.compile(r",?\s*(?:\\text\{,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_EQUALS = re.compile(r"=")
_ORDER = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>")
_GROUPED = re.compile(
    r"[-+]?\$? ?\d{1,3}(?:,\d{3})+(?:\.\d+)?\$?(?: ?%|°| ?\\(?:text|pi|sqrt)[^,]*| [A-Za-z ]+)?", re.ASCII
)
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+)(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?(?:'|\^\{?\\prime\}?)?(?:\((?:[A-Za-z](?:,\s*[A-Za-z])*)\))?"
)
_NAMES = re.compile(r"\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)")
_VARIABLE = re.compile(r"(?!\\pi$|\\infty$|e$|i$)(?:\\[A-Za-z]+|[A-Za-z])")
_MEMBER = re.compile(r"([A-Za-z]|\([A-Za-z](?:,\s*[A-Za-z])+\))\s*\\in(?![A-Za-z])\s*(.*)", re.DOTALL)
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_CHOICE = re.compile(r"\(?\s*(?:\\text\{)?\s*\(?([A-Z])\)?\s*\}?\s*\)?")
_CHOICE_AND_VALUE = re.compile(r"\\text\{\s*\(([A-Z])\)\s*\}\s*(\S.*)", re.DOTALL)
_TEXT_ALL = re.compile(r"\\text\{([^{}]*)\}")


def read(text: str) -> Answer:
    r"""Parse an answer.

    Example:
        >>> read(r"\left( 3, 0.5 \right)").kind, read("2, 3").kind, read(r"x \in [0,1)").kind
        ('()', 'list', '[)')
    """
    if len(text) > MAX_CHARACTERS:
        return Leaf(text, words=True)
    return _read_again(text) if len(text) <= _REMEMBERED_CHARACTERS else _read(_tidy(text), 0)


# All responses to a prompt share the gold answer, and often the answer. At most about 100 MB.
@lru_cache(maxsize=4096)
def _read_again(text: str) -> Answer:
    return _read(_tidy(text), 0)


def _read(text: str, depth: int) -> Answer:
    text = text.strip()
    if depth > _MAX_DEPTH:
        return Leaf(text, words=True)
    while text.startswith("{") and closes_at_end(text):
        text = text[1:-1].strip()
    whole = _TEXT_ALL.fullmatch(text)
    if whole:
        text = whole[1].strip()
        if re.fullmatch(r"[A-Za-z]{2,3}", text):  # not the product of two or three variables
            return Leaf(text.lower(), words=True)
    for reader in (_choice, _choice_with_value, _grouped, _union, _matrix, _bracketed, _list, _relation, _plus_minus):
        answer = reader(text, depth + 1)
        if answer is not None:
            return answer
    return _leaf(text)


def _choice(text: str, _depth: int) -> Answer | None:
    match = _CHOICE.fullmatch(text)
    return Leaf(match[1]) if match and len(text) > 1 else None


def _choice_with_value(text: str, depth: int) -> Answer | None:
    r"""Parse \textbf{(C)}\ 12, as in contests: the letter of the choice and its value."""
    match = _CHOICE_AND_VALUE.fullmatch(text)
    if not match or r"\text" in match[2]:
        return None  # two choices
    return Assignment(f"({match[1]})", _read(match[2], depth), _squeeze(text))


def _grouped(text: str, _depth: int) -> Answer | None:
    return _leaf(text.replace(",", "")) if _GROUPED.fullmatch(text) else None


def _group(kind: str, texts: list[str], depth: int) -> Answer | None:
    if len(texts) > _MAX_ITEMS:
        return Leaf(", ".join(texts), words=True)
    return Group(kind, tuple(_read(text, depth) for text in texts))


def _union(text: str, depth: int) -> Answer | None:
    parts = _split(text, _CUP)
    return _group("union", parts, depth) if len(parts) > 1 else None


def _matrix(text: str, depth: int) -> Answer | None:
    match = _MATRIX.fullmatch(text)
    if not match:
        return None
    rows = [row for row in match[2].split(r"\\") if row.strip()]
    if len(rows) > _MAX_ITEMS:
        return Leaf(text, words=True)
    return Group("matrix", tuple(_group("row", row.split("&"), depth) or Leaf("") for row in rows))


def _bracketed(text: str, depth: int) -> Answer | None:
    if text.startswith(r"\{") and text.endswith(r"\}") and len(_split(text, re.compile(r"(?<=\\\})"))) == 1:
        return _elements("set", text[2:-2], depth)
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or not closes_at_end(text):
        return None
    matrix = _matrix(text[1:-1].strip(), depth)
    if matrix is not None:
        return matrix
    inner = _split(text[1:-1], _COMMA)
    if len(inner) > 1:
        return _group(text[0] + text[-1], inner, depth)
    return _read(text[1:-1], depth) if text[0] + text[-1] == "()" else None


def closes_at_end(text: str) -> bool:
    """Return whether the bracket that opens a text is closed by its last character."""
    depth = 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return position == len(text) - 1
    return False


def _elements(kind: str, text: str, depth: int) -> Answer | None:
    """Parse the elements of a list or set; "x = 2 or x = 3" are two values of x."""
    parts = [piece for part in _split(text, _AND) for piece in _pieces(part)]
    parts = [part for part in (part.strip() for part in parts) if part]
    group = _group(kind, parts, depth)
    if not isinstance(group, Group):
        return group
    items: list[Answer] = []
    for item in group.items:  # \pm inside makes a list of two
        items += item.items if isinstance(item, Group) and item.kind == "list" else [item]
    names = {item.name for item in items if isinstance(item, Assignment)}
    if len(names) == 1 and isinstance(items[0], Assignment):
        items = [item.right if isinstance(item, Assignment) else item for item in items]
    return Group(kind, tuple(items))


def _pieces(text: str) -> list[str]:
    """Split at commas; only at commas followed by a space if the others separate thousands."""
    wide = _split(text, _WIDE_COMMA)
    if len(wide) > 1 and all(_GROUPED.fullmatch(part.strip()) for part in wide if "," in part):
        return wide
    return _split(text, _COMMA)


def _list(text: str, depth: int) -> Answer | None:
    if len(_split(text, _AND)) == 1 and len(_split(text, _COMMA)) == 1:
        return None
    if text.startswith(r"\text") and "," not in _TEXT_ALL.sub("", text) and not _AND.search(text):
        return None
    return _elements("list", text, depth)


def _relation(text: str, depth: int) -> Answer | None:
    member = _MEMBER.fullmatch(text)
    if member:
        answer = _read(member[2], depth)
        return answer if isinstance(answer, Group) else None
    sides = [side.strip() for side in _split(text, _EQUALS)]
    if len(sides) == 2 and all(sides):
        if not _is_name(sides[0]) and _is_name(sides[1]) and _has_value(_read(sides[0], depth)):
            sides.reverse()
        if _NAMES.fullmatch(sides[0]):
            return _named_tuple(sides[0], _read(sides[1], depth))
        if _is_name(sides[0]):
            return Assignment(_squeeze(sides[0]), _read(sides[1], depth), _squeeze(text))
        return None
    return _inequality(text, depth) if len(sides) == 1 else None


def _named_tuple(names: str, right: Answer) -> Answer | None:
    """Return the right side of (x, y) = (1, 2), if it has one value per name, and the names are in order."""
    letters = re.findall("[A-Za-z]", names)
    in_order = letters == sorted(letters) and isinstance(right, Group) and len(right.items) == len(letters)
    return right if in_order else None


def _is_name(text: str) -> bool:
    match = _NAME.fullmatch(text)
    letters = re.match(r"[A-Za-z]+", text)
    return bool(match) and (letters is None or len(letters[0]) == 1)


def _has_value(answer: Answer) -> bool:
    return isinstance(answer, Leaf) and answer.value is not None


def _inequality(text: str, depth: int) -> Answer | None:
    signs = _ORDER.findall(text)
    sides = [side.strip() for side in _split(text, _ORDER)]
    if len(signs) != len(sides) - 1 or not 1 <= len(signs) <= 2 or not all(sides):
        return None
    if all(sign in ("<", r"\le") for sign in signs):
        pass
    elif all(sign in (">", r"\ge") for sign in signs):
        sides.reverse()
        signs = ["<" if sign == ">" else r"\le" for sign in reversed(signs)]
    else:
        return None
    closed = [sign == r"\le" for sign in signs]
    if len(sides) == 3 and _VARIABLE.fullmatch(sides[1]):
        kind, ends = ("[" if closed[0] else "(") + ("]" if closed[1] else ")"), [sides[0], sides[2]]
    elif len(sides) == 2 and _VARIABLE.fullmatch(sides[0]):
        kind, ends = "(]" if closed[0] else "()", [r"-\infty", sides[1]]
    elif len(sides) == 2 and _VARIABLE.fullmatch(sides[1]):
        kind, ends = "[)" if closed[0] else "()", [sides[0], r"\infty"]
    else:
        return None
    return Group(kind, tuple(_read(end, depth) for end in ends), is_interval=True)


def _plus_minus(text: str, depth: int) -> Answer | None:
    if not _PLUS_MINUS.search(text):
        return None
    upper = text.replace(r"\pm", "+").replace(r"\mp", "-")
    lower = text.replace(r"\pm", "-").replace(r"\mp", "+")
    return _group("list", [upper, lower], depth)


_BASE = r"(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))"
_TRAILING_UNIT = re.compile(r"(.*?)\s*(?:(°)|(%)|(\$)|\\text\{([^{}]*)\}\s*(?:\^\s*\{?\s*([23])\s*\}?)?)", re.DOTALL)
_TRAILING_WORDS = re.compile(r"(.*?[0-9})])\s+([A-Za-z][A-Za-z./ ]*[A-Za-z.](?:\s*\^\s*\{?\s*[23]\s*\}?)?)", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z][A-Za-z' .\-]*", re.ASCII)
# Adjacent letters are a product of variables, but four or more are a word.
BARE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\overline\{?(\d+)\}?", re.ASCII)


def _leaf(text: str) -> Leaf:
    text = text.strip()
    unit = ""
    match = _TRAILING_UNIT.fullmatch(text)
    if match and match[1]:
        degrees, percent, dollar, words, exponent = match.groups()[1:]
        unit = degrees or percent or dollar or unit_name(words + (f"^{exponent}" if exponent else ""))
        if degrees and "\\" in re.sub(r"\\(?:frac|sqrt|pi)(?![A-Za-z])", "", match[1]):
            unit = ""  # the unit of an argument, as in \cos 13°
        else:
            text = match[1].strip()
    else:
        match = _TRAILING_WORDS.fullmatch(text)
        if match and is_bare_unit(match[2]):
            text, unit = match[1].strip(), unit_name(match[2])
    money = re.fullmatch(r"([-+]?)\s*\$\s*(.*)", text, re.DOTALL)
    if money and not unit:
        text, unit = money[1] + money[2], "$"
    text = text.removeprefix("+").strip()
    if unit and text.endswith(("°", "%")):
        return Leaf(_squeeze(text + unit), words=True)  # two units
    text = _TEXT_ALL.sub(lambda match: match[1] if match[1].strip().isdigit() else match[0], text)
    return _expression(text, unit)


def _expression(text: str, unit: str) -> Leaf:
    written = _squeeze(text)
    repeating = _REPEATING.fullmatch(written)
    if repeating:
        sign, whole, fixed, repeated = repeating.groups()
        nines = "9" * len(repeated) + "0" * len(fixed)
        text = rf"{sign}\frac{{{int(whole + fixed + repeated) - int(whole + fixed or 0)}}}{{{nines}}}"
    # 6 3/4 and 6\ 3/4, which TeX would run together.
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    try:
        node = algebra.parse(text)
    except algebra.NotAlgebra:
        is_words = (
            not text.replace("°", "").isascii()
            or r"\text" in text
            or bool(_WORDS.fullmatch(text) or BARE_WORD.search(text))
        )
        # Only ASCII: some other letters become ASCII letters in lower case.
        is_lowered = is_words and len(written) > 1 and written.isascii()
        return Leaf(written.lower() if is_lowered else written, unit, words=is_words)
    if BARE_WORD.fullmatch(written):
        return Leaf(written.lower(), unit, words=True)
    try:
        number = None if algebra.letters(node) else algebra.value(node)
    except algebra.NotAlgebra:
        number = None
    return Leaf(written, unit, node, number)


_MIXED = re.compile(r"^(-?\d+) (\d+)/(\d+)$")
_BARE_SCRIPT = re.compile(r"([\^_])\s*([A-Za-z0-9])")
_BARE_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|([A-Za-z0-9]))\s*(?:\{([^{}]*)\}|([A-Za-z0-9]))")
_BARE_ROOT = re.compile(r"\\sqrt\s*([A-Za-z0-9])")


def stands_in(expression: str, text: str) -> bool:
    r"""Return whether a text contains an expression, ignoring differences in spaces, bracket sizes and braces.

    Example:
        >>> stands_in(r"\frac12+x", r"Find $\dfrac{1}{2} + x$."), stands_in("2x", "12x")
        (True, False)
    """
    pattern = r"\s*".join(map(re.escape, re.sub(r"\s+", "", squeeze(expression))))
    return bool(re.search(rf"(?<![A-Za-z0-9\\]){pattern}(?![A-Za-z0-9])", _respell(_tidy(text))))


def squeeze(text: str) -> str:
    """Return a text in the normalised notation of `Leaf.text`."""
    return _squeeze(_tidy(text))


def _respell(text: str) -> str:
    """Add the braces around single characters that TeX allows to omit."""
    text = _BARE_FRACTION.sub(
        lambda match: (
            rf"\frac{{{match[1] if match[2] is None else match[2]}}}"
            rf"{{{match[3] if match[4] is None else match[4]}}}"
        ),
        text,
    )
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    return _BARE_SCRIPT.sub(r"\1{\2}", text)


def _squeeze(text: str) -> str:
    """Remove spaces without meaning, and add the braces around single characters that TeX allows to omit."""
    text = _respell(text)
    # Spaces between two numbers, and between a command and a letter, are significant.
    text = re.sub(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])", r"\1\0", text)
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9])", "\0", text)
    return re.sub(r"\s+", "", text).replace("\0", " ")


# An optional sign, digits with optional thousands commas, optional decimals. Nothing else: no words, no units.
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+", re.ASCII)


def parse_number(text: str) -> Decimal | None:
    """Parse a plain decimal number exactly, or return None.

    A leading dollar sign and thousands commas are allowed, as in GSM8K; any other text around the number is not.

    Example:
        >>> parse_number("$1,234.50")
        Decimal('1234.50')
        >>> parse_number("12 apples") is None
        True
    """
    text = text.strip().removeprefix("$")
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def canonical_answer(text: str) -> str:
    r"""Return a text that equivalent answers share, as far as notation goes; "" for an empty answer.

    Example:
        >>> canonical_answer("0.5") == canonical_answer(r"\dfrac12")
        True
    """
    return _canonical(read(text))


def has_words(text: str) -> bool:
    r"""Return whether any part of an answer is words, not mathematics.

    Example:
        >>> has_words(r"\text{east}"), has_words(r"3\text{ cm}, 4")
        (True, False)
    """
    return _has_words(read(text))


def _has_words(answer: Answer) -> bool:
    if isinstance(answer, Leaf):
        return answer.words
    parts = answer.items if isinstance(answer, Group) else (answer.right,)
    return any(map(_has_words, parts))


def _canonical(answer: Answer) -> str:
    if isinstance(answer, Assignment):
        return _canonical(answer.right)
    if isinstance(answer, Leaf):
        # In hexadecimal, because Python limits the number of decimal digits that it prints.
        number = answer.value
        return f"{number.numerator:x}/{number.denominator:x}" if isinstance(number, Fraction) else answer.text
    parts = [_canonical(item) for item in answer.items]
    return f"{answer.kind} {sorted(parts) if answer.kind in ('list', 'set', 'union') else parts}"
