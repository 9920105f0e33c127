"""What a model does with n responses for each problem: avg@n, pass@k and maj@k, from counts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Up to so many responses for each problem maj@k is computed and not sampled.
LARGEST_EXACT = 64


def avg_at_n(num_correct: ArrayLike, num_samples: ArrayLike) -> Floats:
    """Return the share of right responses of each problem: c / n, the unbiased estimate of pass@1.

    Args:
        num_correct: Right responses c of each problem. Shape [P].
        num_samples: Responses n of each problem, or of all. Shape [P] or [].

    Returns:
        Shape [P].

    Raises:
        ValueError: If a count is none.
    """
    correct, samples = _counts(num_correct, num_samples)
    return correct / samples


def pass_at_k(num_correct: ArrayLike, num_samples: ArrayLike, k: ArrayLike) -> Floats:
    """Estimate the probability that at least one of k responses is right, for each problem.

    Unbiased: with c of n responses right, the share of all sets of k of them in which one is,

        1 - C(n - c, k) / C(n, k)  =  1 - product over j < k of (n - c - j) / (n - j)

    Args:
        num_correct: Right responses c of each problem. Shape [P].
        num_samples: Responses n of each problem, or of all. Shape [P] or [].
        k: Responses that a user tries, from 1 to the smallest n. A number or several.

    Returns:
        Shape [P], or [P, K] for several k.

    Raises:
        ValueError: If a count is none, or a k is out of its range.

    Example:
        >>> pass_at_k([0, 1, 2], 4, [1, 2, 4]).round(4).tolist()
        [[0.0, 0.0, 0.0], [0.25, 0.5, 1.0], [0.5, 0.8333, 1.0]]

    Reference:
        Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv:2107.03374.
    """
    correct, samples = _counts(num_correct, num_samples)
    ks = _ks(k, samples)
    tried = np.arange(ks.max())
    # Zero from the first j on at which no wrong response is left, which keeps the product at zero.
    wrong_left = np.maximum((samples - correct)[:, None] - tried, 0)
    all_wrong = np.cumprod(wrong_left / (samples[:, None] - tried), axis=1)
    estimate = 1 - all_wrong[:, ks - 1]
    return estimate if np.ndim(k) else estimate[:, 0]


class Majority(NamedTuple):
    """maj@k of each problem.

    Args:
        value: Shape [P, K].
        standard_error: Of the mean over problems, from sampling sets; 0 where nothing was sampled. Shape [K].
    """

    value: Floats
    standard_error: Floats


def maj_at_k(
    votes: ArrayLike,
    num_samples: ArrayLike,
    k: ArrayLike,
    draws: int = 30_000,
    seed: int = 0,
    exact: bool | None = None,
) -> Majority:
    """Estimate the probability that the most frequent answer of k responses is the right one, for each problem.

    That is the mean over all sets of k of a problem's n responses; where the right answer ties with j others, it wins
    1 / (j + 1). A response without an answer does not vote, and without a vote nothing wins.

    Up to `LARGEST_EXACT` responses the mean is computed: over the number t of right votes in the set,

        sum over t of C(c, t) [x^(k-t)] (1+x)^b  integral from 0 to 1 of  product over wrong answers of
        (sum over s < t of C(w, s) x^s  +  y C(w, t) x^t)  dy   /   C(n, k)

    with c right votes, b responses without an answer and w votes for each wrong answer; the integral makes 1 / (j + 1)
    of y^j. Above that, sets are drawn, except for k = 1 and k = n.

    Args:
        votes: Votes for the right answer, then for each wrong one in any order, padded with 0. Shape [P, 1 + W].
        num_samples: Responses n of each problem, or of all. Shape [P] or [].
        k: Responses that a user asks for, from 1 to the smallest n. A number or several.
        draws: Sets that are drawn for each k, all problems together.
        seed: Decides which.
        exact: Whether to compute; None: up to `LARGEST_EXACT` responses.

    Raises:
        ValueError: If a count is none, or a k is out of its range.

    Example:
        >>> maj_at_k([[2, 1, 1]], 4, [1, 2, 4]).value.round(4).tolist()  # two of four are right, the others differ
        [[0.5, 0.5, 1.0]]
    """
    counts = np.atleast_2d(np.asarray(votes, dtype=np.int64))
    if counts.size == 0 or counts.min() < 0:
        raise ValueError("votes must be counts of at least one problem and one answer, 0 or more")
    _correct, samples = _counts(counts[:, 0], num_samples)
    blank = samples - counts.sum(axis=1)
    if blank.min() < 0:
        raise ValueError(
            f"a problem of {samples[blank.argmin()]} responses has {counts.sum(axis=1)[blank.argmin()]} votes"
        )
    ks = _ks(k, samples)
    # Problems with the same votes have the same result, and there are few ways to divide a few responses.
    rows = np.column_stack([counts[:, 0], -np.sort(-counts[:, 1:], axis=1), blank])
    if exact or (exact is None and samples.max() <= LARGEST_EXACT):
        different, which = np.unique(rows, axis=0, return_inverse=True)
        right, wrong, no_vote = different[:, 0], different[:, 1:-1], different[:, -1]
        return Majority(_computed(right, wrong, no_vote, ks)[which.reshape(-1)], np.zeros(len(ks)))
    return _drawn(rows, samples, ks, max(2, draws // len(rows)), np.random.default_rng(seed))


def _computed(
    right: NDArray[np.int64], wrong: NDArray[np.int64], blank: NDArray[np.int64], ks: NDArray[np.int64]
) -> Floats:
    """Sum over all sets. `wrong` is sorted, largest first. All terms are positive, so nothing cancels."""
    degree = int(ks.max())
    total = right + wrong.sum(axis=1) + blank
    binomial = _pascal(int(total.max()))
    wins = np.zeros((len(right), degree + 1))
    for t in range(1, min(int(right.max()), degree) + 1):
        rows = np.flatnonzero(right >= t)
        near = wrong[rows]
        rivals = (near >= t).sum(axis=1)
        # Gauss's quadrature is exact for polynomials in y of degree 2 * nodes - 1.
        points, weights = np.polynomial.legendre.leggauss(int(rivals.max()) // 2 + 1)
        y = (points + 1) / 2
        # Answers with fewer votes than t never reach it: any of them may be in the set, as any response without one.
        free = blank[rows] + np.where(near < t, near, 0).sum(axis=1)
        ways = np.repeat(binomial[free, None, : degree + 1], len(y), axis=1)  # [rows, y, power of x]
        for column in range(int(rivals.max())):
            here = np.flatnonzero(rivals > column)
            choices = binomial[near[here, column], : t + 1]
            old, new = ways[here], np.zeros((len(here), len(y), degree + 1))
            for s in range(min(t, degree) + 1):
                factor = choices[:, s, None] * (y if s == t else np.ones_like(y))
                new[:, :, s:] += factor[:, :, None] * old[:, :, : degree + 1 - s]
            ways[here] = new
        wins[rows, t:] += (
            binomial[right[rows], t, None] * np.einsum("rjx,j->rx", ways, weights / 2)[:, : degree + 1 - t]
        )
    return wins[:, ks] / binomial[total[:, None], ks]


def _drawn(
    rows: NDArray[np.int64], samples: NDArray[np.int64], ks: NDArray[np.int64], draws: int, rng: np.random.Generator
) -> Majority:
    value, variance = np.zeros((len(rows), len(ks))), np.zeros((len(rows), len(ks)))
    for problem, row in enumerate(rows):
        # Without the answers that nobody gave; the responses without an answer stay last.
        counts = np.append(row[:-1][(row[:-1] > 0) | (np.arange(len(row) - 1) == 0)], row[-1])
        for place, k in enumerate(ks):
            if k == 1:
                value[problem, place] = row[0] / samples[problem]
            elif k == samples[problem]:
                value[problem, place] = _shares(counts[None, :-1])[0]
            else:
                drawn = rng.multivariate_hypergeometric(counts, k, size=draws, method="marginals")
                shares = _shares(drawn[:, :-1])
                value[problem, place] = shares.mean()
                variance[problem, place] = shares.var(ddof=1) / draws
    return Majority(value, np.sqrt(variance.sum(axis=0)) / len(rows))


def _shares(votes: NDArray[np.int64]) -> Floats:
    """Return the right answer's share of winning each vote; it stands first. Shape [votes, answers] to [votes]."""
    most = votes.max(axis=1)
    won = (votes[:, 0] == most) & (most > 0)
    shares: Floats = won / (votes == most[:, None]).sum(axis=1)
    return shares


def _pascal(largest: int) -> Floats:
    """Return C(n, k) for all n and k up to a number; 0 for k > n."""
    triangle = np.zeros((largest + 1, largest + 1))
    triangle[:, 0] = 1
    for n in range(1, largest + 1):
        triangle[n, 1:] = triangle[n - 1, 1:] + triangle[n - 1, :-1]
    return triangle


def _counts(num_correct: ArrayLike, num_samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    correct = np.asarray(num_correct)
    samples = np.broadcast_to(np.asarray(num_samples), correct.shape)
    if correct.ndim != 1 or correct.size == 0:
        raise ValueError(f"num_correct must have one number for each problem, got shape {list(correct.shape)}")
    for name, values in (("num_correct", correct), ("num_samples", samples)):
        if not (np.issubdtype(values.dtype, np.number) and (values == np.floor(values)).all()):
            raise ValueError(f"{name} must be whole numbers")
    if samples.min() < 1:
        raise ValueError(f"num_samples must be at least 1, got {samples.min()}")
    if (correct < 0).any() or (correct > samples).any():
        worst = np.flatnonzero((correct < 0) | (correct > samples))[0]
        raise ValueError(f"num_correct must be between 0 and num_samples, got {correct[worst]} of {samples[worst]}")
    return correct.astype(np.int64), samples.astype(np.int64)


def _ks(k: ArrayLike, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    ks = np.atleast_1d(np.asarray(k))
    if ks.size == 0 or not np.issubdtype(ks.dtype, np.integer):
        raise ValueError(f"k must be a whole number, got {ks.tolist()}")
    if ks.min() < 1 or ks.max() > samples.min():
        raise ValueError(
            f"k must be between 1 and {samples.min()}, the responses of a problem, "
            f"got {ks.min() if ks.min() < 1 else ks.max()}"
        )
    return ks.astype(np.int64)
