"""cfpo_verl.rewards.compare and symbolic: equal, different or undecided."""

import json
from pathlib import Path

import pytest
from conftest import shared_data

from cfpo_verl.data_sources import data_source
from cfpo_verl.rewards.answers import read
from cfpo_verl.rewards.compare import compare, is_echo
from cfpo_verl.rewards.extract import last_boxed
from cfpo_verl.rewards.symbolic import decide

REWRITTEN = [json.loads(line) for line in (Path(__file__).parent / "golden" / "rewritten_golds.jsonl").open()]


def tolerance(source):
    return data_source(source).relative_tolerance if source == "minerva_math" else 0.0


def test_rewritten_golds_have_the_right_verdict():
    """Spellings of 779 gold answers, and wrong answers, written and judged without looking at the code."""
    assert len({row["gold"] for row in REWRITTEN}) >= 300
    wrong = [
        row
        for row in REWRITTEN
        if decide(row["answer"], row["gold"], tolerance(row["source"]), frozenset()) != bool(row["expected"])
    ]
    assert wrong == []


def test_the_fast_path_is_never_wrong():
    for row in REWRITTEN:
        verdict = compare(read(row["answer"]), read(row["gold"]), relative_tolerance=tolerance(row["source"]))
        assert verdict in (None, bool(row["expected"])), row


def golds_of(name):
    rows = [json.loads(line) for line in shared_data(f"{name}.jsonl").open()]
    read_gold = {
        "math500": lambda row: row["answer"],
        "math_test": lambda row: last_boxed(row["solution"]),
        "minerva_math": lambda row: last_boxed(row["solution"]),
        "aime24": lambda row: str(row["answer"]),
        "amc23": lambda row: str(row["answer"]),
        "olympiadbench": lambda row: ", ".join(row["final_answer"]),
        "gsm8k_test": lambda row: row["answer"].rpartition("####")[2],
    }[name]
    return [gold for row in rows if (gold := read_gold(row))]


@pytest.mark.parametrize(
    "name", ["math500", "math_test", "minerva_math", "aime24", "amc23", "olympiadbench", "gsm8k_test"]
)
def test_every_gold_answer_is_itself(name):
    golds = golds_of(name)
    assert len(golds) >= 30
    assert [gold for gold in golds if compare(read(gold), read(gold)) is not True] == []


# Wrong answers that try to get a reward. Each must score 0, also when Math-Verify decides.
FOOLING = {
    "a list of guesses": [("3, 4", "4"), ("1,2,3,4,5", "3"), (r"\{3,4\}", "4"), ("3;4", "4"), ("(3,4)", "4")],
    "an or": [("3 or 4", "4"), (r"3\text{ or }4", "4"), ("x=3 or x=4", "4"), (r"\pm 4", "4"), ("4 and 4.5", "4")],
    "wrapped in text": [
        ("I think it is 5", "5"),
        (r"\text{the answer is }5", "5"),
        (r"5\text{ is the answer}", "5"),
        ("5 probably", "5"),
        ("five", "5"),
        (r"\text{not }5", "5"),
    ],
    "arithmetic left undone": [
        ("37+58", "95"),
        (r"2\cdot 3", "6"),
        ("2*3", "6"),
        ("5!", "120"),
        (r"\binom{5}{2}", "10"),
        (r"\sum_{i=1}^{3} i", "6"),
        (r"\int_0^1 2x\,dx", "1"),
        (r"\sin 30^\circ", r"\frac{1}{2}"),
        (r"\log_2 8", "3"),
        (r"\gcd(12, 18)", "6"),
        (r"|-5|", "5"),
        (r"\lfloor 5.5\rfloor", "5"),
        (r"37+58/1/1", "95"),
        (r"\tan 30^\circ", r"\frac{\sqrt{3}}{3}"),
        (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
        (r"\cos^2 x+\sin^2 x", "1"),
        (r"x-x+5", "5"),
    ],
    "look-alikes": [("１２", "12"), ("١٢", "12"), ("l2", "12"), ("1O", "10"), ("х", "x"), ("1²", "12")],  # noqa: RUF001
    "decimals of exact numbers": [
        ("0.333333333333", r"\frac13"),
        ("1.41421356237309504880", r"\sqrt{2}"),
        ("3.14159265358979", r"\pi"),
        (r"\frac{22}{7}", r"\pi"),
    ],
    "giant": [("9^{9^{9^9}}", "9"), ("(10^9)!", "1"), ("1" * 900, "1"), ("1+" * 3000 + "1", "3001")],
    "another unit": [
        (r"5\text{ m}", r"5\text{ cm}"),
        ("5 minutes", "5 hours"),
        (r"5\%", r"5^\circ"),
        (r"5\text{ cm}", r"5\text{ apples}"),
        (r"5\text{ k}", "5"),
        (r"\frac{\pi}{2}^\circ", r"\frac{\pi}{2}"),
    ],
    "a hundredth": [(r"0.5\%", "0.5"), (r"1\%", "1"), (r"\frac12\%", r"\frac12")],
    "letters in another order": [(r"\text{dod}", r"\text{odd}"), ("on", r"\text{no}"), (r"\text{CB}", r"\text{BC}")],
    "letters that look like others": [("ea\u017ft", r"\text{east}"), ("blac\u212a", r"\text{black}")],
    "points and intervals": [
        ("(1,2),(3,4)", r"(1,2)\cup(3,4)"),
        (r"(1,2)\cup(3,4)", "(1,2),(3,4)"),
        (r"3<\pi<4", "(3,4)"),
        ("1<e", r"(1,\infty)"),
        ("(y,x)=(1,2)", "(1,2)"),
        ("(x,y)=5", "5"),
    ],
    "not defined": [(r"x\cdot 0^0", "x"), ("0^0", "1"), (r"\frac{0}{0}", "1"), (r"\frac{x}{0}", r"\frac{y}{0}")],
    "false and chained equations": [
        ("0=5", "5"),
        ("7=8=5", "5"),
        ("3f(x)=5", "5"),
        (r"7=\sqrt2", r"\sqrt2"),
        ("x+y=3=2", "x+y=2"),
        ("y=2x+4=2x+3", "y=2x+3"),
        (r"\frac{y-2x-3}{x}=0", "y=2x+3"),
        ("(y-2x-3)^2=0", "y=2x+3"),
    ],
    "tiny numbers and many digits": [
        (r"\frac{1}{99!}", r"\frac{1}{2004!}"),
        (r"-\frac{1}{2004!}", r"\frac{1}{2004!}"),
        ("0.693147180559945", r"\ln 2"),
        (r"x^2+y^2=25.0000000000001", "x^2+y^2=25"),
        (r"1+e^{-150}", "1"),
        (r"10^{100}+\sqrt2", "10^{100}"),
        ("x+2305843009213693951", "x"),
        (r"0.333333333333333333333333333333333x", r"\frac{x}{3}"),
    ],
    "digits with an irrational that is none": [
        ("1.4142135623730950488016887242096980785696718753769480731767e^0", r"\sqrt2"),
    ],
    "derivatives": [
        (r"-\frac{d x}{d t}=k x-a", r"\frac{d x}{d t}=k x-a"),
        (r"5\frac{d x}{d t}=k x-a", r"\frac{d x}{d t}=k x-a"),
        ("y'+y=0", "y''+y=0"),
        ("x''", "x'"),
    ],
    "hedges in a unit": [
        (r"5\text{ cm 6}", r"5\text{ cm}"),
        (r"5\text{ apples, 6 apples}", r"5\text{ apples}"),
        (r"5\text{ apples 6}", r"5\text{ apples}"),
        (r"5\text{ apples=6}", r"5\text{ apples}"),
    ],
    "about": [(r"\sqrt2 \approx 7", r"\sqrt2"), (r"y=2x+3 \approx 7", "y=2x+3")],
    "ratios and functions": [("1:3:2", "1:2:3"), ("0.6666", "2:3"), ("0", "I(0)"), ("2f", "f(2)"), ("g(0)", "f(0)")],
    "another choice": [(r"\textbf{(C)}\ 12", "D"), (r"\textbf{(C)}\ 12", "13"), (r"\textbf{(C)}\textbf{(D)}", "D")],
    "the other form": [("x^2+7x+10", "(x+2)(x+5)"), ("(x+2)(x+5)", "x^2+7x+10")],
    "glued together": [(r"1\right.5", "15"), (r"1\big 5", "15"), (r"1\left(5\right)", "15")],
    "another order or end": [("(2,1)", "(1,2)"), ("[1,2)", "(1,2)"), ("(1,2)", r"\{1,2\}"), (r"x\le 3", "x<3")],
    "another variable": [
        ("n=3", "k=3"),
        ("2K", "2k"),
        ("8x^2", "8n^2"),
        (r"\Phi", r"\phi"),
        (r"\sin(N-n)", r"\sin(n-N)"),
        ("52_9", "52_8"),
        ("y=2x", "f(x)=2x"),
    ],
    "nothing": [("", "5"), ("{}", "5"), ("()", "5"), (r"\text{}", "5"), ("=", "5"), ("=5=", "5")],
    "another equation": [("3x=6", "6"), ("1=2", "y=x"), ("0=0", "y = 2x + 3"), ("y=y", "y = 2x + 3")],
}


@pytest.mark.parametrize(("answer", "gold"), [pair for pairs in FOOLING.values() for pair in pairs])
def test_is_not_fooled(answer, gold):
    assert compare(read(answer), read(gold)) is not True
    assert decide(answer, gold, 0.0, frozenset()) is False


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\sqrt{117}", r"3\sqrt{13}"),
        (r"2x-y+3=0", "y = 2x + 3"),
        (r"\frac{\cos x}{\sin x}", r"\cot x"),
        (r"\sin 77^\circ", r"\cos 13^\circ"),
        (r"\frac{(2n)!}{n!n!}", r"\binom{2n}{n}"),
        (r"\frac{\ln 2}{\ln 2-\ln 3}", r"\frac{\log 2}{\log 2-\log 3}"),
        (r"\frac{c}{\sqrt{2}}", r"\frac{1}{\sqrt{2}}c"),
        ("x<2 or x>3", r"(-\infty, 2) \cup (3, \infty)"),
        ("m+n = 371", "371"),
        (r"12\text{ apples}", r"12\text{ apples}"),
        (r"\frac{d x}{d t}+a=k x", r"\frac{d x}{d t}=k x-a"),
        (r"9x^2-16y^2=144", r"\frac{x^2}{16} - \frac{y^2}{9} = 1"),
        ("Yes", r"\text{Yes}"),
        (r"\textbf{(C)}\ 12", "C"),
        (r"\textbf{(C)}\ 12", "12"),
        (r"\text{yes}", "Yes"),
        (r"273\ \text{K}", "273"),
        (r"5\;", "5"),
        (r"\ 5\ ", "5"),
        (r"\log_2(3)", r"\log_{2}3"),
        (r"\mathbf{(1,2)}", "(1,2)"),
        (r"{\frac12}", "0.5"),
        (r"y=-1/2x^2+3", r"y = -\frac{1}{2} x^2 + 3"),
        (r"2/3\pi", r"\frac{2\pi}{3}"),
        ("6 3/4", r"6\frac{3}{4}"),
        (r"\left[\begin{array}{c}1\\[4pt]2\end{array}\right]", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"(x,y)\in\{(1,2),(3,4)\}", "(1,2),(3,4)"),
        (r"\varnothing", r"\emptyset"),
        (r"\approx 0.85", "0.85"),
    ],
)
def test_other_forms(answer, gold):
    assert decide(answer, gold, 0.0, frozenset()) is True


def test_words_of_the_problem_may_stand_behind_a_number():
    assert compare(read(r"12\text{ apples}"), read("12")) is False
    assert compare(read(r"12\text{ apples}"), read("12"), words=frozenset({"apples"})) is True
    assert compare(read("12 apples"), read("12"), words=frozenset({"apples"})) is True


def test_percent_is_a_number_or_a_hundredth_of_it():
    verdicts = {
        (r"50\%", "0.5"): True,
        ("0.5", r"50\%"): True,
        ("50", r"50\%"): True,
        (r"50\%", "50"): True,
        (r"5000\%", r"50\%"): False,
        (r"0.5\%", r"50\%"): False,
        (r"0.5\%", "50"): False,
    }
    for (answer, gold), verdict in verdicts.items():
        assert compare(read(answer), read(gold)) is verdict, (answer, gold)


def test_tolerance_is_for_decimals_only():
    def near(answer, gold):
        return compare(read(answer), read(gold), relative_tolerance=0.01)

    assert near("4.47e33", "4.5e33")
    assert near(r"1.61", "1.6")
    assert not near("1.62", "1.6")
    assert not near("101", "100")
    assert not near("0.333", r"\frac{1}{3}")


def test_an_oracle_is_asked_only_where_it_must_be():
    asked = []

    def oracle(answer, gold):
        asked.append((answer, gold))
        return False

    for answer, gold in [("1", "2"), ("x", "x"), ("1+x", "x+1"), ("east", "west"), (r"\sqrt2", r"\sqrt3"), ("5", "x")]:
        compare(read(answer), read(gold), oracle)
    assert asked == []
    assert compare(read(r"(1,\sin x)"), read(r"(1,\cos x)"), oracle) is False
    assert asked == [(r"\sin x", r"\cos x")]
    # A single different part makes the whole different.
    assert compare(read(r"(1,\sin x)"), read(r"(2,\cos x)")) is False
    assert compare(read(r"\sin x, 1"), read(r"1, \cos x")) is None


def test_sets_with_unknown_parts_are_matched_whatever_their_order():
    assert decide(r"\frac{\cos x}{\sin x}, 1", r"1, \cot x", 0.0, frozenset()) is True
    assert decide(r"\frac{\sin x}{\cos x}, 1", r"1, \cot x", 0.0, frozenset()) is False
    assert decide("1, 1, 2", "1, 2, 2", 0.0, frozenset()) is False


def test_repeating_the_problem_is_no_answer():
    assert is_echo(r"\frac{1}{\sqrt3}", r"\frac{\sqrt{3}}{3}", r"Rationalize $\frac{1}{\sqrt{3}}$.")
    assert is_echo("x^2+7x+10", "(x+2)(x+5)", "Factor $x^2 + 7x + 10$.")
    # The text of the gold answer is correct, and so is a number that is written out.
    assert not is_echo("(x+2)(x+5)", "(x+2)(x+5)", "Is it $(x+2)(x+5)$?")
    assert not is_echo("0.5", r"\frac12", "Write 0.5 as a fraction.")
    assert not is_echo(r"\frac{1}{2}", "0.5", r"Is it $\frac{1}{2}$?")
    assert not is_echo("even", r"\text{even}", "Is it even or odd?")
    assert not is_echo("(C)", "C", "(A) 1 (B) 2 (C) 3")
    assert not is_echo(r"\pi/2", r"\frac{\pi}{2}", r"Is it $\pi/2$?")


@pytest.mark.parametrize(
    ("answer", "gold", "problem"),
    [
        *(
            (answer, "x^2+3x+2", "Expand $(x+1)(x+2)$.")
            for answer in (
                "(x+1)(x+2)",
                "+(x+1)(x+2)",
                "((x+1)(x+2))",
                "1(x+1)(x+2)",
                r"\{(x+1)(x+2)\}",
                "y=(x+1)(x+2)",
            )
        ),
        (r"\frac{24}{36}", r"\frac{2}{3}", r"Simplify $\frac{24}{36}$."),
        ("115^2", "13225", "Compute $115^2$ in your head."),
        (r"0.\overline{5}", r"\frac{5}{9}", r"Express $0.\overline{5}$ as a fraction."),
        (r"\sqrt{12}", r"2\sqrt{3}", r"Simplify $\sqrt{12}$."),
    ],
)
def test_repeating_the_problem_in_brackets_or_by_another_name_is_no_answer(answer, gold, problem):
    assert is_echo(answer, gold, problem)


def test_nothing_that_a_model_wrote_is_compiled(run_python):
    """Python reports every call of eval, exec and compile to audit hooks."""
    code = """
import sys
from cfpo_verl.rewards.symbolic import decide
pairs = [
    (r"\\frac{\\cos x}{\\sin x}", r"\\cot x"), (r"\\sqrt[3]{x^2+1}", "x"), (r"\\ln(x+1)", r"\\ln(2x)"), ("n!", "x!"),
    (r"\\{\\sin x, 1\\}", r"\\{1, \\cos x\\}"), ("x<y", "y>x"), (r"\\frac{dx}{dt}=x", r"\\frac{dx}{dt}=2x"),
    ("__import__('os').system('true')", "x+1"), ("exec(1)", "x"), ("lambda: 1", "x"), ("a.b.c", "abc"), ("1/0", "x"),
]
for _ in range(2):
    compiled = []
    sys.addaudithook(lambda event, arguments: compiled.append(arguments[0]) if event == "compile" else None)
    for answer, gold in pairs:
        decide(answer, gold, 0.0, frozenset()), decide(gold, answer + "+z", 0.0, frozenset())
# The first round imports modules and fills caches.
print(compiled)
"""
    result = run_python(code)
    assert result.stdout == "[]\n", result.stdout + result.stderr
