"""Every error a user can meet. Each is also a standard-library type, and each message ends with the fix."""

from __future__ import annotations

from collections.abc import Sequence


class HubdistillError(Exception):
    """Base of all errors that hubdistill raises on purpose; the CLI prints the message and exits with `exit_code`."""

    exit_code = 2


class RecipeError(HubdistillError, ValueError):
    """A recipe that cannot be used. `problems` holds one line each (`file:line: key: what; the fix`), all at once."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):  # the default would hand the joined message to __init__ as if it were the problems
        return type(self), (self.problems,)


class InputError(HubdistillError, ValueError):
    """A dataset row, model repository, adapter or argument that was read and cannot be used."""


class MissingError(HubdistillError, FileNotFoundError):
    """A file, folder, package, repository or revision that is named but is not there."""

    def __str__(self) -> str:  # OSError's own would print "[Errno ...]" forms
        return str(self.args[0]) if self.args else ""


class HubError(HubdistillError, ConnectionError):
    """The Hub refused, failed, or could not be reached; nothing local is lost."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class RunDirectoryError(HubdistillError, OSError):
    """The run directory is in use, read-only, full, or not ours."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DoesNotFit(HubdistillError, MemoryError):
    """A run takes more memory than the device has; the message holds the cheapest change with which it fits."""

    exit_code = 3


class TrainingError(HubdistillError, RuntimeError):
    """Training met a NaN, an Inf, or nothing to train on; the last good checkpoint stays."""

    exit_code = 1


class SamplingError(HubdistillError, RuntimeError):
    """The engine that samples could not start, died or ran out of memory; what was sampled stays."""

    exit_code = 1


class SandboxError(HubdistillError, RuntimeError):
    """This machine cannot keep a model's programs from its files and its network, so none is run."""


class GateError(HubdistillError, RuntimeError):
    """The distilled student is worse than what its training began with; nothing was pushed, both adapters stay."""

    exit_code = 1


class JobError(HubdistillError, RuntimeError):
    """A job on other machines did not complete, or is no longer followed; `exit_code` is its own where that is known."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


class MissingPackageError(HubdistillError, ImportError):
    """An optional package is needed and is not installed; the message holds the pip command."""
