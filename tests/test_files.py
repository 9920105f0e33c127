"""cfpo_verl.files: the old file or the new one, and errors that name the file."""

import pytest

from cfpo_verl.files import FileError, nearest_folder, reading, replacing, write_atomically, writing


def test_a_file_is_replaced_at_once(tmp_path):
    file = tmp_path / "new" / "a.png"
    with replacing(file) as unfinished:
        assert unfinished.suffix == ".png"
        unfinished.write_bytes(b"1")
        assert not file.exists()
    assert file.read_bytes() == b"1"
    assert list(file.parent.iterdir()) == [file]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    write_atomically(file, "old")
    with pytest.raises(TypeError), replacing(file) as unfinished, unfinished.open("w") as stream:
        stream.write("half") and stream.write(b"of it")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_the_system_refuses_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    missing, latin = tmp_path / "none", tmp_path / "latin"
    with pytest.raises(FileError, match=rf"{missing}: cannot be read \(No such file or directory\)"), reading(missing):
        missing.read_text()
    with pytest.raises(FileError, match=r"/file(/|: cannot be written \()"):
        write_atomically(tmp_path / "file" / "a.txt", "text")
    with pytest.raises(FileError, match=rf"{tmp_path}: cannot be written \(Is a directory\)"), writing(tmp_path):
        tmp_path.write_text("text")
    latin.write_bytes(b"a\xe4b")
    with pytest.raises(FileError, match=rf"{latin}: cannot be read: not UTF-8 text \(byte 1\)"), reading(latin):
        latin.read_text(encoding="utf-8")


def test_a_bug_in_the_block_stays_one(tmp_path):
    with pytest.raises(ValueError, match="a bug"), reading(tmp_path):
        raise ValueError("a bug")


def test_the_nearest_folder_that_exists(tmp_path):
    assert nearest_folder(str(tmp_path / "a" / "b")) == tmp_path
    assert nearest_folder(str(tmp_path)) == tmp_path
