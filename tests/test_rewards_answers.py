"""cfpo_verl.rewards.answers, algebra and units: parsing answers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpo_verl.rewards import algebra
from cfpo_verl.rewards.answers import Assignment, Group, Leaf, canonical_answer, has_words, read, stands_in
from cfpo_verl.rewards.units import is_unit, unit_name


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("-3", -3),
        ("+3", 3),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("012", 12),
        ("1,234", 1234),
        ("1,234.5", Fraction(2469, 2)),
        (r"10,\!080", 10080),
        (r"11,\! 111,\! 111,\! 100", 11111111100),
        ("10{,}000", 10000),
        (r"10\,000", 10000),
        ("4.5e33", 45 * 10**32),
        ("1e-3", Fraction(1, 1000)),
        (r"3 \times 10^{8}", 3 * 10**8),
        ("3·10^8", 3 * 10**8),
        (r"\frac12", Fraction(1, 2)),
        (r"\dfrac{1}{2}", Fraction(1, 2)),
        (r"\frac{270}7", Fraction(270, 7)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        ("-1./3", Fraction(-1, 3)),
        (r"{6 \over 7}", Fraction(6, 7)),
        ("½", Fraction(1, 2)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"137 \frac{1}{2}", Fraction(275, 2)),
        (r"3\frac18", Fraction(25, 8)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"2^{10}", 1024),
        (r"\sqrt{16}", 4),
        (r"\sqrt[3]{8}", 2),
        (r"8^{1/3}", 2),
        ("(5)", 5),
        ("$5$.", 5),
        (r"\text{13}", 13),
        ("−5", -5),  # noqa: RUF001 the minus sign of typography
    ],
)
def test_numbers_are_exact(text, number):
    assert read(text).value == number


@pytest.mark.parametrize(
    "text",
    ["1 2", "1,23", "12?", "nan", "inf", "1.2.3", "１２", "١٢", "l2", "--", "", "1/0", "0^{-1}", "9^{9^{9}}"],  # noqa: RUF001
)
def test_what_is_no_number_has_no_value(text):
    answer = read(text)
    assert not isinstance(answer, Leaf) or not isinstance(answer.value, Fraction)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"90^\circ", 90, "°"),
        (r"25\%", 25, "%"),
        (r"\$32,\!348", 32348, "$"),
        (r"-\$0.50", Fraction(-1, 2), "$"),
        (r"15\mbox{ cm}^2", 15, "cm^2"),
        (r"864 \mbox{ inches}^2", 864, "in^2"),
        (r"99\text{ square inches}", 99, "in^2"),
        (r"5.4 \text{ cents}", Fraction(27, 5), "cent"),
        ("18 hours", 18, "h"),
        ("45 mph", 45, "mi/h"),
        (r"3\ \mathrm{m/s}", 3, "m/s"),
        (r"18 \text{ integers}", 18, "integers"),
        ("9 a.m.", 9, "am"),
    ],
)
def test_units(text, value, unit):
    assert (read(text).value, read(text).unit) == (value, unit)


def test_single_letters_are_variables_and_not_units():
    assert read(r"\frac{37}{4} m").unit == ""
    assert read("6 m").value is None


@pytest.mark.parametrize(
    ("text", "kind", "size"),
    [
        ("(1, 2)", "()", 2),
        (r"\left( 3, \frac{\pi}{2} \right)", "()", 2),
        ("(312,123,231)", "()", 3),
        ("[0,1)", "[)", 2),
        (r"x \in [-2,7]", "[]", 2),
        (r"-2 \le x < 7", "[)", 2),
        ("7 > x > 1", "()", 2),
        (r"k \geqslant 2", "[)", 2),
        ("x < 3", "()", 2),
        ("3, 5, 7", "list", 3),
        (r"7, -2, \text{ and } -5", "list", 3),
        ("x=1 or x=2", "list", 2),
        (r"1 \pm \sqrt{19}", "list", 2),
        (r"\{1\pm\sqrt{5},-2\}", "set", 3),
        ("1,000, 2,000", "list", 2),
        ("$69$,$84$", "list", 2),
        (r"(-\infty, 2) \cup (3, \infty)", "union", 2),
        ("(1,8,19), (2,7,13)", "list", 2),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "matrix", 2),
        (r"\text{A,C,F}", "list", 3),
    ],
)
def test_groups(text, kind, size):
    answer = read(text)
    assert isinstance(answer, Group)
    assert (answer.kind, len(answer.items)) == (kind, size)


def test_assignments():
    answer = read("f(x) = 2 x")
    assert isinstance(answer, Assignment)
    assert (answer.name, answer.right.text) == ("f(x)", "2x")
    assert read("5 = x").name == "x"
    assert read("(a,b) = (3,4)") == read("(3,4)")
    assert isinstance(read("2x = 10"), Leaf)


def test_words_and_what_is_none():
    assert read(r"\text{Evelyn}").text == read("evelyn.").text == "evelyn"
    assert read(r"\text{(C)}").text == read("(C)").text == read(r"\textbf{(C)}").text == "C"
    assert has_words(r"\text{east}")
    assert not has_words(r"3\text{ cm}, x")


def test_a_giant_answer_is_not_taken_apart():
    assert read("1+" * 600 + "1").words
    assert read(", ".join(map(str, range(200)))).words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2", "2.0"),
        ("1,000", "1000"),
        (r"\dfrac12", r"\frac12"),
        ("$x$", "x"),
        ("0.5", r"\frac{1}{2}"),
        ("2, 1", "1,2"),
        ("x = 3", "3"),
    ],
)
def test_answers_that_want_the_same_are_one(one, other):
    assert canonical_answer(one) == canonical_answer(other) != canonical_answer("17")


def test_empty_answers_have_an_empty_canonical_form():
    assert [canonical_answer(text) for text in ("", " ", "$$", ".", r"\,")] == [""] * 5


@pytest.mark.parametrize(
    ("text", "written_out"),
    [
        ("-5", True),
        (r"\frac{6}{4}", True),
        (r"-\frac{1}{2}", True),
        (r"1\frac{1}{2}", True),
        (r"3\cdot 10^{8}", True),
        ("2^{10}", True),
        ("37+58", False),
        (r"2\cdot 3", False),
        (r"\frac{1+2}{3}", False),
        (r"\frac{6}{2}", False),
        (r"\sqrt{9}", False),
        ("2^3-1", False),
        # Looks irrational, but is rational.
        (r"37+58e^0", False),
        (r"37+58\sqrt{1}", False),
        (r"2\sqrt{4}\cdot\sqrt{36}", False),
        (r"58i^4+37", False),
    ],
)
def test_a_rational_number_is_written_out_or_not(text, written_out):
    assert algebra.is_number_written_out(algebra.parse(text)) is written_out


@pytest.mark.parametrize(
    ("text", "finished"),
    [(r"2\sqrt{3}+1", True), (r"3\pi", True), (r"\frac{6\pi}{4}", True), (r"2+3+\pi", False), (r"2\cdot3\pi", False)],
)
def test_arithmetic_left_undone_beside_roots_is_seen(text, finished):
    assert algebra.is_finished(algebra.parse(text)) is finished


@given(st.integers(-50, 50), st.integers(1, 50), st.integers(-50, 50), st.integers(1, 50))
def test_fraction_arithmetic_is_exact(a, b, c, d):
    text = rf"\frac{{{a}}}{{{b}}}-({c})/{d}"
    assert algebra.value(algebra.parse(text)) == Fraction(a, b) - Fraction(c, d)


@given(st.integers(2, 300), st.integers(1, 30))
def test_roots_are_told_apart_and_found_equal(n, k):
    scaled = algebra.value(algebra.parse(rf"{k}\sqrt{{{n}}}"))
    assert algebra.same_value(scaled, algebra.value(algebra.parse(rf"\sqrt{{{k * k * n}}}")))
    assert not algebra.same_value(scaled, algebra.value(algebra.parse(rf"\sqrt{{{k * k * n + 1}}}")))
    # Nor is it a decimal of thirty digits.
    assert not algebra.same_value(scaled, Fraction(round(float(scaled.real) * 10**12), 10**12)) or (n**0.5) % 1 == 0


def test_exact_numbers_are_compared_exactly():
    assert not algebra.same_value(Fraction(10**50 + 1), Fraction(10**50))


def test_depth_and_size_are_bounded():
    with pytest.raises(algebra.NotAlgebra, match="nested too deeply"):
        algebra.parse("(" * 40 + "1" + ")" * 40)
    # Bounded at every step, not only at the end: each of these has a small value.
    powers = [f"{prime}^{{{39_999 // prime.bit_length()}}}" for prime in (3, 5, 7)]
    inverses = [power.replace("{", "{-") for power in powers]
    for text in ("+".join(inverses) + "-" + "-".join(inverses), r"\cdot ".join(powers + inverses)):
        with pytest.raises(algebra.NotAlgebra, match="too large"):
            algebra.value(algebra.parse(text))


def test_fingerprints_are_those_of_rational_functions():
    def fingerprint(text):
        return algebra.fingerprint(algebra.parse(text))

    assert fingerprint("(x+1)^2") == fingerprint("x^2+2x+1") != fingerprint("x^2+2x+2")
    assert fingerprint(r"\frac{1}{y}+y") == fingerprint(r"\frac{1+y^2}{y}")
    # Each letter gets its own value.
    assert fingerprint("ac") != fingerprint("b^2")
    assert fingerprint("x_1") != fingerprint("x_2")
    assert fingerprint(r"\sqrt{x}") is fingerprint(r"2^x") is fingerprint("x+i") is None


@pytest.mark.parametrize("text", ["a/2b", "1/2/3", "x^2^3", r"\frac1", "(1", "2 3", "x2", "()", r"\foo", "+", "("])
def test_what_is_not_understood_whole_is_not_read(text):
    with pytest.raises(algebra.NotAlgebra):
        algebra.parse(text)


@pytest.mark.parametrize("text", ["9^{9^9}", "(10^{9})^{9999}", "2^{100000}", "7^{-99999}", r"\sqrt[1000]{2}"])
def test_what_is_too_large_has_no_value(text):
    with pytest.raises(algebra.NotAlgebra):
        algebra.value(algebra.parse(text))


def test_unit_names():
    assert unit_name("Square Feet.") == "ft^2"
    assert unit_name(r"~km") == "km"
    assert is_unit("m/s")
    assert not is_unit("apples")
    assert not is_unit("")


def test_expressions_are_found_in_a_problem():
    assert stands_in("37+58", "What is 37 + 58?")
    assert stands_in(r"\tan 30^\circ", r"Compute $\tan 30^{\circ}$.")
    assert not stands_in("7+5", "What is 37+58?")
