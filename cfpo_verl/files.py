"""Atomic writes, and errors that name the file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cfpo_verl.errors import UserError, first_line


class FileError(UserError):
    """A file cannot be read or written; the message names it and the system's reason."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise an error that names the file if the system refuses to read it or its text is not UTF-8.

    Raises:
        FileError: Instead of an OSError or a UnicodeDecodeError.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: cannot be read: not UTF-8 text (byte {error.start})") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping. An empty file is an empty mapping.

    Raises:
        FileError: If it cannot be read, is not YAML or is not a mapping; with the line where there is one.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FileError(f"{path}{yaml_problem(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FileError(f"{path}: must be a mapping of keys to values, got a {type(content).__name__}")
    if wrong := [key for key in content if not isinstance(key, str)]:
        raise FileError(f"{path}: keys must be strings, got {wrong[0]!r}")
    return content


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an error that names the file if the system refuses to write it.

    Raises:
        FileError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block, that file atomically replaces `path`.

    If the block fails, `path` is unchanged and the temporary file is removed. A missing folder is created.

    Raises:
        FileError: If the system refuses to write it.
    """
    # The suffix is kept because matplotlib and others derive the format from it.
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old or the new text, never a part of it.

    Raises:
        FileError: If the system refuses to write it.
    """
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileError: If it cannot be read, is not JSON, or does not hold an object.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(value, dict):
        raise FileError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def yaml_problem(error: yaml.YAMLError) -> str:
    r"""Return the line of a YAML error, if it has one, and what is wrong, to follow the name of the file.

    Example:
        >>> try:
        ...     yaml.safe_load("a: 1\nb: [2")
        ... except yaml.YAMLError as error:
        ...     print("cluster.yaml" + yaml_problem(error))
        cluster.yaml, line 2: not YAML (expected ',' or ']', but got '<stream end>')
    """
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return (f", line {mark.line + 1}" if mark else "") + f": not YAML ({problem or first_line(error)})"


def nearest_folder(path: str) -> Path:
    """Return the path itself if it exists, else its nearest existing parent."""
    nearest = Path(path).absolute()
    # os.path.lexists returns False where Path.exists raises, for example without permission.
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    return nearest
