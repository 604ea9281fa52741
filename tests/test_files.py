"""Files are written whole or not at all, and digests change exactly when content does."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from hubdistill.errors import RunDirectoryError
from hubdistill.files import digest_of, file_sha256, folder_sha256, write_atomically, write_json, write_problem


def fails(number: int):
    def call(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return call


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_atomically(path, b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["c.bin"]


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, old):
    path = tmp_path / "c.json"
    if old is not None:
        path.write_bytes(old)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails(errno.ENOSPC))
        with pytest.raises(RunDirectoryError, match=r"cannot write .*c\.json: the disk is full; free some space and run the same command again"):
            write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == (["c.json"] if old is not None else [])
    assert old is None or path.read_bytes() == old


def test_an_interruption_leaves_the_old_file_and_is_not_turned_into_another_error(tmp_path, monkeypatch):
    path = tmp_path / "c.json"
    path.write_bytes(b"old")

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]
    assert path.read_bytes() == b"old"


def test_readers_see_the_old_file_until_the_new_one_is_on_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "c.json", []
    path.write_bytes(b"old")
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(path.read_bytes()) or original(handle))
    write_atomically(path, b"new")
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_is_really_full_is_named_as_such(tmp_path, monkeypatch):
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **kw: original(Path("/dev/full"), "wb") if mode == "xb" else original(self, mode, **kw))
    with pytest.raises(RunDirectoryError, match="the disk is full"):
        write_atomically(tmp_path / "c.json", b"new" * 100_000)


def test_a_file_in_the_path_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*: a part of the path is a file; choose another place with --output") as caught:
        write_atomically(tmp_path / "file" / "run" / "c.json", b"")
    assert isinstance(caught.value.__cause__, NotADirectoryError)


def test_a_folder_in_the_place_of_the_file_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "c.json" / "inner").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="Is a directory; choose another place with --output"):
        write_atomically(tmp_path / "c.json", b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full; free some space and run the same command again, finished stages are kept"),
        (OSError(errno.EROFS, "x"), "the file system is read-only; choose another place with --output"),
        (PermissionError(errno.EACCES, "x"), f"permission denied to user id {os.geteuid()}; let it write there (chown; for a container: --user), or choose another place with --output"),
        (NotADirectoryError(errno.ENOTDIR, "x"), "a part of the path is a file; choose another place with --output"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; choose another place with --output"),
        (OSError("told in words"), "told in words; choose another place with --output"),
    ],
)
def test_every_cause_has_its_wording_and_its_fix(problem, text):
    found = write_problem(problem, Path("runs/x/plan.json"))
    assert isinstance(found, RunDirectoryError)
    assert str(found) == f"cannot write runs/x/plan.json: {text}"


def test_json_is_readable_by_people_and_by_machines(tmp_path):
    write_json(tmp_path / "c.json", {"name": "Zürich", "rows": [1, 2.5, None]})
    text = (tmp_path / "c.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "Zürich", "rows": [1, 2.5, None]}
    assert "Zürich" in text
    assert text.endswith("}\n")


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "c.json", {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "c.json", {"x": object()})
    assert (tmp_path / "c.json").read_text() == "{}\n"


def test_a_file_s_digest_is_its_sha256(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "x").write_bytes(data)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_folder_s_digest_depends_on_names_and_content_alone(tmp_path):
    files = {"a.txt": "1", "sub/b.txt": "2"}
    expected = folder_sha256(fill(tmp_path / "one", files))
    assert folder_sha256(fill(tmp_path / "two", dict(reversed(files.items())))) == expected
    os.utime(tmp_path / "two" / "a.txt", (1, 1))
    assert folder_sha256(tmp_path / "two") == expected


@pytest.mark.parametrize("other", [{"a.txt": "2", "sub/b.txt": "2"}, {"a.txt": "1"}, {"a.txt": "1", "b.txt": "2"}, {"a.txt": "2", "sub/b.txt": "1"},
                                   {"a.txt": "1", "sub/b.txt": "2", "sub/c.txt": ""}, {}])  # fmt: skip
def test_a_changed_renamed_missing_or_added_file_changes_a_folder_s_digest(tmp_path, other):
    (tmp_path / "other").mkdir()
    assert folder_sha256(fill(tmp_path / "other", other)) != folder_sha256(fill(tmp_path / "one", {"a.txt": "1", "sub/b.txt": "2"}))


def test_equal_values_have_equal_digests_whatever_the_order_of_their_keys():
    assert digest_of({"a": 1, "b": {"c": [1, None], "d": "é"}}) == digest_of({"b": {"d": "é", "c": (1, None)}, "a": 1})


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None}, {}, [{"a": 1}], {"a": True}, {"a": 1.0}])
def test_other_values_have_other_digests(other):
    assert digest_of(other) != digest_of({"a": 1})


def test_the_order_of_a_list_counts():
    assert digest_of([1, 2]) != digest_of([2, 1])
