"""avg@n, pass@k and maj@k from counts of correct responses and votes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Maximum number of responses per problem for which maj@k is computed exactly, not estimated by sampling.
LARGEST_EXACT = 64


def avg_at_n(num_correct: ArrayLike, num_samples: ArrayLike) -> Floats:
    """Return the share of correct responses per problem, c / n: the unbiased estimate of pass@1.

    Args:
        num_correct: Number of correct responses c per problem. Shape [P].
        num_samples: Number of responses n per problem, or one number for all. Shape [P] or [].

    Returns:
        Shape [P].

    Raises:
        ValueError: If a count is invalid.
    """
    correct, samples = _counts(num_correct, num_samples)
    return correct / samples


def pass_at_k(num_correct: ArrayLike, num_samples: ArrayLike, k: ArrayLike) -> Floats:
    """Estimate, per problem, the probability that at least one of k responses is correct.

    Unbiased: if c of n responses are correct, the share of k-subsets of the n with at least one correct response is

        1 - C(n - c, k) / C(n, k)  =  1 - product over j < k of (n - c - j) / (n - j)

    Args:
        num_correct: Number of correct responses c per problem. Shape [P].
        num_samples: Number of responses n per problem, or one number for all. Shape [P] or [].
        k: Number of responses tried, from 1 to the smallest n. One number or several.

    Returns:
        Shape [P], or [P, K] for several k.

    Raises:
        ValueError: If a count is invalid, or k is out of range.

    Example:
        >>> pass_at_k([0, 1, 2], 4, [1, 2, 4]).round(4).tolist()
        [[0.0, 0.0, 0.0], [0.25, 0.5, 1.0], [0.5, 0.8333, 1.0]]

    Reference:
        Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv:2107.03374.
    """
    correct, samples = _counts(num_correct, num_samples)
    ks = _ks(k, samples)
    tried = np.arange(ks.max())
    # Clamped at 0: once no wrong response is left, the product stays 0.
    wrong_left = np.maximum((samples - correct)[:, None] - tried, 0)
    all_wrong = np.cumprod(wrong_left / (samples[:, None] - tried), axis=1)
    estimate = 1 - all_wrong[:, ks - 1]
    return estimate if np.ndim(k) else estimate[:, 0]


class Majority(NamedTuple):
    """maj@k per problem.

    Args:
        value: Shape [P, K].
        standard_error: Monte Carlo standard error of the mean over problems; 0 where computed exactly. Shape [K].
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
    """Estimate, per problem, the probability that the most frequent answer among k responses is correct.

    This is the mean over all k-subsets of a problem's n responses. If the correct answer ties with j others, the subset
    counts 1 / (j + 1). A response without an answer does not vote; a subset without votes counts 0.

    Up to `LARGEST_EXACT` responses the mean is computed exactly, summing over the number t of correct votes:

        sum over t of C(c, t) [x^(k-t)] (1+x)^b  integral from 0 to 1 of  product over wrong answers of
        (sum over s < t of C(w, s) x^s  +  y C(w, t) x^t)  dy   /   C(n, k)

    with c correct votes, b responses without an answer and w votes for each wrong answer; the integral turns y^j into
    1 / (j + 1). Above that, subsets are sampled, except for k = 1 and k = n.

    Args:
        votes: Votes for the correct answer, then for each wrong one in any order, padded with 0. Shape [P, 1 + W].
        num_samples: Number of responses n per problem, or one number for all. Shape [P] or [].
        k: Number of responses that vote, from 1 to the smallest n. One number or several.
        draws: Number of subsets to sample for each k, over all problems.
        seed: Seed of the sampling.
        exact: Whether to compute exactly; None for up to `LARGEST_EXACT` responses.

    Raises:
        ValueError: If a count is invalid, or k is out of range.

    Example:
        >>> maj_at_k([[2, 1, 1]], 4, [1, 2, 4]).value.round(4).tolist()  # two of four are correct, the other two differ
        [[0.5, 0.5, 1.0]]
    """
    counts = np.atleast_2d(np.asarray(votes, dtype=np.int64))
    if counts.size == 0 or counts.min() < 0:
        raise ValueError("votes must be non-negative counts for at least one problem and one answer")
    _correct, samples = _counts(counts[:, 0], num_samples)
    blank = samples - counts.sum(axis=1)
    if blank.min() < 0:
        raise ValueError(
            f"a problem with {samples[blank.argmin()]} responses has {counts.sum(axis=1)[blank.argmin()]} votes"
        )
    ks = _ks(k, samples)
    # Problems with the same votes have the same result: compute each distinct row once.
    rows = np.column_stack([counts[:, 0], -np.sort(-counts[:, 1:], axis=1), blank])
    if exact or (exact is None and samples.max() <= LARGEST_EXACT):
        different, which = np.unique(rows, axis=0, return_inverse=True)
        right, wrong, no_vote = different[:, 0], different[:, 1:-1], different[:, -1]
        return Majority(_computed(right, wrong, no_vote, ks)[which.reshape(-1)], np.zeros(len(ks)))
    return _drawn(rows, samples, ks, max(2, draws // len(rows)), np.random.default_rng(seed))


def _computed(
    right: NDArray[np.int64], wrong: NDArray[np.int64], blank: NDArray[np.int64], ks: NDArray[np.int64]
) -> Floats:
    """Sum over all subsets. `wrong` is sorted, largest first. All terms are positive, so nothing cancels."""
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
        # Answers with fewer than t votes cannot win or tie, so they count like responses without an answer.
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
        # Drop padding; the count of responses without an answer stays last.
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
    """Return 1 / (number of winners) where the first answer, the correct one, is among them, else 0.

    Shape [votes, answers] to [votes].
    """
    most = votes.max(axis=1)
    won = (votes[:, 0] == most) & (most > 0)
    shares: Floats = won / (votes == most[:, None]).sum(axis=1)
    return shares


def _pascal(largest: int) -> Floats:
    """Return C(n, k) for all n and k up to `largest`; 0 for k > n."""
    triangle = np.zeros((largest + 1, largest + 1))
    triangle[:, 0] = 1
    for n in range(1, largest + 1):
        triangle[n, 1:] = triangle[n - 1, 1:] + triangle[n - 1, :-1]
    return triangle


def _counts(num_correct: ArrayLike, num_samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    correct = np.asarray(num_correct)
    samples = np.broadcast_to(np.asarray(num_samples), correct.shape)
    if correct.ndim != 1 or correct.size == 0:
        raise ValueError(f"num_correct must have one number per problem, got shape {list(correct.shape)}")
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
            f"k must be between 1 and {samples.min()}, the smallest number of responses, "
            f"got {ks.min() if ks.min() < 1 else ks.max()}"
        )
    return ks.astype(np.int64)
