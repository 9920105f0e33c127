"""Remove training problems that share a run of words with an evaluation problem.

The rule of n consecutive words is that of Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cfpo_verl.data_prep.schema import DataError, check_file, read_batches
from cfpo_verl.data_prep.text import words
from cfpo_verl.data_prep.writing import sha256
from cfpo_verl.files import replacing, writing

NGRAM_WORDS = 8
# A run of words in more than this share of a set's distinct problems, and in at least this many, is an instruction.
_COMMON_SHARE = 0.2
_COMMON_PROBLEMS = 3
_BATCH_ROWS = 8192
_EXCERPT_CHARACTERS = 200
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SEED = 0

_Hashes = np.ndarray[Any, np.dtype[np.uint64]]
_Positions = np.ndarray[Any, np.dtype[np.int64]]
_Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Match:
    """What a text shares with an evaluation problem.

    Args:
        evaluation: Number of the evaluation set.
        index: Number of the problem in it.
        shared: The shared words, separated by spaces.
    """

    evaluation: int
    index: int
    shared: str


class _Known:
    """Sorted hashes, with a table of their leading bits that rejects most other hashes quickly."""

    _BITS = np.uint64(22)

    def __init__(self, hashes: _Hashes) -> None:
        """Keep sorted hashes."""
        self._hashes = hashes
        self._begins = np.zeros(2 ** int(self._BITS), dtype=bool)
        self._begins[hashes >> (np.uint64(64) - self._BITS)] = True

    def find(self, hashes: _Hashes) -> tuple[_Positions, _Positions]:
        """Return which of N hashes are known, and their places in the sorted list: [N] -> [F], [F]."""
        maybe = np.flatnonzero(self._begins[hashes >> (np.uint64(64) - self._BITS)])
        places = np.minimum(np.searchsorted(self._hashes, hashes[maybe]), len(self._hashes) - 1)
        known = self._hashes[places] == hashes[maybe]
        return maybe[known], places[known]


class EvaluationIndex:
    """Finds texts that share n consecutive words with a problem of some evaluation sets.

    A run of n words in more than a fifth of a set's distinct problems, and in at least three, is an instruction or a
    template and does not count, in any set. Its words are removed on both sides, so that the words next to an
    instruction do not count either. A text left without n consecutive words is compared as a whole: its remaining
    words must be those of an evaluation problem that has no such run either. Texts without remaining words match
    nothing.

    Runs of words are stored as 64-bit hashes, 16 bytes each. The probability that any of a billion runs matches one of
    a million others by chance is about 5e-5.
    """

    def __init__(self, sets: Sequence[Sequence[str]], n: int = NGRAM_WORDS) -> None:
        """Index the problems.

        Args:
            sets: The problems of each evaluation set.
            n: Number of consecutive words.

        Raises:
            ValueError: If n is less than 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self._n = n
        words_of_sets = [[words(problem) for problem in problems] for problems in sets]
        vocabulary = {word for problems in words_of_sets for found in problems for word in found}
        # Unknown words are number 0.
        self._numbers = {word: number for number, word in enumerate(sorted(vocabulary), start=1)}
        self._values = np.random.default_rng(_SEED).integers(2**64, size=len(vocabulary) + 1, dtype=np.uint64)

        common = [np.zeros(0, dtype=np.uint64), *map(self._common_of, words_of_sets)]
        self._common = _Known(np.unique(np.concatenate(common)))
        problems = [found for problems in words_of_sets for found in problems]
        self._origins = [(number, index) for number, problems in enumerate(sets) for index in range(len(problems))]
        text_of, starts, hashes, own = self._own_runs(problems)
        # np.unique returns first occurrences, that is the first problem with a run.
        known, first = np.unique(hashes, return_index=True)
        self._known = _Known(known)
        self._problem_of = text_of[starts[first]]
        self._wholes: dict[tuple[str, ...], int] = {}
        for problem, whole in _without_runs(problems, text_of, starts, own):
            self._wholes.setdefault(whole, problem)

    def first_matches(self, texts: Sequence[str]) -> list[Match | None]:
        """Return, for each text, the first words it shares with an evaluation problem, or None.

        If several evaluation problems share these words, the first one is named.
        """
        words_of = [words(text) for text in texts]
        text_of, starts, hashes, own = self._own_runs(words_of)
        matches: list[Match | None] = [None] * len(texts)
        for text, whole in _without_runs(words_of, text_of, starts, own):
            if whole in self._wholes:
                matches[text] = Match(*self._origins[self._wholes[whole]], " ".join(whole))
        found, places = self._known.find(hashes)
        begins = np.searchsorted(text_of, np.arange(len(texts)))
        for start, place in zip(starts[found].tolist(), places.tolist(), strict=True):
            text = text_of[start]
            if matches[text] is None:
                begin = start - begins[text]
                shared = " ".join(words_of[text][begin : begin + self._n])
                matches[text] = Match(*self._origins[int(self._problem_of[place])], shared)
        return matches

    def _runs(self, texts: Sequence[Sequence[str]]) -> tuple[_Positions, _Positions, _Hashes]:
        """Hash every run of n words.

        Positions count the words of all texts, one text after the other: W words, R runs.

        Returns:
            The text of each word [W], the first word of each run [R], and the hash of each run [R]: the polynomial,
            modulo 2^64, of random values of its words.
        """
        text_of = np.repeat(np.arange(len(texts)), [len(found) for found in texts])
        numbers = np.fromiter(
            map(self._numbers.get, chain.from_iterable(texts), repeat(0)), dtype=np.int64, count=len(text_of)
        )
        values = self._values[numbers]
        count = max(0, len(values) - self._n + 1)
        starts = np.flatnonzero(text_of[:count] == text_of[len(values) - count :])
        hashes = np.zeros(count, dtype=np.uint64)
        for offset in range(self._n if count else 0):
            hashes = hashes * _MULTIPLIER + values[offset : offset + count]
        return text_of, starts, hashes[starts]

    def _common_of(self, problems: Sequence[Sequence[str]]) -> _Hashes:
        """Return the hashes of the runs that too many distinct problems have to be evidence."""
        different = sorted(set(map(tuple, problems)))
        text_of, starts, hashes = self._runs(different)
        order = np.lexsort((text_of[starts], hashes))
        pairs = np.stack([hashes[order], text_of[starts][order].astype(np.uint64)])
        fresh = np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0))[: len(order)]
        runs, counts = np.unique(pairs[0, fresh], return_counts=True)
        return runs[(counts >= _COMMON_PROBLEMS) & (counts > _COMMON_SHARE * len(different))]

    def _own_runs(self, texts: Sequence[Sequence[str]]) -> tuple[_Positions, _Positions, _Hashes, _Mask]:
        """Return what `_runs` does, but for runs that overlap a common run, and the words outside of those [W]."""
        text_of, starts, hashes = self._runs(texts)
        common, _places = self._common.find(hashes)
        steps = np.zeros(len(text_of) + 1, dtype=np.int64)
        steps[starts[common]] += 1
        steps[starts[common] + self._n] -= 1
        own = np.cumsum(steps)[:-1] == 0
        others_before = np.append(0, np.cumsum(~own))
        kept = others_before[starts + self._n] == others_before[starts]
        return text_of, starts[kept], hashes[kept], own


def _without_runs(
    texts: Sequence[Sequence[str]], text_of: _Positions, starts: _Positions, own: _Mask
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield index and remaining words of the texts that have no run but have remaining words."""
    begins = np.searchsorted(text_of, np.arange(len(texts)))
    for text in np.setdiff1d(np.arange(len(texts)), text_of[starts]).tolist():
        begin = begins[text]
        whole = tuple(word for offset, word in enumerate(texts[text]) if own[begin + offset])
        if whole:
            yield text, whole


@dataclass(frozen=True)
class Removed:
    """A training row that was left out.

    Args:
        index: Number of the row in the training file.
        text: The first 200 characters of its problem.
        evaluation_file: The file with the evaluation problem.
        evaluation_index: Number of the row in that file.
        shared: The shared words.
    """

    index: int
    text: str
    evaluation_file: str
    evaluation_index: int
    shared: str


@dataclass(frozen=True)
class Report:
    """The result of decontamination.

    Args:
        train: The training file.
        against: The evaluation files.
        n: Number of consecutive shared words that counted as contamination.
        rows: Number of rows of the training file.
        removed: The rows left out, in order.
    """

    train: str
    against: tuple[str, ...]
    n: int
    rows: int
    removed: tuple[Removed, ...]


def _problem_texts(batch: pa.RecordBatch, path: Path) -> list[str]:
    """Return `extra_info.problem` of each row, or where there is none the content of the prompt's last message.

    Raises:
        DataError: If that is not text.
    """
    names = batch.schema.names
    kind = batch.schema.field("extra_info").type if "extra_info" in names else None
    if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("problem") >= 0:
        problems = pc.struct_field(batch.column("extra_info"), "problem").to_pylist()
        if all(isinstance(problem, str) for problem in problems):
            return problems
    else:
        problems = [None] * len(batch)
    texts = []
    for problem, prompt in zip(problems, batch.column("prompt").to_pylist(), strict=True):
        text = problem if problem is not None else prompt and prompt[-1] and prompt[-1]["content"]
        if not isinstance(text, str):
            raise DataError(
                f"{path}: a prompt is null, empty or not text. See which with: cfpo-verl data validate {path}"
            )
        texts.append(text)
    return texts


def read_problem_texts(path: Path) -> list[str]:
    """Return the problem of each row of a parquet file in verl's schema, without instructions if possible.

    Raises:
        DataError: If the file cannot be used.
    """
    check_file(path)
    columns = [name for name in ("prompt", "extra_info") if name in pq.read_schema(path).names]
    return [text for batch in read_batches(path, _BATCH_ROWS, columns) for text in _problem_texts(batch, path)]


def decontaminate(
    train: Path,
    against: Sequence[Path],
    out: Path,
    n: int = NGRAM_WORDS,
    on_progress: Callable[[int, int], None] = lambda _done, _rows: None,
) -> Report:
    """Write the rows of a training file that share no n consecutive words with a problem of the evaluation files.

    `EvaluationIndex` states the rule. Columns, their types and the order of the rows are kept. Beside the file,
    `<stem>.contaminated.json` lists the removed rows, and `<stem>.manifest.json` the inputs. Older files are replaced
    only when all three are complete.

    Args:
        train: A parquet file in verl's schema; it is read in batches.
        against: The evaluation files, parquet in verl's schema.
        out: The file to write, which may be `train` itself. Its folder is made.
        n: Number of consecutive words.
        on_progress: Called after each batch with the number of rows done and the total.

    Returns:
        The rows that were left out.

    Raises:
        DataError: If n is less than 1, a file cannot be used, `out` is an evaluation file, or no row is left.
        FileError: If the system refuses to write the files.
    """
    if n < 1:
        raise DataError(f"words must be at least 1, got {n}")
    if out.resolve() in {path.resolve() for path in against}:
        raise DataError(f"{out}: is an evaluation file and would be overwritten. Give another file to write")
    rows = check_file(train)
    index = EvaluationIndex([read_problem_texts(path) for path in against], n)
    removed: list[Removed] = []
    report_file = out.with_name(f"{out.stem}.contaminated.json")
    manifest_file = out.with_suffix(".manifest.json")
    # The last one is replaced first: the parquet file comes when all three are complete.
    with ExitStack() as files:
        unfinished, unfinished_report, unfinished_manifest = (
            files.enter_context(replacing(path)) for path in (out, report_file, manifest_file)
        )
        files.enter_context(writing(out))
        with pq.ParquetWriter(unfinished, pq.read_schema(train)) as writer:
            done = 0
            for batch in read_batches(train, _BATCH_ROWS):
                texts = _problem_texts(batch, train)
                matches = index.first_matches(texts)
                for row, (text, match) in enumerate(zip(texts, matches, strict=True), start=done):
                    if match is not None:
                        source = str(against[match.evaluation])
                        removed.append(Removed(row, text[:_EXCERPT_CHARACTERS], source, match.index, match.shared))
                writer.write_batch(batch.filter(pa.array([match is None for match in matches])))
                done += len(batch)
                on_progress(done, rows)
        if len(removed) == rows:
            raise DataError(
                f"{train}: each of the {rows} rows shares words with {removed[0].evaluation_file}, such as "
                f"{removed[0].shared!r}; nothing is left to write"
            )
        report = Report(str(train), tuple(map(str, against)), n, rows, tuple(removed))
        unfinished_report.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False), encoding="utf-8")
        check_file(unfinished)
        manifest = {
            "decontaminated": train.name,
            "against": [{"file": str(path), "sha256": sha256(path)} for path in against],
            "words": n,
            "rows_in": rows,
            "rows_out": rows - len(removed),
            "sha256_in": sha256(train),
            "sha256_out": sha256(unfinished),
        }
        unfinished_manifest.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report
