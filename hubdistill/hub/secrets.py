"""Finding access tokens and keys in text, so that none is published or logged. A finding never holds the secret."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from hubdistill.errors import InputError

PATTERNS = {
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z]{30,}"),
    "Hugging Face OAuth token": re.compile(r"\bhf_oauth_[\w.-]{20,}"),
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "API key (sk-)": re.compile(r"(?<![\w-])sk-[A-Za-z0-9_-]{20,}"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{22,}"),
    "GitLab token": re.compile(r"\bglpat-[\w-]{20,}"),
    "Slack token": re.compile(r"\bxox[abprs]-[\w-]{10,}"),
    "Google API key": re.compile(r"\bAIza[\w-]{35}"),
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}
SHORTEST_TOKEN = 8  # a shorter value would match ordinary words


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A secret at `line` (from 1) of `file`; `kind` says what it looks like."""

    file: str
    line: int
    kind: str


def find_secrets(content: str, *, file: str, token: str | None = None) -> list[Finding]:
    """Every line of `content` that holds something like a key, or the value of `token`."""
    found = []
    for line, words in enumerate(content.splitlines(), 1):
        kinds = [kind for kind, pattern in PATTERNS.items() if pattern.search(words)]
        if token and len(token) >= SHORTEST_TOKEN and token in words:
            kinds.insert(0, "the current Hub token")
        found += [Finding(file=file, line=line, kind=kind) for kind in kinds[:1]]
    return found


def refuse_secrets(texts: dict[str, str], *, token: str | None = None) -> None:
    """Raise InputError naming file and line of every secret in `texts` (name in the repository -> content)."""
    found = [finding for name, content in texts.items() for finding in find_secrets(content, file=name, token=token)]
    if found:
        places = "\n".join(f"{f.file}:{f.line}: looks like a secret ({f.kind})" for f in found)
        raise InputError(
            f"{places}\nNothing was published. Remove it from what the run wrote, revoke it if it was real, and publish again."
        )


def readable(path: Path) -> str:
    """The text of a staged file to scan: all of a text file, the JSON header of a safetensors file."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return file.read(min(size, 100 << 20)).decode("utf-8", "replace")
    return path.read_text(encoding="utf-8", errors="replace")


def redact(message: str, token: str | None) -> str:
    """`message` with the token and everything that looks like a key replaced by ***."""
    if token and len(token) >= SHORTEST_TOKEN:
        message = message.replace(token, "***")
    for pattern in PATTERNS.values():
        message = pattern.sub("***", message)
    return message


class RedactingFilter(logging.Filter):
    """A filter for log handlers: keys and the current Hub token are printed as ***."""

    def __init__(self, token: str | None):
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), self._token), None
        return True
