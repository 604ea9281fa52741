"""One run at a time in a directory; stages are skipped exactly when nothing they depend on has changed."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from hubdistill.errors import RunDirectoryError
from hubdistill.files import digest_of
from hubdistill.rundir import RunDirectory

HOLDER = """
import sys
from pathlib import Path
from hubdistill.rundir import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


class Stage:
    """A stage that writes two outputs and counts how often it worked."""

    def __init__(self, path):
        self.path, self.worked, self.told = path, 0, []
        self.outputs = ["out/rows.txt", "adapter"]

    def __call__(self, inputs=("a", 1), path=None):
        directory = RunDirectory(path or self.path, lambda name, what: self.told.append((name, what)))
        result = directory.stage("sample", inputs, self.outputs, self.work)
        self.digests = directory.digests
        return result

    def work(self):
        self.worked += 1
        for name in ("out/rows.txt", "adapter/weights.bin", "adapter/config.json"):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(f"content of {name}")
        return {"rows": 3}


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`/run; ends when its input closes."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_process_is_locked_out_and_told_by_whom(tmp_path, holder):
    text = rf"run is in use by process {holder.pid}; wait for it, or choose another --output"
    for _ in range(2):
        with pytest.raises(RunDirectoryError, match=text), RunDirectory(tmp_path / "run").locked():
            pytest.fail("two processes hold the directory")
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.wait(timeout=20) == 0
    with RunDirectory(tmp_path / "run").locked():
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())


def test_a_process_that_was_killed_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with RunDirectory(tmp_path / "run").locked() as directory:
        assert directory.path == tmp_path / "run"


def test_an_error_inside_lets_go_of_the_directory(tmp_path):
    with pytest.raises(ZeroDivisionError), RunDirectory(tmp_path).locked():
        raise ZeroDivisionError
    with RunDirectory(tmp_path).locked():
        pass


def test_another_directory_is_free(tmp_path):
    with RunDirectory(tmp_path / "a").locked() as one, RunDirectory(tmp_path / "b").locked() as other:
        assert {one.path, other.path} == {tmp_path / "a", tmp_path / "b"}


@pytest.mark.parametrize("strange", ["notes.txt", "stages"])
def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path, strange):
    (tmp_path / strange).write_text("mine")
    with pytest.raises(RunDirectoryError, match=rf"holds other files \({strange}\) and no run of hubdistill; choose another --output"), RunDirectory(tmp_path).locked():
        pytest.fail("the directory is not ours")
    assert [entry.name for entry in tmp_path.iterdir()] == [strange]


@pytest.mark.parametrize("files", [(), (".gitignore",), ("plan.json", "notes.txt", "round_1")])
def test_a_new_a_hidden_or_our_own_directory_is_taken(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("x")
    with RunDirectory(tmp_path).locked():
        pass
    assert all((tmp_path / name).read_text() == "x" for name in files)


def test_a_run_that_died_before_it_wrote_anything_can_be_run_again(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), RunDirectory(tmp_path / "run").locked():
            raise KeyboardInterrupt


def test_a_file_in_the_path_is_an_error_with_the_fix(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(RunDirectoryError, match=r"cannot write .*: a part of the path is a file; choose another place with --output"), RunDirectory(path).locked():
            pytest.fail("there is no directory")


@pytest.mark.parametrize(("number", "text"), [(errno.EACCES, r"permission denied to user id \d+"), (errno.EROFS, "the file system is read-only"), (errno.ENOSPC, "the disk is full")])
def test_a_directory_that_cannot_be_written_is_an_error_with_the_fix(tmp_path, monkeypatch, number, text):
    def touch(self, *args, **kwargs):
        raise OSError(number, "x")

    monkeypatch.setattr("pathlib.Path.touch", touch)
    with pytest.raises(RunDirectoryError, match=f"cannot write .*: {text}; "), RunDirectory(tmp_path).locked():
        pytest.fail("the directory cannot be written")


def test_a_file_system_without_locks_is_an_error_with_the_fix(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunDirectoryError, match=r"cannot write .*\.lock: No locks available; choose another place with --output"), RunDirectory(tmp_path).locked():
        pytest.fail("there is no lock")


def test_a_finished_stage_is_skipped_and_its_result_read_back(stage):
    assert stage() == stage() == {"rows": 3}
    assert stage.worked == 1
    assert stage.told == [("sample", "started"), ("sample", "skipped")]


def test_equal_inputs_written_in_another_way_are_the_same(stage):
    stage({"a": (1, 2), "b": None})
    stage({"b": None, "a": [1, 2]})
    assert stage.worked == 1


@pytest.mark.parametrize("inputs", [("a", 2), ("b", 1), ("a",), ("a", "1"), None])
def test_changed_inputs_start_the_stage_again(stage, inputs):
    stage()
    stage(inputs)
    assert stage.told == [("sample", "started"), ("sample", "started")]
    stage(inputs)
    assert stage.worked == 2


def change(path):
    path.write_text("changed")


def remove(path):
    path.unlink()


def add(path):
    path.with_name("another").write_text("")


@pytest.mark.parametrize(("name", "how"), [("out/rows.txt", change), ("out/rows.txt", remove), ("adapter/weights.bin", change), ("adapter/weights.bin", remove), ("adapter/weights.bin", add)])
def test_a_changed_output_has_the_stage_redone(stage, name, how):
    stage()
    how(stage.path / name)
    stage()
    assert stage.told == [("sample", "started"), ("sample", "redone")]


def test_a_file_beside_the_outputs_is_nobody_s_business(stage):
    stage()
    (stage.path / "out" / "notes.txt").write_text("")
    stage()
    assert stage.worked == 1


def test_other_outputs_are_another_stage(stage):
    stage()
    stage.outputs = ["out/rows.txt"]
    stage()
    assert stage.worked == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"inputs": 1}', None])
def test_a_damaged_manifest_has_the_stage_done_again(stage, damage):
    stage()
    path = stage.path / "stages" / "sample.json"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert stage() == {"rows": 3}
    assert stage.worked == 2
    stage()
    assert stage.worked == 2


def test_work_that_raises_leaves_no_manifest_not_even_the_old_one(stage):
    stage()

    def fails():
        raise ZeroDivisionError

    directory = RunDirectory(stage.path)
    with pytest.raises(ZeroDivisionError):
        directory.stage("sample", "other inputs", stage.outputs, fails)
    assert "sample" not in directory.digests
    assert list((stage.path / "stages").iterdir()) == []
    stage()
    assert stage.worked == 2, "the first work's outputs may have been half replaced"


def test_a_stage_s_digest_is_of_its_outputs_whether_done_or_skipped(stage, tmp_path):
    stage()
    done = stage.digests
    stage()
    assert stage.digests == done
    stage(("other", "inputs"))
    assert stage.digests == done, "the same outputs from other inputs: what comes after need not be redone"
    (stage.path / "out" / "rows.txt").write_text("changed")
    found = RunDirectory(tmp_path)
    found.stage("sample", "x", stage.outputs, dict)
    assert found.digests.keys() == done.keys()
    assert found.digests != done


def test_a_change_runs_down_the_chain_of_stages_and_no_further(tmp_path):
    worked = []

    def write(name: str, text: str):
        worked.append(name)
        (tmp_path / f"{name}.txt").write_text(text)

    def run(first: str, second_sees: str):
        directory = RunDirectory(tmp_path)
        directory.stage("one", first, ["one.txt"], lambda: write("one", second_sees))
        directory.stage("two", [directory.digests["one"]], ["two.txt"], lambda: write("two", "2"))

    run("a", "x")
    assert worked == ["one", "two"]
    run("b", "x")
    assert worked == ["one", "two", "one"], "stage one wrote the same again"
    run("c", "y")
    assert worked == ["one", "two", "one", "one", "two"]


def test_work_may_return_nothing(tmp_path):
    for _ in range(2):
        assert RunDirectory(tmp_path).stage("quiet", [], [], lambda: None) == {}


def test_the_manifest_says_what_was_done(stage):
    stage()
    manifest = json.loads((stage.path / "stages" / "sample.json").read_text())
    assert manifest["stage"] == "sample"
    assert manifest["inputs"] == digest_of(["a", 1])
    assert manifest["result"] == {"rows": 3}
    assert manifest["outputs"].keys() == {"out/rows.txt", "adapter"}
    assert all(len(digest) == 64 for digest in manifest["outputs"].values())


def test_seconds_are_those_of_this_run_s_stages_in_their_order_when_skipped_too(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def takes(duration: float):
        clock[0] += duration

    def run(durations):
        directory = RunDirectory(tmp_path)
        assert directory.seconds() == {}
        for name, duration in durations.items():
            directory.stage(name, [], [], lambda duration=duration: takes(duration))
        return list(directory.seconds().items())

    assert run({"z": 1.5, "dropped": 9.0, "a": 0.254}) == [("z", 1.5), ("dropped", 9.0), ("a", 0.25)]
    assert run({"z": 100.0, "m": 60.0, "a": 100.0}) == [("z", 1.5), ("m", 60.0), ("a", 0.25)], "z and a are skipped; dropped is of a run before"


def test_a_folder_with_a_recipe_of_the_user_s_own_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("target: {kind: text}\n")
    with pytest.raises(RunDirectoryError, match="choose another --output"), RunDirectory(tmp_path).locked():
        pass
    assert (tmp_path / "recipe.yaml").read_text() == "target: {kind: text}\n"


def test_work_that_does_not_write_what_it_promised_is_an_error_and_done_again(tmp_path):
    with RunDirectory(tmp_path / "run").locked() as directory:
        with pytest.raises(RunDirectoryError, match=r"did not write out\.txt"):
            directory.stage("a", 1, ["out.txt"], lambda: None)
        assert directory.stage("a", 1, ["out.txt"], lambda: (tmp_path / "run" / "out.txt").write_text("x") and {"n": 1}) == {"n": 1}
