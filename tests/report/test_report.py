"""The report of a run: whole and unfinished, nothing in it but the run's own numbers, nothing loaded, every text escaped."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from hubdistill.errors import InputError, MissingError
from hubdistill.report.curves import MOST, Logged
from hubdistill.report.gathered import gather
from hubdistill.report.page import report, write_report
from tests import tiny
from tests.command import called, here

HOSTILE = "<script>alert(1)</script><img src=https://example.org/x>\"'&"
VOID = {"meta", "link", "img", "br", "hr", "input"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """A page taken apart: what it would load, its text, its plots; raises where tags are not closed in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href", "data", "action", "srcset", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("h2", "figcaption"):
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run through the command line, whose prompts and models have hostile names."""
    folder = tmp_path_factory.mktemp("reported")
    tiny.write_recipe(folder, teacher={"model": "./te<script>acher"}, prompts={"dataset": "prompts.jsonl", "response_column": "answer", "heldout": 6, "max_tokens": 64})
    (folder / "teacher").rename(folder / "te<script>acher")
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    more = [{**row, "prompt": f"{row['prompt']} {'very ' * (number % 5)}{HOSTILE}"} for number, row in enumerate(rows)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    done = here("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder / "runs" / "tiny"


def test_a_finished_run_is_whole_and_loads_nothing(finished: Path):
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert {"Results", "Results by the length of the prompt", "Training", "Examples", "Time and memory", "The recipe, and how to do it again"} <= set(page.headings)
    assert {"Loss on each side", "Negative log-likelihood of the teacher responses", "Beta, the weight of the student's side", "Alpha, mean over responses",
            "Responses whose alpha is at a bound", "Gap that alpha is chosen by", "Response length", "Warm-up: loss"} <= set(page.headings)  # fmt: skip
    assert page.loads == []
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "default-src 'none'" in text
    assert page.text.count("Not finished") == 0


def test_what_others_wrote_is_text(finished: Path):
    page = Page((finished / "report.html").read_text())
    assert page.text.count(HOSTILE) >= 6  # each held-out prompt
    assert "te<script>acher" in page.text


def test_the_numbers_are_those_that_were_measured(finished: Path):
    page = Page((finished / "report.html").read_text())
    rows = {(row["metric"], row["on"], row["subject"]): row for row in json.loads((finished / "measurements.json").read_text())}
    for subject in ("student", "warm-up", "distilled"):
        assert f"{rows['kl', 'teacher responses', subject]['value']:.3f}" in page.words
    assert f"{rows['kl', 'teacher responses', 'distilled']['differences'][-1]['value']:+.3f} too few prompts to tell" in page.words
    record = json.loads((finished / "run.json").read_text())
    assert [row["stage"] for row in record["time"]] == ["sampling", "warm-up", "training", "evaluation", "together"]
    assert record["time"][2]["measured"] == pytest.approx(record["seconds"]["round_1-train"] + record["seconds"]["round_2-train"])
    assert record["time"][-1]["predicted"] == pytest.approx(sum(row["predicted"] for row in record["time"][:-1]))
    assert {row["stage"] for row in record["memory"]} | {"together"} <= set(page.words)


def test_a_run_that_was_cut_off_shows_what_there_is_and_nothing_of_an_earlier_recipe(finished: Path, tmp_path: Path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "run.json").unlink()
    for name in ("round_2-student", "round_2-train", "evaluate"):
        (run / "stages" / f"{name}.json").unlink()
    found = gather(run)
    assert list(found.stages) == ["prompts", "round_1-teacher", "warmup", "round_1-student", "round_1-train"]
    assert {row["round"] for row in found.rounds} == {1}
    page = Page(report(found))
    assert "Not finished: the last stage that is done is round_1-train." in page.text
    assert "Results" not in page.headings  # they were measured on what is to be trained again
    assert "Examples" not in page.headings
    assert "Training" in page.headings
    (run / "stages" / "warmup.json").unlink()  # is done again, so that the round's numbers are of an earlier one
    found = gather(run)
    assert (list(found.stages), found.rounds, found.warmup) == (["prompts", "round_1-teacher"], [], [])
    (run / "stages" / "prompts.json").unlink()
    assert "no stage is done" in Page(report(gather(run))).text


def test_a_round_that_goes_on_shows_its_steps(finished: Path, tmp_path: Path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "run.json").unlink()
    (run / "stages" / "round_2-train.json").unlink()
    assert {row["round"] for row in gather(run).rounds} == {1}  # nothing says that round 2 has begun
    (run / "round_2" / "checkpoints").mkdir()
    (run / "round_2" / "checkpoints" / "inputs").write_text("x")
    assert {row["round"] for row in gather(run).rounds} == {1}  # what is there is older than its beginning
    (run / "round_2" / "metrics.jsonl").touch()
    assert {row["round"] for row in gather(run).rounds} == {1, 2}


def test_where_there_is_no_run_it_is_said(finished: Path, tmp_path: Path, monkeypatch, capsys):
    code, _, said = called(monkeypatch, capsys, "report", tmp_path / "nowhere")
    assert code == 2
    assert "there is no run at" in said
    with pytest.raises(MissingError, match=r"plan\.json is missing"):
        write_report(tmp_path)
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "stages" / "prompts.json").write_text("{")
    with pytest.raises(InputError, match=r"prompts\.json is damaged"):
        write_report(run)
    code, out, _ = called(monkeypatch, capsys, "report", finished)
    assert (code, out.strip()) == (0, str(finished / "report.html"))


def test_a_long_training_is_thinned_and_its_rounds_stay_in_their_place():
    rows = [{"round": 1 + step // 1500, "loss": float(step)} for step in range(3000)]
    logged = Logged(rows)
    assert len(logged.rows) <= MOST
    assert logged.marks == {1500.5: "round 2"}
    assert all(abs(row["loss"] + 1 - step) <= 1 for row, step in zip(logged.rows, logged.steps, strict=True))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_scrolling_sideways(finished: Path, tmp_path: Path, width: int):
    """In a frame of that width; the page around it writes what it sees into its text."""
    shutil.copy(finished / "report.html", tmp_path / "report.html")
    (tmp_path / "index.html").write_text(
        f"<p id=seen></p><iframe id=f src=report.html style='width:{width}px;height:800px;border:0'></iframe><script>f.onload = () => {{ const d = f.contentDocument;"
        "seen.textContent = JSON.stringify([d.documentElement.scrollWidth, d.querySelectorAll('figure svg').length, getComputedStyle(d.body).maxWidth]) }</script>"
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    server.RequestHandlerClass.log_message = lambda *_: None
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        done = subprocess.run([CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"http://127.0.0.1:{server.server_port}/index.html"],
                              capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    finally:
        server.shutdown()
    scrolls, plots, most = json.loads(done.stdout.partition("<p id=\"seen\">")[2].partition("</p>")[0])
    assert scrolls <= width
    assert plots > 10
    assert most == "1216px"  # the style is taken: 76 rem
