"""Near duplicates among many problems, by MinHash and locality-sensitive hashing. Strings in, pairs out.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Banding: Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", chapter 3.4. Both only propose pairs; every returned pair has been compared word for word.
"""

from collections.abc import Callable, Sequence

from rensa import RMinHash, RMinHashLSH

from cfpo_verl.data_prep.text import normalise, quantities, words

# Problems are short: with three words, one word changed among forty leaves a similarity of 0.85.
_GRAM_WORDS = 3
_PERMUTATIONS = 128
_SEED = 0
# Largest share of the pairs exactly at the threshold that banding may miss.
_MISSED = 1e-3
_CHUNK = 1000


def word_grams(text: str) -> frozenset[str]:
    """Return all runs of three words of a text; a shorter text is one run, a text without words has none.

    Example:
        >>> sorted(word_grams("How many apples are left?"))
        ['apples are left', 'how many apples', 'many apples are']
    """
    found = words(text)
    starts = range(max(1, len(found) - _GRAM_WORDS + 1)) if found else range(0)
    return frozenset(" ".join(found[start : start + _GRAM_WORDS]) for start in starts)


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return the size of the intersection over the size of the union, of two sets that are not both empty.

    Example:
        >>> jaccard(frozenset("abc"), frozenset("bcd"))
        0.5
    """
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def _bands(threshold: float) -> int:
    """Return the fewest bands that miss at most `_MISSED` of the pairs at the threshold.

    With b bands of r rows, a pair of similarity s is missed with probability (1 - s^r)^b.
    """
    divisors = (bands for bands in range(1, _PERMUTATIONS + 1) if _PERMUTATIONS % bands == 0)
    return next(
        (bands for bands in divisors if (1 - threshold ** (_PERMUTATIONS // bands)) ** bands <= _MISSED), _PERMUTATIONS
    )


def find_near_duplicates(
    texts: Sequence[str],
    threshold: float,
    answers: Sequence[str] | None = None,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> list[tuple[int, int, float]]:
    """Find the texts that nearly repeat an earlier one.

    A text is dropped if the Jaccard similarity of its three-word runs and those of an earlier kept text is at least
    `threshold`, and if both have the same numbers and arithmetic signs in the same order: problems made from one
    template are not duplicates of each other. Problems of one template that differ in a word, such as "find tan A" and
    "find cos A", are told apart only by their answers: give these where they are known. The result is deterministic.

    Args:
        texts: The problems, without instructions.
        threshold: The smallest similarity of a near duplicate, above 0 and at most 1.
        answers: The gold answer of each text; texts whose normalised answers differ are never near duplicates.
        on_progress: Called after each chunk with the number of texts done.

    Returns:
        (index of the kept text, index of the dropped text, Jaccard similarity), ordered by the dropped text. The kept
        text is the most similar earlier one, in a tie the first of them, and is never dropped itself. Banding proposes
        a pair exactly at the threshold with a probability of at least 0.999, and more similar pairs with a higher one.

    Raises:
        ValueError: If the threshold is out of range, or there is not one answer for each text.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    if answers is not None and len(answers) != len(texts):
        raise ValueError(f"{len(texts)} texts need as many answers, got {len(answers)}")
    index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_bands(threshold))
    # What two texts must share to be near duplicates: answer and quantities, numbered as they first appear.
    groups: dict[tuple[str, ...], int] = {}
    group_of: list[int] = []
    pairs = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        grams = [word_grams(text) for text in chunk]
        golds = [""] * len(chunk) if answers is None else map(normalise, answers[start : start + _CHUNK])
        keys = [(gold, *quantities(text)) for gold, text in zip(golds, chunk, strict=True)]
        group_of += [groups.setdefault(key, len(groups)) for key in keys]
        # Marked with its group, a run of words is shared only within the group; else the thousands of problems of one
        # template would all be candidates for each other.
        marked = ([f"{group} {gram}" for gram in found] for group, found in zip(group_of[start:], grams, strict=True))
        sketches = RMinHash.from_token_sets(marked, num_perm=_PERMUTATIONS, seed=_SEED)
        for offset, (found, sketch) in enumerate(zip(grams, sketches, strict=True)):
            if not found:
                continue
            current = start + offset
            similar = [
                (-similarity, kept)
                for kept in index.query(sketch)
                if group_of[kept] == group_of[current]
                and (similarity := jaccard(found, word_grams(texts[kept]))) >= threshold
            ]
            if similar:
                negated, kept = min(similar)
                pairs.append((kept, current, -negated))
            else:
                index.insert(current, sketch)
        on_progress(len(group_of))
    return pairs
