"""Equality by math-verify, which runs in the worker processes only: some questions never end.

Math-Verify: Kydlicek and Gandenberger, https://github.com/huggingface/Math-Verify.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify

from cfpo_verl.rewards.answers import read
from cfpo_verl.rewards.compare import compare

# It warns at every call that its own time limit, a signal, is off; here the process has one.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# n and N are two variables.
_CONVERSION = ConversionConfig(lowercase_symbols=False)
# Decimal places in which numbers must agree: an exact gold answer wants an exact answer, not six digits of it.
_DECIMALS, _PRECISION = 12, 30
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)°")
_IMAGINARY = re.compile(r"(?<![\\A-Za-z])i(?![A-Za-z])")


@lru_cache(maxsize=1000)
def _parse(text: str) -> Any:
    # Not math_verify.parse: it drops letters that could be units, and its extraction is not needed here.
    degrees = _DEGREES.sub(r"{\\frac{\1\\pi}{180}}", text)
    is_real = not _IMAGINARY.search(text)
    return latex2sympy(degrees, is_real=is_real, normalization_config=None, conversion_config=_CONVERSION)


def _same_by_math_verify(answer: str, gold: str) -> bool:
    try:
        both = _parse(gold), _parse(answer)
    except MemoryError:
        raise
    except Exception:  # it raises that class itself for what it does not understand
        return False
    return verify(*both, float_rounding=_DECIMALS, numeric_precision=_PRECISION, timeout_seconds=None)


def decide(answer: str, gold: str, relative_tolerance: float, words: frozenset[str]) -> bool:
    """Compare two answers, asking math-verify about what `compare` does not know by itself."""
    return bool(compare(read(answer), read(gold), _same_by_math_verify, relative_tolerance, words))
