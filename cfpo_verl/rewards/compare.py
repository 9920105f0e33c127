r"""Whether an answer is the gold answer, as far as that can be seen without a computer algebra system.

Equal means: the same number, exactly; the same rational function; the same words; tuples in the same order, lists and
sets in any order; intervals with the same ends. "Different" is said only of numbers, words, and of answers that are not
built alike; of other expressions an `Oracle` is asked.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cfpo_verl.rewards import algebra
from cfpo_verl.rewards.answers import BARE_WORD, Answer, Assignment, Group, Leaf, read, squeeze, stands_in
from cfpo_verl.rewards.units import is_unit

# Decides about two expressions in LaTeX, the answer first. None: not decided.
Oracle = Callable[[str, str], bool | None]

# Longer expressions are not handed to an oracle.
_MAX_ASKED = 400


def undecided(_answer: str, _gold: str) -> None:
    """Decide nothing: the oracle that makes `compare` say None where it does not know."""


def compare(
    answer: Answer,
    gold: Answer,
    oracle: Oracle = undecided,
    relative_tolerance: float = 0.0,
    words: frozenset[str] = frozenset(),
) -> bool | None:
    r"""Say whether an answer is the gold answer, or None if that is not known.

    Args:
        answer: What was answered.
        gold: The gold answer.
        oracle: Is asked about two expressions that are neither equal by rational arithmetic nor both numbers.
        relative_tolerance: How far a number may be from a gold number that is written as a decimal, relative to it.
        words: What may stand behind a number instead of a unit, in lower case: the words of the problem.

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
        if "=" in answer.text and "=" in gold.text:
            return self.ask(answer.text, gold.text)
        if isinstance(answer, Assignment):
            return self.same(answer.right, gold)
        if isinstance(gold, Assignment):
            return self.same(answer, gold.right)
        return self.same_leaves(answer, gold)

    def ask(self, answer: str, gold: str) -> bool | None:
        return answer == gold or (self.oracle(answer, gold) if _may_be_asked(answer, gold) else False)

    def same_leaves(self, answer: Leaf, gold: Leaf) -> bool | None:
        if not answer.text or not _units_agree(answer, gold, self.words):
            return False
        if answer.value is not None and gold.value is not None:
            is_decimal = re.search(r"[.e]|10\^", gold.text)
            tolerance = self.relative_tolerance if is_decimal else 0.0
            equal = any(_near(first, second, tolerance) for first, second in _readings(answer, gold))
            return equal and (_is_finished(answer) or not _is_finished(gold))
        if answer.text == gold.text:
            return True
        if isinstance(gold.value, Fraction):
            # m + n = 371 for 371; 3x = 371 is the value of something else.
            left, equals, right = answer.text.rpartition("=")
            is_value = equals and "," not in left and len(_letters(left)) != 1
            return bool(is_value) and self.same(read(right), gold)
        if answer.words or gold.words:
            return False
        if answer.node is not None:
            if gold.value is not None or (answer.value is None and not algebra.letters(answer.node)):
                return False
            if gold.node is not None and _same_function(answer.node, gold.node):
                return True
        return self.ask(answer.text, gold.text)


def _same_function(answer: algebra.Node, gold: algebra.Node) -> bool:
    values = algebra.fingerprint(answer)
    return values is not None and values == algebra.fingerprint(gold)


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
    # With three elements it is no interval, and both kinds of brackets are in use.
    alike = answer.kind in _BRACKETS and gold.kind in _BRACKETS and len(answer.items) > 2
    if answer.kind != gold.kind and not alike:
        return False
    return _all(same(*pair) for pair in zip(answer.items, gold.items, strict=True))


def _is_interval(answer: Answer) -> bool:
    """Say whether an answer is an interval and could be nothing else: (1, 2) alone may be a point."""
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
    """Match every answer with a gold one of its own. Equality is transitive, so the first match is as good as any."""
    left = list(golds)
    unknown: list[Answer] = []
    for answer in answers:
        for gold in left:
            if same(answer, gold):
                left.remove(gold)
                break
        else:
            unknown.append(answer)
    if not unknown:
        return True
    if any(all(same(answer, gold) is False for gold in left) for answer in unknown):
        return False
    return None


def _units_agree(answer: Leaf, gold: Leaf, words: frozenset[str]) -> bool:
    """Say whether units do not contradict each other: either may be missing, unknown ones must be words of the gold."""
    if answer.unit == gold.unit or not answer.unit:
        return True
    if is_unit(answer.unit):
        # Degrees are not of a number like pi / 2, which is in radians.
        return not gold.unit and (answer.unit != "°" or isinstance(answer.value, Fraction))
    named = set(re.findall(r"[a-z]+", answer.unit))
    return 0 < len(named) <= 2 and named <= words | set(re.findall(r"[a-z]+", gold.unit))


def _readings(answer: Leaf, gold: Leaf) -> list[tuple[algebra.Value, algebra.Value]]:
    """Return the pairs of values that may have to agree: 50% is 50 or 0.5, but the same thing on both sides."""
    assert answer.value is not None
    assert gold.value is not None
    pairs = [(answer.value, gold.value)]
    if answer.unit == "%" and gold.unit != "%":
        # 0.5% for 0.5 is a hundredth of it; only what may count percent may be without the sign.
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


def _is_finished(leaf: Leaf) -> bool:
    return leaf.node is not None and algebra.is_finished(leaf.node)


def is_echo(answer: str, gold: str, problem: str) -> bool:
    r"""Say whether an answer only repeats an expression of the problem, so that nothing was worked out.

    A rational number that is written out is an answer wherever else it stands, and so is what the gold answer says.

    Example:
        >>> is_echo(r"\tan 30^\circ", r"\frac{\sqrt{3}}{3}", r"Compute $\tan 30^\circ$.")
        True
    """
    leaf = read(answer)
    if not isinstance(leaf, Leaf) or (isinstance(leaf.value, Fraction) and _is_finished(leaf)):
        return False
    return squeeze(answer) != squeeze(gold) and stands_in(answer, problem)


_FAMILIES = (
    r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])",
    r"\\(?:log|ln|lg)(?![A-Za-z])",
    r"!|\\binom",
    r"\\(?:lfloor|rfloor|lceil|rceil)",
    r"\|",
)
# Work that is not done yet, whatever the gold answer is.
_UNDONE = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf|det|gcd|lcm|max|min|sup|inf|mod|bmod|pmod|prime|partial)(?![A-Za-z])|'"
)
_ALLOWED = re.compile(r"[A-Za-z0-9\\{}()\[\]+\-*/^_=<>|!.,:°' ]*")
_HUGE = re.compile(r"\^\{[^{}]*\^|\^\{?[-+]?\d{4,}|\d{4,}\s*!|!\s*!|\d{40,}")


def _may_be_asked(answer: str, gold: str) -> bool:
    """Say whether two expressions are fit for an oracle: short, without words, no larger or less done than the gold."""
    if max(len(answer), len(gold)) > _MAX_ASKED or not (_ALLOWED.fullmatch(answer) and _ALLOWED.fullmatch(gold)):
        return False
    if r"\text" in answer + gold or BARE_WORD.search(answer) or BARE_WORD.search(gold):
        return False
    if re.search(r"\d \d|\d_", answer + "|" + gold) or _letters(answer) != _letters(gold):
        return False
    has_variables = bool(re.search(r"(?<![\\A-Za-z])[A-Za-df-hj-z]", re.sub(r"\\[A-Za-z]+", " ", gold)))
    for family in () if has_variables else _FAMILIES:
        if re.search(family, answer) and not re.search(family, gold):
            return False
    return not any(pattern.search(answer) and not pattern.search(gold) for pattern in (_UNDONE, _HUGE))


_LETTER = re.compile(rf"(\\(?:{algebra.GREEK})(?![A-Za-z]))|\\[A-Za-z]+|([A-Za-z])")


def _letters(text: str) -> set[str]:
    """Return the variables of an expression; e and i may come and go."""
    return {greek or latin for greek, latin in _LETTER.findall(text)} - {"", "e", "i", r"\pi"}
