r"""A strict parser of algebraic LaTeX expressions, and their values. Text that it cannot parse completely is rejected.

    sum     := product (("+" | "-") product)*
    product := signed (["\cdot" | "\times" | "*" | "/" | "\div"] signed)*
    signed  := ["-" | "+"] power
    power   := atom ["^" (group | character)]
    atom    := number | letter | constant | "\frac" group group | "\sqrt" ["[" sum "]"] group | group | "(" sum ")"

An integer followed by a fraction of integers is a mixed number. Time and memory are bounded for any input.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from hashlib import blake2b
from math import gcd
from typing import Any, TypeAlias

from mpmath import mp, mpc

# Maximum number of bits of an exact number: 2^2005 is fine, a tower of powers is not.
_MAX_BITS = 40_000
_MAX_DEPTH = 30
# Significant digits of values with roots or pi, and how many of them must agree.
_DIGITS, _AGREEING = 60, 45

# 2**61 - 1. Different polynomials of degree d agree at one random point by chance with probability d / 2**61.
PRIME = 2305843009213693951
_POINTS = (1, 2)

GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|varphi|chi|psi|"
    "omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell|hbar"
)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4}(?![A-Za-z0-9]))?)
      | (?P<letter>(?:[A-Za-z]|\\(?:GREEK)(?![A-Za-z]))(?:_(?:\{\s*[A-Za-z0-9]+\s*\}|[A-Za-z0-9]))?)
      | (?P<command>\\[A-Za-z]+)
      | (?P<symbol>[-+*/^(){}\[\]])
    )""".replace("GREEK", GREEK),
    re.VERBOSE | re.ASCII,
)
_TIMES = {"*", r"\cdot", r"\times"}
_OVER = {"/", r"\div"}
_CONSTANTS: dict[str, Callable[[], Any]] = {r"\pi": lambda: mp.pi, "e": lambda: mp.e, "i": lambda: mpc(0, 1)}
# A Fraction, or an mpc of mpmath, which has no types.
Value: TypeAlias = Any


class NotAlgebra(ValueError):
    """The text cannot be parsed, or its value is undefined or too large."""


@dataclass(frozen=True)
class Node:
    """A part of an expression.

    Args:
        kind: number, letter, add, multiply, divide, power, root, negate or mixed.
        parts: The operands. A root has its radicand and its degree.
        number: The value of a number.
        letter: The name of a letter or constant.
    """

    kind: str
    parts: tuple["Node", ...] = ()
    number: Fraction = Fraction(0)
    letter: str = ""


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise NotAlgebra(text)
            kind = match.lastgroup or ""
            if kind == "number" and self.tokens and self.tokens[-1][0] == "number":
                raise NotAlgebra("two numbers beside each other")
            self.tokens.append((kind, match[kind]))
            position = match.end()
        self.position = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    def take(self, expected: str = "") -> tuple[str, str]:
        if self.position >= len(self.tokens) or (expected and self.peek() != expected):
            raise NotAlgebra(f"expected {expected or 'more'}")
        self.position += 1
        return self.tokens[self.position - 1]

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise NotAlgebra("nested too deeply")
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            minus = self.take()[1] == "-"
            term = self.product()
            terms.append(Node("negate", (term,)) if minus else term)
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def product(self) -> Node:
        factors = [self.signed()]
        divided = False
        while True:
            following = self.peek()
            if following in _TIMES or following in _OVER:
                if divided:
                    raise NotAlgebra("a factor after a division: ambiguous")
                self.take()
                factor = self.signed()
                if following in _OVER:
                    divided = True
                    whole = factors[0] if len(factors) == 1 else Node("multiply", tuple(factors))
                    factors = [Node("divide", (whole, factor))]
                else:
                    factors.append(factor)
            elif following and following not in "+-)}]":
                is_number = self.tokens[self.position][0] == "number"
                if is_number and self.tokens[self.position - 1][1] != ")":
                    raise NotAlgebra("a number behind something else")
                # 1/2 x means x/2; other divisions followed by a factor are ambiguous.
                if divided and not all(_is_whole(_unsigned(part)) for part in factors[0].parts):
                    raise NotAlgebra("a factor after a division")
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else Node("multiply", tuple(factors))

    def signed(self) -> Node:
        if self.peek() in ("+", "-"):
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise NotAlgebra("nested too deeply")
            minus = self.take()[1] == "-"
            node = self.signed()
            self.depth -= 1
            return Node("negate", (node,)) if minus else node
        return self.power()

    def power(self) -> Node:
        start = self.position
        base = self.atom()
        whole = base.kind == "number" and self.tokens[start][1].isdigit()
        if whole and self.peek() == r"\frac":
            part = self.atom()
            if part.kind == "divide" and all(_is_whole(piece) for piece in part.parts):
                return Node("mixed", (base, part))
            return Node("multiply", (base, part))
        if self.peek() != "^":
            return base
        self.take()
        exponent = self.argument()
        if self.peek() == "^":
            raise NotAlgebra("two exponents")
        return Node("power", (base, exponent))

    def argument(self) -> Node:
        r"""Parse the argument of ^, \frac or \sqrt: a group, or a single character as in TeX."""
        if self.peek() == "{":
            return self.group("{", "}")
        kind, text = self.tokens[self.position] if self.position < len(self.tokens) else ("", "")
        if kind == "number" and len(text) > 1:
            if not text.isdigit():
                raise NotAlgebra("half a number")
            self.tokens[self.position] = (kind, text[1:])
            return Node("number", number=Fraction(text[0]))
        return self.atom()

    def group(self, begin: str, end: str) -> Node:
        self.take(begin)
        node = self.sum()
        self.take(end)
        return node

    def atom(self) -> Node:
        kind, text = self.tokens[self.position] if self.position < len(self.tokens) else ("", "")
        if text in ("(", "{", "["):
            return self.group(text, {"(": ")", "{": "}", "[": "]"}[text])
        self.take()
        if kind == "number":
            return Node("number", number=_exact(text))
        if kind == "letter":
            following = [token for _kind, token in self.tokens[self.position : self.position + 3]]
            if following[:1] == ["("] and following[2:] == [")"]:
                raise NotAlgebra("a function")  # f(2), I(0): a product would be written without brackets
            return Node("letter", letter=re.sub(r"[{}\s]", "", text))
        if text == r"\frac":
            return Node("divide", (self.argument(), self.argument()))
        if text == r"\sqrt":
            degree = self.group("[", "]") if self.peek() == "[" else Node("number", number=Fraction(2))
            return Node("root", (self.argument(), degree))
        raise NotAlgebra(text)


def _exact(text: str) -> Fraction:
    mantissa, _e, exponent = text.lower().partition("e")
    if abs(int(exponent or 0)) > 1000:
        raise NotAlgebra("too large")
    return Fraction(mantissa.rstrip(".") if mantissa.endswith(".") else mantissa) * Fraction(10) ** int(exponent or 0)


def _is_whole(node: Node) -> bool:
    return node.kind == "number" and node.number.denominator == 1


def parse(text: str) -> Node:
    r"""Parse an expression.

    Raises:
        NotAlgebra: If any part of it cannot be parsed.

    Example:
        >>> value(parse(r"1\frac{4}{5}"))
        Fraction(9, 5)
    """
    reader = _Reader(text)
    if not reader.tokens:
        raise NotAlgebra("nothing")
    try:
        node = reader.sum()
    except RecursionError:
        raise NotAlgebra("nested too deeply") from None
    if reader.position < len(reader.tokens):
        raise NotAlgebra(f"{reader.peek()} is left over")
    return node


def letters(node: Node) -> frozenset[str]:
    """Return the letters of an expression that are not constants."""
    own = {node.letter} if node.kind == "letter" and node.letter not in _CONSTANTS else set()
    return frozenset(own.union(*(letters(part) for part in node.parts)))


def value(node: Node) -> Value:
    r"""Return the value of an expression without variables: exact if rational, else to 60 significant digits.

    Raises:
        NotAlgebra: If it has variables, is undefined or too large.

    Example:
        >>> value(parse(r"2^{10}/4")), value(parse(r"\frac{\sqrt{9}}{3}"))
        (Fraction(256, 1), Fraction(1, 1))
    """
    with mp.workdps(_DIGITS):
        try:
            return _value(node)
        except (ZeroDivisionError, OverflowError, ValueError) as error:
            raise NotAlgebra(str(error)) from None


def _value(node: Node) -> Value:
    if node.kind == "number":
        return node.number
    if node.kind == "letter":
        constant = _CONSTANTS.get(node.letter)
        if constant is None:
            raise NotAlgebra(f"{node.letter} is a variable")
        return mpc(constant())
    parts = [_value(part) for part in node.parts]
    if node.kind == "power":
        return _power(*parts)
    if node.kind == "root":
        if not isinstance(parts[1], Fraction) or parts[1].denominator != 1 or not 2 <= parts[1] <= 100:
            raise NotAlgebra("a root of this degree")
        return _power(parts[0], 1 / parts[1])
    if node.kind == "negate":
        return -parts[0]
    if all(isinstance(part, Fraction) for part in parts):
        result = _OPERATIONS[node.kind](parts)
        _check_size(result)
        return result
    return mpc(_OPERATIONS[node.kind]([_inexact(part) for part in parts]))


def _inexact(number: Value) -> mpc:
    return mpc(mp.mpf(number.numerator) / number.denominator) if isinstance(number, Fraction) else number


def _product(parts: list) -> Value:
    result = parts[0]
    for part in parts[1:]:
        result = result * part
        if isinstance(result, Fraction):
            _check_size(result)
    return result


def _sum(parts: list) -> Value:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
        if isinstance(result, Fraction):
            _check_size(result)
    return result


_OPERATIONS: dict[str, Callable[[list], Value]] = {
    "add": _sum,
    "mixed": lambda parts: parts[0] + parts[1],
    "multiply": _product,
    "divide": lambda parts: parts[0] / parts[1],
}


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _check_size(number: Fraction) -> None:
    if _bits(number) > _MAX_BITS:
        raise NotAlgebra("too large")


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction):
        if exponent.denominator == 1 and isinstance(base, Fraction):
            if _bits(base) * abs(exponent) > _MAX_BITS:
                raise NotAlgebra("too large")
            if base == exponent == 0:
                raise NotAlgebra("not defined")
            return base ** int(exponent)
        if isinstance(base, Fraction) and base >= 0 and exponent.denominator <= 100 and abs(exponent) <= 1000:
            root = _exact_root(base, exponent.denominator)
            if root is not None:
                return _power(root, Fraction(exponent.numerator))
            return mpc(mp.power(_inexact(base).real, _inexact(exponent).real))
        if isinstance(base, Fraction) and exponent == Fraction(1, 2):
            return mpc(0, 1) * _inexact(_power(-base, exponent))
        if isinstance(base, Fraction):
            raise NotAlgebra("a root of a negative number")
        if abs(exponent) > 1000:
            raise NotAlgebra("too large")
    elif isinstance(base, Fraction) and not base > 0:
        raise NotAlgebra("a power of a negative number")
    result = mpc(mp.power(_inexact(base), _inexact(exponent)))
    if not (mp.isfinite(result.real) and mp.isfinite(result.imag)) or abs(mp.mag(result)) > _MAX_BITS:
        raise NotAlgebra("too large")
    return result


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """Return the root of a rational number if it is rational, else None."""
    if _bits(base) > 2000:
        raise NotAlgebra("too large")
    parts = []
    for whole in (base.numerator, base.denominator):
        with mp.workprec(whole.bit_length() + 64):
            root = int(mp.nint(mp.root(whole, degree))) if whole else 0
        if root**degree != whole:
            return None
        parts.append(root)
    return Fraction(*parts)


def same_value(first: Value, second: Value) -> bool:
    """Return whether two values are equal: exactly, or to 45 significant digits if either is not rational.

    Example:
        >>> same_value(Fraction(1, 2), Fraction(2, 4)), same_value(Fraction(333, 1000), Fraction(1, 3))
        (True, False)
    """
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    with mp.workdps(_DIGITS):
        first, second = _inexact(first), _inexact(second)
        return bool(abs(first - second) <= mp.mpf(10) ** -_AGREEING * max(abs(first), abs(second)))


def fingerprint(node: Node) -> tuple[int, ...] | None:
    """Return numbers that expressions of the same rational function share; None for other expressions.

    They are the values at two points modulo a prime (Schwartz-Zippel). Roots, constants and variable exponents are not
    supported.
    """
    try:
        return tuple(_modular(node, point) for point in _POINTS)
    except (NotAlgebra, ZeroDivisionError, OverflowError, ValueError):
        return None


@cache
def _at_point(letter: str, point: int) -> int:
    return int.from_bytes(blake2b(f"{letter} {point}".encode(), digest_size=8).digest(), "big") % PRIME


def _modular(node: Node, point: int) -> int:
    if node.kind == "number":
        if gcd(node.number.denominator, PRIME) != 1:
            raise NotAlgebra("not defined")
        return node.number.numerator * pow(node.number.denominator, -1, PRIME) % PRIME
    if node.kind == "letter":
        if node.letter in _CONSTANTS:
            raise NotAlgebra("a constant")
        return _at_point(node.letter, point)
    if node.kind == "power":
        exponent = _value(node.parts[1])
        if not isinstance(exponent, Fraction) or exponent.denominator != 1 or abs(exponent) > 1000:
            raise NotAlgebra("an exponent that is not a whole number")
        base = _modular(node.parts[0], point)
        if exponent <= 0 and base == 0:
            raise NotAlgebra("not defined")
        return pow(base, int(exponent), PRIME)
    if node.kind == "root":
        raise NotAlgebra("a root")
    parts = [_modular(part, point) for part in node.parts]
    if node.kind == "negate":
        return -parts[0] % PRIME
    if node.kind == "divide":
        if parts[1] == 0:
            raise NotAlgebra("not defined")
        return parts[0] * pow(parts[1], -1, PRIME) % PRIME
    if node.kind == "multiply":
        result = 1
        for part in parts:
            result = result * part % PRIME
        return result
    return sum(parts) % PRIME


def is_number_written_out(node: Node) -> bool:
    r"""Return whether a rational number is written out, with no arithmetic left to do.

    Written out are decimals, fractions that are not whole numbers, mixed numbers, powers, and a number times a power of
    ten, with signs.

    Example:
        >>> texts = (r"\frac{6}{4}", r"3\cdot10^8", "2^{10}", "2+3", r"37+58\sqrt{1}", r"\frac{6}{2}", r"\sqrt{9}")
        >>> [is_number_written_out(parse(text)) for text in texts]
        [True, True, True, False, False, False, False]
    """
    if node.kind in ("number", "mixed"):
        return True
    if node.kind == "negate":
        return is_number_written_out(node.parts[0])
    literal = all(_unsigned(part).kind == "number" for part in node.parts)
    if node.kind == "divide":
        return literal and value(node).denominator != 1
    if node.kind == "multiply":
        return len(node.parts) == 2 and _unsigned(node.parts[0]).kind == "number" and _is_power_of_ten(node.parts[1])
    return node.kind == "power" and literal


def is_finished(node: Node) -> bool:
    r"""Return whether a number with roots or pi has no arithmetic between plain numbers left to do.

    Example:
        >>> [is_finished(parse(text)) for text in (r"2\sqrt{3}+1", r"\frac{6\pi}{4}", r"2+3+\sqrt{2}")]
        [True, True, False]
    """
    if node.kind in ("add", "multiply") and sum(map(_is_rational, node.parts)) > 1:
        return False
    if node.kind == "divide" and _is_rational(node) and any(_unsigned(part).kind == "divide" for part in node.parts):
        return False
    return all(is_finished(part) for part in node.parts)


def form(node: Node) -> str:
    """Return "factored" for a product of several sums with variables, "expanded" without such products, else "".

    Example:
        >>> form(parse("2(x+1)(x+2)")), form(parse("x^2+3x+2")), form(parse("n(n+1)"))
        ('factored', 'expanded', '')
    """
    sums = _sums_multiplied(node)
    return (
        "factored" if sums > 1 else "" if sums or any(form(part) != "expanded" for part in node.parts) else "expanded"
    )


def _sums_multiplied(node: Node) -> int:
    """Count the sums with variables among the factors at the top level of an expression."""
    if node.kind in ("multiply", "negate"):
        return sum(_sums_multiplied(part) or _is_sum(part) for part in node.parts)
    if node.kind == "divide" and not letters(node.parts[1]):
        return _sums_multiplied(node.parts[0])
    if node.kind == "power" and _is_sum(node.parts[0]):
        return 2
    return 0


def _is_sum(node: Node) -> bool:
    return node.kind == "add" and bool(letters(node))


def _unsigned(node: Node) -> Node:
    return _unsigned(node.parts[0]) if node.kind == "negate" else node


def _is_rational(node: Node) -> bool:
    return node.kind in ("number", "mixed") or (
        node.kind not in ("letter", "root") and all(_is_rational(part) for part in node.parts)
    )


def _is_power_of_ten(node: Node) -> bool:
    return node.kind == "power" and node.parts[0] == Node("number", number=Fraction(10))
