"""What is kept between commands is what was found, and a cache that is of no use stops nothing."""

from __future__ import annotations

import pytest

from hubdistill.models import kept as module
from hubdistill.models.kept import kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path))
    return tmp_path


def test_a_value_is_found_once_for_a_key_and_this_code(cache, monkeypatch):
    values = iter([[1, {"a": None}], 2, 3])
    assert kept(["x", ("y",)], lambda: next(values)) == [1, {"a": None}]
    assert kept(["x", ("y",)], lambda: next(values)) == [1, {"a": None}]
    assert kept(["x", ("z",)], lambda: next(values)) == 2
    monkeypatch.setattr(module, "_code", lambda: ["another version"])
    assert kept(["x", ("y",)], lambda: next(values)) == 3


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_a_cache_that_is_damaged_or_no_folder_stops_nothing(tmp_path, monkeypatch, content):
    root = tmp_path / "cache"
    if content is None:
        root.write_text("a file")
    else:
        root.mkdir()
        (root / "forecasts.sqlite").write_bytes(content)
    monkeypatch.setenv("HUBDISTILL_CACHE", str(root))
    assert [kept("key", lambda: 5) for _ in range(2)] == [5, 5]


def test_what_was_kept_is_forecast_without_running_a_model(cache, tmp_path):
    import json
    import subprocess
    import sys

    from tests import tiny
    from tests.command import ROOT

    recipe = tiny.write_recipe(tmp_path / "recipe")
    watch = ("import json, sys\nfrom hubdistill.plan import make_plan\nfrom hubdistill.recipe import load_recipe\nfrom hubdistill.estimate.forecast import forecast\n"
             "from hubdistill.estimate.machines import gpu_named\nfrom hubdistill.estimate.memory import memory_of\nplan = make_plan(load_recipe(sys.argv[1]))\n"
             "print(json.dumps([[stage.total for stage in memory_of(plan, gpu_named('T4'))], 'hubdistill.estimate.meta' in sys.modules]))")  # fmt: skip
    first, second = (json.loads(subprocess.run([sys.executable, "-c", watch, str(recipe)], capture_output=True, text=True, check=True, cwd=ROOT).stdout) for _ in range(2))
    assert first == [second[0], True]
    assert second[1] is False


def test_a_second_plan_imports_neither_torch_nor_transformers(cache, tmp_path):
    """They take seconds to import, which is most of what a plan takes then."""
    import subprocess
    import sys

    from tests import tiny
    from tests.command import ROOT

    recipe = tiny.write_recipe(tmp_path / "recipe")
    watch = ("import atexit, sys\nfrom hubdistill.cli import main\n"
             "atexit.register(lambda: print(sorted({'torch', 'transformers'} & sys.modules.keys()), file=sys.stderr))\nmain()")  # fmt: skip
    command = [sys.executable, "-c", watch, "plan", str(recipe), "train.device=cpu"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT) for _ in range(2))
    assert (first.stderr, second.stderr) == ("['torch', 'transformers']\n", "[]\n")
    assert first.stdout == second.stdout
