r"""Compare an answer with the gold answer, as far as possible without a computer algebra system.

Equal means: exactly the same number; the same rational function; the same words; tuples in the same order, lists and
sets in any order; intervals with the same ends. Only numbers, words and answers of different structure are decided to
be different; other expressions are left to an `Oracle`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cfpo_verl.rewards import algebra
from cfpo_verl.rewards.answers import BARE_WORD, Answer, Assignment, Group, Leaf, closes_at_end, read, stands_in
from cfpo_verl.rewards.units import is_unit

# Compares two LaTeX expressions, answer first; None means undecided.
Oracle = Callable[[str, str], bool | None]

# Maximum length of expressions passed to an oracle.
_MAX_ASKED = 400
_MAX_DIGITS = 15


def undecided(_answer: str, _gold: str) -> None:
    """Decide nothing: with this oracle, `compare` returns None where it cannot decide."""


def compare(
    answer: Answer,
    gold: Answer,
    oracle: Oracle = undecided,
    relative_tolerance: float = 0.0,
    words: frozenset[str] = frozenset(),
) -> bool | None:
    r"""Return whether an answer equals the gold answer, or None if undecided.

    Args:
        answer: The answer.
        gold: The gold answer.
        oracle: Decides about expressions that are neither equal by rational arithmetic nor both numbers.
        relative_tolerance: Allowed relative error with respect to a gold number written as a decimal.
        words: Words that may follow a number in place of a unit, in lower case: what the problem counts.

    Example:
        >>> from cfpo_verl.rewards.answers import read
        >>> pairs = ((r"50\%", r"\frac12"), ("(2,1)", "(1,2)"), ("2x", "x"))
        >>> [compare(read(answer), read(gold)) for answer, gold in pairs]
        [True, False, None]
    """
    return _Comparison(oracle, relative_tolerance, words).same(answer, gold)


@dataclass(frozen=True)
class _Comparison:
    oracle: Oracle
    relative_tolerance: float
    words: frozenset[str]

    def same(self, answer: Answer, gold: Answer) -> bool | None:
        answer, gold = _single(answer), _single(gold)
        if isinstance(answer, Group) or isinstance(gold, Group):
            if isinstance(answer, Group) and isinstance(gold, Group):
                return _same_groups(answer, gold, self.same)
            if isinstance(gold, Assignment):
                return self.same(answer, gold.right)
            return self.same(answer.right, gold) if isinstance(answer, Assignment) else False
        if isinstance(answer, Assignment) and isinstance(gold, Assignment):
            return self.same(answer.right, gold.right) if answer.name == gold.name else False
        if isinstance(answer, Assignment) and isinstance(gold, Leaf) and answer.name == f"({gold.text})":
            return True
        if "=" in answer.text and "=" in gold.text:
            return self.ask(answer.text, gold.text)
        if isinstance(answer, Assignment):
            return self.same(answer.right, gold)
        if isinstance(gold, Assignment):
            return self.same(answer, gold.right)
        return self.same_leaves(answer, gold)

    def ask(self, answer: str, gold: str) -> bool | None:
        if answer == gold or not _may_be_asked(answer, gold):
            return answer == gold
        proportional = _proportional(answer, gold) if "=" in gold else None
        return self.oracle(answer, gold) if proportional is None else proportional

    def same_leaves(self, answer: Leaf, gold: Leaf) -> bool | None:
        if not answer.text or not _units_agree(answer, gold, self.words):
            return False
        if answer.value is not None and gold.value is not None:
            return self.same_numbers(answer, gold)
        if answer.text == gold.text:
            return True
        if answer.words or gold.words:
            return _same_words(answer.text, gold.text)
        if "=" in answer.text:
            # m + n = 371 states 371; 3x = 371 does not.
            left, _equals, right = answer.text.partition("=")
            return _SUM_OF_LETTERS.fullmatch(left) is not None and self.same(read(right), gold)
        if "=" in gold.text or isinstance(gold.value, Fraction) or _is_longer(answer.text, gold.text):
            return False
        if answer.node is not None:
            if gold.value is not None or (answer.value is None and not algebra.letters(answer.node)):
                return False
            if gold.node is not None:
                if {algebra.form(answer.node), algebra.form(gold.node)} == {"factored", "expanded"}:
                    return False  # the task was to factor or to expand
                if _same_function(answer.node, gold.node):
                    return True
        return self.ask(answer.text, gold.text)

    def same_numbers(self, answer: Leaf, gold: Leaf) -> bool:
        if isinstance(answer.value, Fraction) != isinstance(gold.value, Fraction) or _is_longer(answer.text, gold.text):
            return False  # a decimal never equals an irrational number
        tolerance = self.relative_tolerance if re.search(r"[.e]|10\^", gold.text) else 0.0
        if not any(_near(first, second, tolerance) for first, second in _readings(answer, gold)):
            return False
        assert answer.node is not None
        assert gold.node is not None
        is_done = algebra.is_number_written_out if isinstance(gold.value, Fraction) else algebra.is_finished
        return answer.text == gold.text or is_done(answer.node) or not is_done(gold.node)


_SUM_OF_LETTERS = re.compile(r"[A-Za-z](?:[+-][A-Za-z])+")


def _same_words(answer: str, gold: str) -> bool:
    """Compare words ignoring case, except single letters, which are choices or variables, and non-ASCII text."""
    return len(gold) > 1 and (answer + gold).isascii() and answer.lower() == gold.lower()


def _is_longer(answer: str, gold: str) -> bool:
    """Return whether an answer has more consecutive digits than 15 and than the gold answer."""
    return max(map(len, re.findall(r"\d+", answer)), default=0) > max(
        [_MAX_DIGITS, *map(len, re.findall(r"\d+", gold))]
    )


def _same_function(answer: algebra.Node, gold: algebra.Node) -> bool:
    values = algebra.fingerprint(answer)
    return values is not None and values == algebra.fingerprint(gold)


def _proportional(answer: str, gold: str) -> bool | None:
    """Return whether two equations of rational functions are multiples of each other; None for other equations."""
    differences = []
    for left, equals, right in (answer.partition("="), gold.partition("=")):
        try:
            node = algebra.parse(f"({left})-({right})")
        except algebra.NotAlgebra:
            return None
        values = algebra.fingerprint(node) if equals else None
        if values is None:
            return None
        differences.append(values)
    (a, b), (c, d) = differences
    return (a * d - b * c) % algebra.PRIME == 0 and (a, b) != (0, 0)


def _single(answer: Answer) -> Answer:
    if isinstance(answer, Group) and answer.kind in ("list", "set") and len(answer.items) == 1:
        return answer.items[0]
    return answer


_UNORDERED = ("list", "set", "union")
_BRACKETS = ("()", "[]")


def _same_groups(answer: Group, gold: Group, same: Callable[[Answer, Answer], bool | None]) -> bool | None:
    if len(answer.items) != len(gold.items):
        return False
    if answer.kind in _UNORDERED and gold.kind in _UNORDERED:
        is_union = "union" in (answer.kind, gold.kind)
        if is_union and answer.kind != gold.kind:
            listed = gold if answer.kind == "union" else answer
            if not all(map(_is_interval, listed.items)):
                return False
        return _same_in_any_order(answer.items, gold.items, same)
    # Three or more elements are not an interval, and tuples are written with either kind of brackets.
    alike = answer.kind in _BRACKETS and gold.kind in _BRACKETS and len(answer.items) > 2
    if answer.kind != gold.kind and not alike:
        return False
    return _all(same(*pair) for pair in zip(answer.items, gold.items, strict=True))


def _is_interval(answer: Answer) -> bool:
    """Return whether an answer can only be an interval: (1, 2) may also be a point."""
    if not isinstance(answer, Group) or answer.kind[0] not in "([" or len(answer.items) != 2:
        return False
    return answer.is_interval or answer.kind != "()" or any("infty" in getattr(end, "text", "") for end in answer.items)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    result: bool | None = True
    for verdict in verdicts:
        if verdict is False:
            return False
        if verdict is None:
            result = None
    return result


def _same_in_any_order(
    answers: Sequence[Answer], golds: Sequence[Answer], same: Callable[[Answer, Answer], bool | None]
) -> bool | None:
    """Match each answer with a different gold item. Greedy matching suffices because equality is transitive."""
    verdicts: dict[tuple[int, int], bool | None] = {}
    left = list(range(len(golds)))
    unknown = []
    for a, answer in enumerate(answers):
        for g in left:
            verdicts[a, g] = same(answer, golds[g])
            if verdicts[a, g]:
                left.remove(g)
                break
        else:
            unknown.append(a)
    if not unknown:
        return True
    return False if any(all(verdicts[a, g] is False for g in left) for a in unknown) else None


def _units_agree(answer: Leaf, gold: Leaf, words: frozenset[str]) -> bool:
    """Return whether units are compatible: either may be missing; unknown ones must be words of the gold or problem."""
    if answer.unit == gold.unit or not answer.unit:
        return True
    if is_unit(answer.unit):
        # A number like pi / 2 is in radians, not degrees.
        return not gold.unit and (answer.unit != "°" or isinstance(answer.value, Fraction))
    named = answer.unit.split()
    return re.fullmatch(r"[a-z]+(?: [a-z]+)?", answer.unit) is not None and set(named) <= words | set(gold.unit.split())


def _readings(answer: Leaf, gold: Leaf) -> list[tuple[algebra.Value, algebra.Value]]:
    """Return the pairs of values of which one must agree: 50% may be read as 50 or 0.5, but the same on both sides."""
    assert answer.value is not None
    assert gold.value is not None
    pairs = [(answer.value, gold.value)]
    if answer.unit == "%" and gold.unit != "%":
        # 0.5% is not 0.5: a gold without the sign is read as a percentage only above 1.
        if isinstance(gold.value, Fraction) and abs(gold.value) <= 1:
            pairs.clear()
        pairs.append((answer.value / 100, gold.value))
    if gold.unit == "%" and answer.unit != "%":
        pairs.append((answer.value, gold.value / 100))
    return pairs


def _near(answer: algebra.Value, gold: algebra.Value, relative_tolerance: float) -> bool:
    if relative_tolerance and isinstance(answer, Fraction) and isinstance(gold, Fraction):
        return abs(answer - gold) <= Fraction(relative_tolerance) * abs(gold)
    return algebra.same_value(answer, gold)


def is_echo(answer: str, gold: str, problem: str) -> bool:
    r"""Return whether an answer merely copies an expression from the problem, with nothing worked out.

    Words, decimals, fractions in lowest terms and the gold text itself are answers even if the problem contains them.

    Example:
        >>> is_echo(r"\tan 30^\circ", r"\frac{\sqrt{3}}{3}", r"Compute $\tan 30^\circ$.")
        True
    """
    said, asked = _core(read(answer)), _core(read(gold))
    if said is None or said.words or (asked is not None and _says_the_same(said, asked)) or _is_lowest(said):
        return False
    # Adding brackets, a plus sign or a factor of 1 does not make it worked out.
    text = re.sub(r"^(?:\+|1(?=[(\\A-Za-z]))", "", said.text)
    while text[:1] in ("(", "{") and closes_at_end(text):
        text = text[1:-1]
    return bool(text) and stands_in(text, problem)


def _core(answer: Answer) -> Leaf | None:
    """Return the single expression of an answer, without its name; None if it has several parts."""
    answer = _single(answer)
    if isinstance(answer, Assignment):
        return _core(answer.right)
    return answer if isinstance(answer, Leaf) else None


def _says_the_same(answer: Leaf, gold: Leaf) -> bool:
    is_repeating = "overline" in answer.text  # parsed as the fraction that the answer should state
    return answer.text == gold.text or (answer.node is not None and answer.node == gold.node and not is_repeating)


def _is_lowest(leaf: Leaf) -> bool:
    """Return whether a number is a decimal or a fraction in lowest terms."""
    if not isinstance(leaf.value, Fraction):
        return False
    return re.fullmatch(r"-?\d*\.?\d*", leaf.text) is not None or leaf.text.replace("-", "") in (
        rf"\frac{{{abs(leaf.value.numerator)}}}{{{leaf.value.denominator}}}",
        f"{abs(leaf.value.numerator)}/{leaf.value.denominator}",
    )


_FAMILIES = (
    r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])",
    r"\\(?:log|ln|lg)(?![A-Za-z])",
    r"!|\\binom",
    r"\\(?:lfloor|rfloor|lceil|rceil)",
    r"\|",
)
# Operations that the answer should have carried out, unless the gold answer has them too.
_UNDONE_NAMES = "sum|prod|int|iint|oint|lim|limsup|liminf|det|gcd|lcm|max|min|sup|inf|mod|bmod|pmod|prime|partial"
_UNDONE = re.compile(rf"\\(?:{_UNDONE_NAMES})(?![A-Za-z])")
_ALLOWED = re.compile(r"[A-Za-z0-9\\{}()\[\]+\-*/^_=<>|!.°' ]*")
# Commands that an oracle interprets correctly; it silently ignores others, such as \approx.
_COMMANDS = re.compile(
    rf"\\(?:{algebra.GREEK}|frac|sqrt|cdot|infty|(?:arc)?(?:sin|cos|tan|cot|sec|csc)|sinh|cosh|tanh|log|ln|lg|exp|binom|"
    rf"lfloor|rfloor|lceil|rceil|le|ge|ne|dot|ddot|{_UNDONE_NAMES})(?![A-Za-z])"
)
_HUGE = re.compile(r"\^\{[^{}]*\^|\^\{?[-+]?\d{4,}|\d{4,}\s*!|!\s*!")
_APPLIED = re.compile(r"[A-Za-z]\((?:\d+|[A-Za-z])\)")


def _applied(text: str) -> set[str]:
    """Return applications of unnamed functions, such as f(2), which an oracle would read as products."""
    return set(_APPLIED.findall(re.sub(r"\\[A-Za-z]+", " ", text)))


def _may_be_asked(answer: str, gold: str) -> bool:
    """Return whether an oracle may compare two expressions: short, without words, as worked out as the gold."""
    both = f"{answer}|{gold}"
    if max(len(answer), len(gold)) > _MAX_ASKED or not _ALLOWED.fullmatch(both) or _is_longer(answer, gold):
        return False
    if len(_COMMANDS.findall(both)) != len(re.findall(r"\\[A-Za-z]+", both)) or BARE_WORD.search(both):
        return False
    if re.search(r"(?<!_)\d \d|\d_", both) or max(answer.count("="), gold.count("=")) > 1:
        return False
    if _letters(answer) != _letters(gold) or _applied(answer) != _applied(gold):
        return False
    has_variables = bool(re.search(r"(?<![\\A-Za-z])[A-Za-df-hj-z]", re.sub(r"\\[A-Za-z]+", " ", gold)))
    families = () if has_variables else _FAMILIES
    if any(re.search(family, answer) and not re.search(family, gold) for family in (*families, r"\\infty")):
        return False
    return not any(pattern.search(answer) and not pattern.search(gold) for pattern in (_UNDONE, _HUGE))


_LETTER = re.compile(rf"(\\(?:{algebra.GREEK})(?![A-Za-z]))|\\[A-Za-z]+|([A-Za-z])")


def _letters(text: str) -> set[str]:
    """Return the variables of an expression, without the constants e, i and pi."""
    return {greek or latin for greek, latin in _LETTER.findall(text)} - {"", "e", "i", r"\pi"}
