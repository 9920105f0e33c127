"""data_prep.text: the forms in which problems are compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpo_verl.data_prep.text import normalise, quantities, words


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text)
    assert normalise(" " + once + "\n") == once
    assert "  " not in once


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(r"If $x = 3$, find $y$.", r"If \(x=3\), find \[y\]", id="delimiters"),
        pytest.param(r"$a\,b\;c\!d \quad e\qquad f$", "a b c d e f", id="spacing"),
        pytest.param(r"\left( \dfrac{1}{2} \right)", r"(\frac{1}{2})", id="layout"),
        pytest.param(r"$3 \text{ cm} \geq x$", r"3 cm $\ge x$", id="text-and-synonyms"),
        pytest.param("It costs $1,000", r"it costs \$1000", id="thousands"),
        pytest.param(r"$10{,}000$ and $12,\!345$", "10000 and 12345", id="latex-thousands"),
        pytest.param("Café ﬁve x²", "CAFÉ five x2", id="unicode"),
        pytest.param("＼quad x＼quad", "x", id="wide-backslash"),  # noqa: RUF001
        pytest.param("Café", "Cafe\u0301", id="combining"),
    ],
)
def test_what_does_not_matter_to_words(one, other):
    assert words(one) == words(other) != []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 apples", "7 apples"),
        ("1.5 apples", "15 apples"),
        (r"$\sin x$", r"$\cos x$"),
        (r"$\frac{1}{2}$", r"$1 \cdot 2$"),
        ("(1,2)", "(12)"),
    ],
)
def test_what_matters_to_words(one, other):
    assert words(one) != words(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom has 5 apples, 2.5 pears", ["5", "2.5"]),
        ("five apples and twenty pears, half of them", ["5", "20", "half"]),
        ("1,234,567 and 12,34 and 1,2345", ["1234567", "12", "34", "1", "2345"]),
        ("3+4-5=", ["3", "+", "4", "-", "5", "="]),
        ("x-y", ["-"]),
        ("x − y", ["-"]),  # noqa: RUF001
        ("a two-digit, 9-kilometer-long walk", ["2", "9"]),
        ("someone often weights", []),
    ],
)
def test_quantities_are_numbers_and_signs(text, expected):
    assert quantities(text) == expected
