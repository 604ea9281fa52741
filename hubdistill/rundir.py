"""The run directory: one run at a time in it, and stages whose work is kept until what they depend on changes."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from hubdistill.errors import RunDirectoryError
from hubdistill.estimate.meter import measured
from hubdistill.files import digest_of, file_sha256, folder_sha256, write_json, write_problem
from hubdistill.processes import ALONE, Processes

MARKER, MANIFESTS, LOCK = "plan.json", "stages", ".lock"


@dataclass
class RunDirectory:
    """A folder of one run. `said` tells the user what each stage does: (stage name, "skipped" | "started" | "redone").
    Of the `processes` of a run the first holds it, and says what is done."""

    path: Path
    said: Callable[[str, str], None] = lambda name, what: None
    digests: dict[str, str] = field(default_factory=dict)  # stage -> digest of its outputs
    processes: Processes = ALONE
    kept: Callable[[str], None] = lambda name: None  # told of every stage that is finished, now or before; the mirror listens

    @contextmanager
    def locked(self) -> Iterator[RunDirectory]:
        """Hold the directory for this run. Raises RunDirectoryError when another run has it, or it is not ours."""
        if not self.processes.first:
            yield self
            return
        self._claim()
        with (self.path / LOCK).open("a+b", buffering=0) as lock:
            self._take(lock)
            yield self

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            strange = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
            if strange and not (self.path / MARKER).is_file():
                raise RunDirectoryError(f"{self.path} holds other files ({sorted(strange)[0]}) and no run of hubdistill; choose another --output")
            (self.path / LOCK).touch()
        except RunDirectoryError:
            raise
        except OSError as problem:
            raise write_problem(problem, self.path) from problem

    def _take(self, lock: FileIO) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        except BlockingIOError as problem:
            lock.seek(0)
            owner = lock.read().decode().strip() or "unknown"
            raise RunDirectoryError(f"{self.path} is in use by process {owner}; wait for it, or choose another --output") from problem
        except OSError as problem:  # a disk that is full, a file system without locks
            raise write_problem(problem, self.path / LOCK) from problem

    def stage(self, name: str, inputs: Any, outputs: Sequence[str], work: Callable[[], dict[str, Any] | None], *, together: bool = False) -> dict[str, Any]:
        """Do a stage's work unless it is done: same inputs, and outputs that are still what it wrote.

        `inputs` is anything JSON-able; `outputs` are files or folders relative to the run directory. All processes call
        this; they do the work `together`, or the first does it while the others wait. Returns what `work` returned in
        the first, now or when it ran.
        """
        first, wanted = self.processes.first, digest_of(inputs)
        done = self.processes.share(self._kept(name, wanted, outputs) if first else None)
        if done is None:
            started = time.monotonic()
            with measured() as peaks:
                result = (work() or {}) if first or together else {}
            self.processes.wait()
            cost = {"seconds": round(time.monotonic() - started, 2), "memory": peaks.as_dict()}
            done = self.processes.share(self._finish(name, wanted, outputs, result, cost) if first else None)
        assert done is not None, "the first process has finished the stage"
        self.digests[name] = digest_of(done["outputs"])
        if first:
            self.kept(name)
        return done["result"]

    def _kept(self, name: str, wanted: str, outputs: Sequence[str]) -> dict[str, Any] | None:
        """The manifest of a stage that is done; None where it has to be done, and it is said which of both."""
        before = self._manifest(name)
        same = before is not None and before["inputs"] == wanted
        if before and same and before["outputs"] == self._outputs(outputs):
            self.said(name, "skipped")
            return before
        self.said(name, "redone" if same else "started")
        self._manifest_path(name).unlink(missing_ok=True)
        return None

    def _finish(self, name: str, wanted: str, outputs: Sequence[str], result: dict[str, Any], cost: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest of a stage whose work is done."""
        found = self._outputs(outputs)
        if missing := [output for output, digest in found.items() if digest is None]:
            raise RunDirectoryError(f"the stage {name} did not write {missing[0]} in {self.path}; run the command again, and report it if it stays so")
        manifest = {"stage": name, "inputs": wanted, "outputs": found, "result": result, **cost}
        write_json(self._manifest_path(name), manifest)
        return manifest

    def intact(self, name: str) -> dict[str, Any] | None:
        """The manifest of a finished stage whose outputs are still what it wrote; None where there is none."""
        found = self._manifest(name)
        return found if found and found["outputs"] == self._outputs(list(found["outputs"])) else None

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds that each stage of this run took, now or when it was done, in their order."""
        return {name: row["seconds"] for name in self.digests if (row := self._manifest(name))}

    def memory(self) -> dict[str, dict[str, int]]:
        """Peaks of memory, in bytes, that each stage of this run had in the first process (estimate/meter.py)."""
        return {name: row.get("memory", {}) for name in self.digests if (row := self._manifest(name))}

    def _manifest_path(self, name: str) -> Path:
        return self.path / MANIFESTS / f"{name}.json"

    def _manifest(self, name: str) -> dict[str, Any] | None:
        """A stage's manifest, or None when it is not there or damaged (the stage is then done again)."""
        path = self._manifest_path(name)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        keys = ("stage", "inputs", "outputs", "result", "seconds")
        return found if isinstance(found, dict) and all(key in found for key in keys) else None

    def _outputs(self, outputs: Sequence[str]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for name in outputs:
            path = self.path / name
            found[name] = folder_sha256(path) if path.is_dir() else file_sha256(path) if path.is_file() else None
        return found
