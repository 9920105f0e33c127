"""avg@n, pass@k and maj@k, checked against the definition: the mean over all k-subsets of n responses."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpo_verl.evaluation import avg_at_n, maj_at_k, pass_at_k
from cfpo_verl.evaluation.rates import LARGEST_EXACT

RIGHT = 0
BLANK = -1


def pass_over_all_sets(num_correct: int, num_samples: int, k: int) -> float:
    is_right = [i < num_correct for i in range(num_samples)]
    chosen = list(combinations(is_right, k))
    return sum(map(any, chosen)) / len(chosen)


def maj_over_all_sets(votes: list[int], num_samples: int, k: int) -> float:
    """Count the votes of every subset; ties are shared, and without votes nothing wins."""
    responses = [answer for answer, number in enumerate(votes) for _ in range(number)]
    responses += [BLANK] * (num_samples - len(responses))
    won = 0.0
    for chosen in combinations(responses, k):
        counts = [chosen.count(answer) for answer in range(len(votes))]
        if counts[RIGHT] and counts[RIGHT] == max(counts):
            won += 1 / counts.count(max(counts))
    return won / comb(num_samples, k)


def test_pass_at_k_over_all_sets():
    for n in range(1, 8):
        ks = list(range(1, n + 1))
        expected = [[pass_over_all_sets(c, n, k) for k in ks] for c in range(n + 1)]
        np.testing.assert_allclose(pass_at_k(range(n + 1), n, ks), expected, atol=1e-12)


def test_the_example_of_verls_bootstrap_is_exact():
    """One of four responses is correct, so pass@4 is 1. verl's bootstrap gives 0.68."""
    assert pass_at_k([1], 4, 4).tolist() == [1.0]
    assert pass_at_k([1], 4, 1) == avg_at_n([1], 4) == 0.25


def test_pass_at_k_of_many_responses_against_whole_numbers():
    n = 1024
    for c, k in [(1, 1), (1, 512), (3, 1000), (512, 2), (1000, 20), (1024, 1), (0, 1024)]:
        expected = 1 - comb(n - c, k) / comb(n, k)
        np.testing.assert_allclose(pass_at_k([c], n, k), [expected], rtol=1e-10, atol=1e-12)


def test_problems_may_have_different_numbers_of_responses():
    np.testing.assert_allclose(pass_at_k([1, 1], [2, 4], 2), [1.0, 0.5])
    np.testing.assert_allclose(avg_at_n([1, 1], [2, 4]), [0.5, 0.25])


@given(
    answers=st.lists(st.integers(-1, 4), min_size=1, max_size=8),
    data=st.data(),
)
def test_maj_at_k_over_all_sets(answers, data):
    votes = [answers.count(answer) for answer in range(5)]
    # Neither the order of wrong answers matters, nor answers without votes.
    votes = [votes[RIGHT], *data.draw(st.permutations(votes[1:])), 0]
    ks = list(range(1, len(answers) + 1))
    expected = [maj_over_all_sets(votes, len(answers), k) for k in ks]
    np.testing.assert_allclose(maj_at_k([votes], len(answers), ks).value, [expected], atol=1e-12)


@pytest.mark.parametrize(
    ("votes", "n", "k", "expected"),
    [
        pytest.param([2, 2], 4, 4, 1 / 2, id="two-to-two-is-shared"),
        pytest.param([1, 1, 1], 3, 3, 1 / 3, id="all-differ"),
        # Two of the four subsets have both correct responses, and two have one response for each answer.
        pytest.param([2, 1, 1], 4, 3, (1 + 1 + 1 / 3 + 1 / 3) / 4, id="three-of-four"),
        pytest.param([0, 0], 3, 2, 0, id="nobody-answers"),
        pytest.param([1, 0], 5, 5, 1, id="one-answer-and-four-without"),
        pytest.param([0, 3], 3, 1, 0, id="never-right"),
    ],
)
def test_maj_at_k_worked_by_hand(votes, n, k, expected):
    np.testing.assert_allclose(maj_at_k([votes], n, k).value, [[expected]])


def test_maj_of_one_is_the_mean_and_of_all_is_the_vote():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 6, size=(50, LARGEST_EXACT))
    votes = np.stack([(labels == answer).sum(axis=1) for answer in range(6)], axis=1)
    found = maj_at_k(votes, LARGEST_EXACT, [1, LARGEST_EXACT]).value
    np.testing.assert_allclose(found[:, 0], votes[:, RIGHT] / LARGEST_EXACT)
    most = votes.max(axis=1)
    shared = (votes[:, RIGHT] == most) / (votes == most[:, None]).sum(axis=1)
    np.testing.assert_allclose(found[:, 1], shared)


def test_sampling_agrees_with_the_exact_value_within_its_standard_error():
    rng = np.random.default_rng(1)
    labels = np.minimum(rng.geometric(0.2, size=(40, LARGEST_EXACT)) - 1, 9)
    labels[rng.random(labels.shape) < 0.1] = BLANK
    votes = np.stack([(labels == answer).sum(axis=1) for answer in range(10)], axis=1)
    ks = [1, 2, 4, 8, 16, 32, 64]
    exact = maj_at_k(votes, LARGEST_EXACT, ks)
    sampled = maj_at_k(votes, LARGEST_EXACT, ks, exact=False, draws=200_000)
    assert exact.standard_error.tolist() == [0.0] * len(ks)
    # Nothing is sampled for one response or for all of them.
    np.testing.assert_allclose(sampled.value[:, [0, -1]], exact.value[:, [0, -1]], atol=1e-12)
    assert sampled.standard_error[0] == sampled.standard_error[-1] == 0
    errors = sampled.standard_error[1:-1]
    assert (errors > 1e-4).all()
    assert (errors < 2e-3).all()
    off = np.abs(sampled.value.mean(axis=0) - exact.value.mean(axis=0))[1:-1]
    assert (off < 4 * errors).all()


def test_the_standard_error_is_that_of_repetition():
    votes = np.array([[30, 20, 20], [10, 30, 5], [40, 40, 10]])
    runs = [maj_at_k(votes, 100, [4], draws=300, seed=seed) for seed in range(200)]
    spread = np.std([run.value.mean() for run in runs])
    stated = np.mean([run.standard_error[0] for run in runs])
    assert stated == pytest.approx(spread, rel=0.2)
    assert maj_at_k(votes, 100, [4], seed=3).value.tolist() == maj_at_k(votes, 100, [4], seed=3).value.tolist()


def test_sets_in_which_nobody_answers_are_lost_when_drawn_too():
    """One of a hundred responses has an answer, a correct one: 2 in 100 pairs include it."""
    found = maj_at_k([[1, 0]], 100, [2], draws=50_000)
    assert found.value[0, 0] == pytest.approx(0.02, abs=5 * found.standard_error[0])
    assert found.standard_error[0] < 1e-3


def test_more_than_the_largest_exact_number_is_sampled():
    votes = [[40, 25]]
    assert maj_at_k(votes, LARGEST_EXACT + 1, [8]).standard_error[0] > 0
    assert maj_at_k([[40, 24]], LARGEST_EXACT, [8]).standard_error[0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k([1], 4, 5), "k must be between 1 and 4, the smallest number of responses, got 5"),
        (lambda: pass_at_k([1], 4, 0), "k must be between 1 and 4, the smallest number of responses, got 0"),
        (
            lambda: pass_at_k([1, 1], [4, 2], [1, 3]),
            "k must be between 1 and 2, the smallest number of responses, got 3",
        ),
        (lambda: pass_at_k([1], 4, 1.5), r"k must be a whole number, got \[1.5\]"),
        (lambda: pass_at_k([5], 4, 1), "num_correct must be between 0 and num_samples, got 5 of 4"),
        (lambda: pass_at_k([-1], 4, 1), "num_correct must be between 0 and num_samples, got -1 of 4"),
        (lambda: pass_at_k([0.5], 4, 1), "num_correct must be whole numbers"),
        (lambda: avg_at_n([0], 0), "num_samples must be at least 1, got 0"),
        (lambda: avg_at_n([], 4), "num_correct must have one number per problem"),
        (lambda: maj_at_k([[2, 3]], 4, 1), "a problem with 4 responses has 5 votes"),
        (
            lambda: maj_at_k([[-1, 3]], 4, 1),
            "votes must be non-negative counts for at least one problem and one answer",
        ),
    ],
)
def test_what_is_no_count_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
