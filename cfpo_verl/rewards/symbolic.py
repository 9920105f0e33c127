"""Comparison with Math-Verify, only in worker processes, since some comparisons never terminate.

Math-Verify: Kydlicek and Gandenberger, https://github.com/huggingface/Math-Verify.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from sympy import Expr, Float, N

from cfpo_verl.rewards.answers import read
from cfpo_verl.rewards.compare import compare

# It warns at every call that its own timeout is off; here the worker process has one.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# n and N are two variables.
_CONVERSION = ConversionConfig(lowercase_symbols=False)
# Significant digits to which values without variables are computed, and how many must agree.
_DIGITS, _AGREEING = 60, 40
_IMAGINARY = re.compile(r"(?<![\\A-Za-z])i(?![A-Za-z])")
_RESPELT = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Math-Verify ignores the degree sign,
        (r"(\d+(?:\.\d+)?)°", r"{\\frac{\1\\pi}{180}}"),
        # rounds decimals, which are exact fractions here,
        (r"(\d*)\.(\d+)", lambda match: rf"{{\frac{{{match[1]}{match[2]}}}{{1{'0' * len(match[2])}}}}}"),
        # and drops derivatives, so they become variables.
        (r"\\frac\{d\s?(?:\^2)?\s?([A-Za-z])\}\{d\s?([A-Za-z])(?:\^2)?\}", r"{\1_{d\2}}"),
        (r"([A-Za-z])\^\{?((?:\\prime\s*)+)\}?", lambda match: f"{{{match[1]}_{{{'p' * match[2].count('prime')}}}}}"),
        (r"\\(d+)ot\{([A-Za-z]|\\theta|\\phi|\\omega)\}", r"{\2_{\1}}"),
    )
)


@lru_cache(maxsize=1000)
def _parse(text: str) -> Any:
    # Not math_verify.parse: it drops letters that could be units, and passes text that is not LaTeX to sympy's
    # parse_expr, which evaluates it as Python.
    is_real = not _IMAGINARY.search(text)
    for pattern, replacement in _RESPELT:
        text = pattern.sub(replacement, text)
    return latex2sympy(text, is_real=is_real, normalization_config=None, conversion_config=_CONVERSION)


def _same_by_math_verify(answer: str, gold: str) -> bool:
    try:
        read_answer, read_gold = _parse(answer), _parse(gold)
    except MemoryError:
        raise
    except Exception:  # its parser raises plain Exception for unknown syntax
        return False
    if all(isinstance(part, Expr) and not part.free_symbols for part in (read_answer, read_gold)):
        return _same_value(read_answer.doit(), read_gold.doit())
    return verify(read_gold, read_answer, timeout_seconds=None)


def _same_value(answer: Expr, gold: Expr) -> bool:
    """Compare two numbers by relative error: Math-Verify uses absolute error, so 1/2004! would equal 1/99!."""
    values = [N(part, _DIGITS) for part in (answer, gold)]
    if not all(part.is_number and part.is_finite for part in values):
        return False
    size = max(abs(part) for part in values)
    return bool(abs(values[0] - values[1]) <= size * Float(10) ** -_AGREEING)


def decide(answer: str, gold: str, relative_tolerance: float, words: frozenset[str]) -> bool:
    """Compare two answers, using Math-Verify where `compare` cannot decide by itself."""
    return bool(compare(read(answer), read(gold), _same_by_math_verify, relative_tolerance, words))
