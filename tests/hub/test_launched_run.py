"""Launched jobs that really run: on machines that start with nothing, one of them killed in the middle. And Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests import tiny
from tests.command import ROOT, START, hubdistill
from tests.hub.conftest import ALICE
from tests.hub.test_publish import put, tree
from tests.hub_server import HubServer, Repo

pytestmark = pytest.mark.slow
MIRROR = "alice/tiny-run"
LAUNCH = ("--on", "hf-jobs", "--flavor", "a100-large", "--max-usd", "20")


class Machines:
    """Carries out each job in a new folder with nothing of the others; the first is killed once `until` is in the mirror."""

    def __init__(self, hub, folder, until):
        self.hub, self.folder, self.until, self.count = hub, folder, until, 0

    def __call__(self, spec, say):
        self.count += 1
        home = self.folder / f"machine-{self.count}"
        home.mkdir()
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "HUBDISTILL_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        assert spec["command"][0] == "hubdistill"
        process = subprocess.Popen([sys.executable, "-c", START, *spec["command"][1:]], cwd=home, env=env | spec["environment"] | spec["secrets"],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        if self.count == 1:
            threading.Thread(target=self._kill, args=(process,), daemon=True).start()
        for line in process.stdout:
            say(line.rstrip("\n"))
        code = process.wait()
        return code if code >= 0 else 128 - code

    def _kill(self, process):
        while process.poll() is None and self.until not in tree(self.hub, MIRROR):
            time.sleep(0.02)
        process.kill()


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def recipe(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    path = tiny.write_recipe(folder)
    for name in ("teacher", "student"):
        put(hub, f"org/{name}", {file.name: file.read_bytes() for file in (folder / name).iterdir()} | {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    put(hub, "org/lines", {"train.jsonl": (folder / "prompts.jsonl").read_bytes()})
    lines = hub.state.repos.pop(("model", "org/lines"))
    hub.state.repos[("dataset", "org/data")] = Repo("org/data", "dataset", commits=lines.commits, refs=lines.refs)
    text = path.read_text().replace("./teacher", "org/teacher").replace("./student", "org/student").replace("prompts.jsonl", "org/data")
    path.write_text(text + "publish: {repo: org/adapter}\n")
    return path


@pytest.fixture(scope="module")
def runs(hub, recipe, tmp_path_factory):
    """An uninterrupted run on this machine; a launched one that is killed after its first round; the same launched again."""
    folder = tmp_path_factory.mktemp("runs")
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": ALICE}
    whole = hubdistill("run", recipe, "--no-push", "-o", folder / "whole", folder=folder, **env)
    assert whole.code == 0, whole.err
    hub.state.job_runner = Machines(hub, folder, "stages/round_1-train.json")
    killed = hubdistill("launch", recipe, *LAUNCH, folder=folder, **env)
    between = set(tree(hub, MIRROR))
    resumed = hubdistill("launch", recipe, *LAUNCH, folder=folder, **env)
    return folder, killed, between, resumed


def test_the_killed_job_gives_its_exit_code_and_leaves_its_stages(runs):
    _, killed, between, _ = runs
    assert killed.code == 137, killed.err
    assert "ended as ERROR (Job failed with exit code: 137." in killed.err
    assert "round_1-student" in killed.err  # the log of the job
    assert {"stages/prompts.json", "stages/warmup.json", "stages/round_1-train.json"} <= between
    assert "stages/evaluate.json" not in between


def test_the_same_command_goes_on_on_another_machine_and_ends_as_if_nothing_had_happened(hub, runs):
    folder, _, between, resumed = runs
    assert resumed.code == 0, resumed.err
    assert "finished stages fetched from alice/tiny-run" in resumed.err
    for stage in ("prompts", "round_1-teacher", "warmup", "round_1-student", "round_1-train"):
        assert f"{stage} kept from before" in resumed.err
    assert "evaluate kept from before" not in resumed.err
    whole, other = folder / "whole", folder / "machine-2" / "runs" / "tiny-run"
    stages = sorted(path.name for path in (whole / "stages").iterdir())
    assert stages == sorted(path.name for path in (other / "stages").iterdir())
    for name in stages:
        one, two = (json.loads((run / "stages" / name).read_text()) for run in (whole, other))
        assert one["outputs"] == two["outputs"], name
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.suffix in (".parquet", ".safetensors") and "hub" not in path.parts]
    assert len(files) > 8
    assert all((other / name).read_bytes() == (whole / name).read_bytes() for name in files)
    weights = tree(hub, "org/adapter")["adapter_model.safetensors"]
    assert hub.state.lfs_path(weights.sha256).read_bytes() == (whole / "round_2" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert len(between) < len(tree(hub, MIRROR))


def test_the_token_is_nowhere_but_in_the_secrets_of_two_jobs(hub, runs):
    folder, killed, _, resumed = runs
    secret, started = ALICE.encode(), 0
    for place, body in hub.state.bodies:
        if place == "POST /api/jobs/alice":
            spec = json.loads(body)
            assert spec.pop("secrets") == {"HF_TOKEN": ALICE}
            body, started = json.dumps(spec).encode(), started + 1
        assert secret not in body, place
    assert started == 2
    assert ALICE not in killed.out + killed.err + resumed.out + resumed.err + json.dumps(hub.log) + "".join(line for job in hub.state.jobs.values() for line in job["logs"])
    files = [path for root in (folder, hub.state.root) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert [path for path in files if secret in path.read_bytes()] == []
    places = [str(folder).encode(), str(ROOT).encode()]
    for name, entry in tree(hub, MIRROR).items():
        content = entry.data if entry.data is not None else hub.state.lfs_path(entry.sha256).read_bytes()
        assert not [place for place in (secret, *places) if place in content], name


def test_ctrl_c_leaves_the_job_and_says_how_to_follow_and_stop_it(hub, recipe, tmp_path):
    go_on = threading.Event()
    hub.state.job_runner = lambda spec, say: (say("working"), go_on.wait(60), 0)[-1]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub.url, "HF_TOKEN": ALICE}
    # As in a terminal: what a script starts in the background ignores Ctrl-C, and so does all that it starts.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", heard + START, "launch", str(recipe), *LAUNCH, "--mirror", "alice/other"]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line == "working\n":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    (job,) = [job for job in hub.state.jobs.values() if job["spec"]["command"][2] == "alice/other"]
    stage = job["stage"]
    go_on.set()
    assert process.returncode == 130, err
    assert stage == "RUNNING"
    assert f"The job goes on. Follow it: hf jobs logs --follow alice/{job['id']}\nStop it: hf jobs cancel alice/{job['id']}" in err
    assert "To go on: hubdistill launch" not in err  # it would be a second job
    assert "Done" not in out
