"""Prompts on the Hub: `datasets` against the test server, each case in a process of its own with a fresh cache."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import HubServer

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Question number {i}?"},
            {"role": "assistant", "content": f"Answer {i}."},
        ],
        "id": i,
    }
    for i in range(60)
]
CARD = """---
license: apache-2.0
dataset_info:
  features:
  - {name: messages, list: [{name: role, dtype: string}, {name: content, dtype: string}]}
  - {name: id, dtype: int64}
  splits:
  - {name: train, num_examples: 60, num_bytes: 5000}
configs:
- config_name: default
  data_files: [{split: train, path: "data/train-*"}]
---
# Chats
"""

# What each child process runs: the calls a run makes, their outcome as JSON on the last line.
CHILD = """
import json, sys
from pathlib import Path
from hubdistill.errors import HubdistillError
from hubdistill.pairs.prompt_sources import check_source
from hubdistill.pairs.prompts import Encoded, load_prompts
from hubdistill.specs import PromptsSpec
out = []
for ask, keys in json.loads(sys.argv[1]):
    spec = PromptsSpec(**keys)
    try:
        if ask.startswith("check"):
            facts = check_source(spec, Path("."), offline=ask == "check offline")
            out.append({"commit": facts.commit, "columns": facts.columns, "rows": facts.rows, "license": facts.license})
        else:
            train, held, report = load_prompts(spec, Path("."), lambda prompt: Encoded([1]))
            out.append({"train": [p.id for p in train], "held": [p.id for p in held], "response": train[0].response, "read": report.read})
    except HubdistillError as error:
        out.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(out))
"""


def ask(url: str, home: Path, *calls: tuple[str, dict[str, Any]], **env: str) -> list[dict[str, Any]]:
    child_env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    child_env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", **env}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(calls)],
        env=child_env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=16)
    return sink.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[HubServer, dict[str, str]]]:
    from huggingface_hub import CommitOperationAdd, HfApi

    with HubServer() as server:
        api = HfApi(server.url, token="hf_alice_write")
        contents = {
            "chats": {
                "README.md": CARD.encode(),
                "data/train-00000-of-00002.parquet": parquet(ROWS[:25]),
                "data/train-00001-of-00002.parquet": parquet(ROWS[25:]),
            },
            "lines": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in reversed(ROWS)).encode()},
            "broken": {"train.jsonl": b'{"prompt": "a"}\n{"prompt": \n'},
            "empty": {"notes.md": b"nothing here"},
            "script": {"script.py": b"raise SystemExit", "README.md": b"# none"},
            "gated": {"train.jsonl": b'{"prompt": "a"}\n'},
            "private": {"train.jsonl": b'{"prompt": "a"}\n'},
        }
        commits = {}
        for name, files in contents.items():
            api.create_repo(f"alice/{name}", repo_type="dataset", private=name == "private")
            added = [CommitOperationAdd(path, data) for path, data in files.items()]
            commits[name] = api.create_commit(f"alice/{name}", added, commit_message="data", repo_type="dataset").oid
        api.update_repo_settings("alice/gated", repo_type="dataset", gated="manual")
        # The branch moves on after the commit that the tests pin.
        api.upload_file(
            path_or_fileobj=b'{"messages": [{"role": "user", "content": "late"}], "id": 99}\n',
            path_in_repo="train2.jsonl",
            repo_id="alice/lines",
            repo_type="dataset",
        )
        yield server, commits


CHATS = {"dataset": "alice/chats", "column": "messages", "heldout": 10, "count": 30}


def test_streamed_downloaded_and_other_files_give_the_same_prompts(hub: Any, tmp_path: Path) -> None:
    server, commits = hub
    lines = CHATS | {"dataset": "alice/lines", "revision": commits["lines"]}
    calls = [(key, CHATS | {"streaming": streaming}) for key in ("load",) for streaming in (False, True)]
    plain, streamed, other, local = ask(
        server.url, tmp_path, *calls, ("load", lines), ("load", lines | {"streaming": True})
    )
    assert (len(plain["train"]), len(plain["held"]), plain["read"]) == (30, 10, 60)
    assert plain == streamed == other == local
    assert plain["response"].startswith("Answer ")


def test_check_resolves_the_commit_and_reads_the_card_but_no_rows(hub: Any, tmp_path: Path) -> None:
    server, commits = hub
    server.log.clear()
    found, moved = ask(server.url, tmp_path, ("check", CHATS), ("check", CHATS | {"dataset": "alice/lines"}))
    assert found == {"commit": commits["chats"], "columns": ["messages", "id"], "rows": 60, "license": "apache-2.0"}
    assert moved["commit"] not in (commits["lines"], commits["chats"])
    assert not [line for line in server.log if "resolve" in line["path"]]


def test_check_offline_asks_nobody(hub: Any, tmp_path: Path) -> None:
    server, commits = hub
    server.log.clear()
    pinned = CHATS | {"revision": commits["chats"]}
    found = ask(server.url, tmp_path, ("check offline", CHATS), ("check offline", pinned))
    assert [facts["commit"] for facts in found] == ["not resolved (offline)", commits["chats"]]
    assert server.log == []


def test_a_cached_dataset_loads_offline_and_another_says_so(hub: Any, tmp_path: Path) -> None:
    server, commits = hub
    pinned = CHATS | {"revision": commits["chats"]}
    online = ask(server.url, tmp_path, ("load", pinned))
    offline = ask(
        server.url, tmp_path, ("load", pinned), ("load", CHATS | {"dataset": "alice/lines"}), HF_HUB_OFFLINE="1"
    )
    assert offline[0] == online[0]
    assert offline[1]["error"] == "HubError"
    assert "alice/lines: not in the cache" in offline[1]["message"]


def test_what_cannot_be_used_is_a_typed_error_with_the_fix(hub: Any, tmp_path: Path) -> None:
    server, _ = hub
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("check", {"dataset": "alice/none"}, "MissingError", "does not exist, or is private"),
        ("check", {"dataset": "alice/private"}, "MissingError", "does not exist, or is private"),
        ("check", {"dataset": "a//b c"}, "InputError", "not a valid Hub name"),
        ("check", {"dataset": "alice/gated"}, "HubError", "is gated: accept its terms"),
        ("check", CHATS | {"revision": "v9"}, "MissingError", "no revision 'v9'"),
        ("check", CHATS | {"column": "message"}, "InputError", "no column 'message'; did you mean 'messages'?"),
        ("check", CHATS | {"split": "test"}, "InputError", "no split 'test'; set `prompts.split` to one of: train"),
        ("load", CHATS | {"split": "test"}, "InputError", "Unknown split \"test\". Should be one of ['train']"),
        ("load", CHATS | {"split": "test", "streaming": True}, "InputError", "set `prompts.split`"),
        ("load", CHATS | {"config": "big"}, "InputError", "BuilderConfig 'big' not found"),
        (
            "load",
            CHATS | {"column": "id"},
            "InputError",
            "dataset alice/chats (train):row 1 (column 'id'): holds a number",
        ),
        ("load", CHATS | {"column": "text"}, "InputError", "dataset alice/chats (train):row 1: no column 'text'"),
        ("load", {"dataset": "alice/broken"}, "InputError", "dataset alice/broken: its files cannot be read"),
        (
            "load",
            {"dataset": "alice/broken", "streaming": True},
            "InputError",
            "dataset alice/broken: its files cannot be read",
        ),
        ("load", {"dataset": "alice/empty"}, "InputError", "its files cannot be read"),
        ("load", {"dataset": "alice/script"}, "InputError", "its files cannot be read"),
        ("load", {"dataset": "alice/gated"}, "HubError", "is gated: accept its terms"),
    ]
    found = ask(server.url, tmp_path, *((step, keys) for step, keys, _, _ in cases))
    for (step, keys, kind, says), outcome in zip(cases, found, strict=True):
        assert outcome.get("error") == kind, (step, keys, outcome)
        assert says in outcome["message"], (step, keys, outcome)
        assert "; " in outcome["message"] or ": accept" in outcome["message"]


def test_a_hub_that_is_down_or_failing_is_a_typed_error(hub: Any, tmp_path: Path) -> None:
    server, _ = hub
    (refused,) = ask("http://127.0.0.1:9", tmp_path, ("check", CHATS))
    assert refused["error"] == "HubError"
    assert "cannot be reached" in refused["message"]
    server.state.faults.append({"method": "GET", "path": "/api/datasets/alice/chats", "status": 503, "times": 20})
    try:
        (failing,) = ask(server.url, tmp_path, ("check", CHATS))
    finally:
        server.state.faults.clear()
    assert failing["error"] == "HubError"
    assert "the Hub answered 503" in failing["message"]
