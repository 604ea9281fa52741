"""`hubdistill launch`, against a local Hub: what is sent, what never is, what it costs at most, and how it ends."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.hub.conftest import ALICE, BOB, READER, ROOT
from tests.hub.test_publish import put, tree
from tests.hub_server import Repo

HOURLY = 0.0417 * 60  # of the test Hub's a100-large
MIRROR = "alice/tiny-run"


@pytest.fixture(scope="module")
def recipe(service, tmp_path_factory):
    """A recipe whose models and data are on the Hub."""
    folder = tmp_path_factory.mktemp("recipe")
    path = tiny.write_recipe(folder)
    for name, model in (("teacher", "teacher"), ("student", "student"), ("gated", "teacher")):
        files = {file.name: file.read_bytes() for file in (folder / model).iterdir()}
        put(service.hub, f"org/{name}", {**files, "README.md": b"---\nlicense: apache-2.0\n---\n"})
    service.hub.state.repos[("model", "org/gated")].gated = "manual"
    put(service.hub, "org/lines", {"train.jsonl": (folder / "prompts.jsonl").read_bytes()})
    lines = service.hub.state.repos.pop(("model", "org/lines"))
    for name in ("org/data", "org/rows"):
        service.hub.state.repos[("dataset", name)] = Repo(name, "dataset", commits=lines.commits, refs=lines.refs)
    service.hub.state.repos[("dataset", "org/rows")].gated = "manual"
    text = path.read_text().replace("./teacher", "org/teacher").replace("./student", "org/student").replace("prompts.jsonl", "org/data")
    path.write_text(text + "publish: {repo: org/adapter}\n")
    return path


def launch(recipe, *arguments, **step):
    """The step that launches a recipe with what is needed at least, unless `arguments` say otherwise."""
    needed = {"--on": "hf-jobs", "--flavor": "a100-large", "--max-usd": "20"}
    words = [word for option, value in needed.items() if option not in arguments for word in (option, value)]
    return {"call": "command", "args": ["launch", str(recipe), *arguments, *words], **step}


def ran(service, *steps):
    return [result.get("ok") for result in service.call(*steps)]


def job_in(out):
    """The job that a dry run shows."""
    return json.loads(re.search(r"^\{\n.*?^\}$", out, re.MULTILINE | re.DOTALL)[0])


@pytest.fixture(scope="module")
def launched(service, recipe):
    """A dry run, the same for real, one that fails, one that is not followed, and one beside it; and what the Hub held after the dry run."""
    (dry,) = ran(service, launch(recipe, "train.seed=7", "--timeout", "6h", "--dry-run"))
    after = {"repos": set(service.hub.state.repos), "jobs": list(service.hub.state.jobs), "writes": [one for one in service.hub.log if one["method"] not in ("GET", "HEAD")]}
    _, done, _, failed, _, out_of_time, _, detached, second = ran(
        service,
        {"call": "set", "kwargs": {"job_polls": 1}},
        launch(recipe, "train.seed=7", "--timeout", "6h"),
        {"call": "set", "kwargs": {"job_end": ["ERROR", "Job failed with exit code: 7. Reason: Error"]}},
        launch(recipe, "--mirror", "alice/failing"),
        {"call": "set", "kwargs": {"job_end": ["ERROR", "Job timeout"]}},
        launch(recipe, "--mirror", "alice/slow", "--timeout", "2m"),
        {"call": "set", "kwargs": {"job_end": ["COMPLETED", None]}},
        launch(recipe, "--detach", "--namespace", "org"),
        launch(recipe, "--namespace", "org", "--mirror", "org/tiny-run"),
    )
    return {"dry": dry, "after": after, "done": done, "failed": failed, "out_of_time": out_of_time, "detached": detached, "second": second}


def jobs(service, mirror):
    return [job for job in service.hub.state.jobs.values() if job["spec"]["command"][2] == mirror]


def test_a_dry_run_sends_nothing(launched):
    assert launched["dry"]["code"] == 0, launched["dry"]["err"]
    assert launched["after"]["jobs"] == []
    assert ("model", MIRROR) not in launched["after"]["repos"]
    assert launched["after"]["writes"] == []
    assert launched["dry"]["out"].rstrip().endswith("Nothing was sent.")


def test_a_dry_run_shows_everything_that_is_sent(service, launched):
    """The job and the recipe of the dry run equal what the Hub got; the token is shown by the name of its secret."""
    shown = job_in(launched["dry"]["out"])
    (job,) = jobs(service, MIRROR)
    spec, names = job["spec"], {"image": "dockerImage", "env": "environment", "timeout": "timeoutSeconds"}
    assert shown.pop("secrets") == {"HF_TOKEN": "<HF_TOKEN>"}
    assert shown.pop("namespace") == job["ns"] == "alice"
    assert {**shown.pop("labels"), "name": shown.pop("name")} == spec["labels"]
    assert {names.get(key, key): value for key, value in shown.items()} == {key: value for key, value in spec.items() if key not in ("arguments", "labels", "secrets")}
    assert spec["arguments"] == []
    sent = tree(service.hub, MIRROR)["hubdistill/recipe.yaml"].data.decode()
    assert sent.strip() in launched["dry"]["out"]
    assert "Commit to alice/tiny-run (private, created) as alice: hubdistill-mirror.json and hubdistill/recipe.yaml" in launched["dry"]["out"]
    assert set(tree(service.hub, MIRROR)) == {".gitattributes", "hubdistill-mirror.json", "hubdistill/recipe.yaml"}
    assert service.hub.state.repos[("model", MIRROR)].private


def test_the_recipe_travels_resolved(service, recipe, launched):
    sent = yaml.safe_load(tree(service.hub, MIRROR)["hubdistill/recipe.yaml"].data)
    heads = [service.hub.state.repos[("model", f"org/{who}")].refs["refs/heads/main"] for who in ("teacher", "student")]
    assert [sent["teacher"]["revision"], sent["student"]["revision"]] == heads
    assert sent["train"]["seed"] == 7
    assert sent["publish"]["repo"] == "org/adapter"
    assert str(recipe.parent) not in tree(service.hub, MIRROR)["hubdistill/recipe.yaml"].data.decode()


def test_the_job_is_pinned_limited_and_named(service, launched):
    (job,) = jobs(service, MIRROR)
    version = re.search(r'"(.+)"', (ROOT / "hubdistill" / "__init__.py").read_text().split("__version__")[1])[1]
    assert job["spec"]["dockerImage"].endswith(f"/hubdistill:{version}")
    assert job["spec"]["command"] == ["hubdistill", "run", MIRROR, "--mirror", MIRROR]
    assert job["spec"]["flavor"] == "a100-large"
    assert job["spec"]["timeoutSeconds"] == 6 * 3600  # the money would last for 7 h 59 min
    assert job["spec"]["attempts"] == 1
    assert "--max-usd 20 buys 7 h 59 min, --timeout is 6 h 0 min; the job is stopped after 6 h 0 min, at most $15.01" in launched["done"]["err"]


def test_without_a_timeout_the_money_is_the_limit(service, launched):
    (job,) = jobs(service, "alice/failing")
    assert 20 - HOURLY / 3600 < job["spec"]["timeoutSeconds"] * HOURLY / 3600 <= 20
    assert "no --timeout" in launched["failed"]["err"]


def test_the_log_is_followed_and_the_next_commands_are_printed(service, launched):
    (job,) = jobs(service, MIRROR)
    done = launched["done"]
    assert done["code"] == 0
    assert "hello from the fake job\ndone\n" in done["err"]
    for line in (f"{service.hub.url}/jobs/alice/{job['id']}", f"Follow:  hf jobs logs --follow alice/{job['id']}", f"Stop:    hf jobs cancel alice/{job['id']}",
                 f"Go on:   hubdistill run {MIRROR} --mirror {MIRROR}", f"Done: {service.hub.url}/jobs/alice/{job['id']}"):  # fmt: skip
        assert line in done["out"]
    assert "will publish to org/adapter (private) as alice" in done["err"]


def test_the_exit_code_is_the_job_s(launched):
    assert launched["failed"]["code"] == 7
    assert "ended as ERROR (Job failed with exit code: 7. Reason: Error)" in launched["failed"]["err"]
    assert "run the same command again, or on any machine: hubdistill run alice/failing --mirror alice/failing" in launched["failed"]["err"]
    assert "Done" not in launched["failed"]["out"]


def test_a_job_that_ran_out_of_time_is_a_failure(launched):
    assert launched["out_of_time"]["code"] == 1  # the Hub names no exit code
    assert "ended as ERROR (Job timeout)" in launched["out_of_time"]["err"]
    assert "the job is stopped after 2 min 0 s" in launched["out_of_time"]["err"]


def test_detached_it_is_not_followed_and_no_second_job_works_on_its_mirror(service, launched):
    (job,) = jobs(service, "org/tiny-run")
    assert launched["detached"]["code"] == 0
    assert job["ns"] == "org"
    assert job["polls"] == 0
    assert "hello" not in launched["detached"]["err"]
    assert launched["second"]["code"] == 2
    assert f"/jobs/org/{job['id']} works on org/tiny-run already; follow it: hf jobs logs --follow org/{job['id']}" in launched["second"]["err"]


def test_the_token_is_nowhere_but_in_the_secrets(service, launched):
    """Every request body, answer, log and file: the only place is `secrets` of the jobs' own requests."""
    secret = ALICE.encode()
    started = 0
    for place, body in service.hub.state.bodies:
        if place.startswith("POST /api/jobs/"):
            spec = json.loads(body)
            assert spec.pop("secrets") == {"HF_TOKEN": ALICE}
            body, started = json.dumps(spec).encode(), started + 1
        assert secret not in body, place
    assert started == len(service.hub.state.jobs) == 4
    assert secret not in json.dumps(service.hub.log).encode()
    assert all(ALICE not in result["out"] + result["err"] for key, result in launched.items() if key != "after")
    assert ALICE not in service.said()
    files = [path for root in (service.home, service.hub.state.root) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if secret in path.read_bytes()] == []
    for repo in service.hub.state.repos.values():
        assert not any(secret in (entry.data or b"") for commit in repo.commits.values() for entry in commit.tree.values())


REFUSED = {
    "a read-only token": ([], READER, "cannot publish to org/adapter: your token is read-only"),
    "a namespace of others": (["publish=null", "--namespace", "org"], BOB, "bob may not create repositories under org. Use bob/tiny-run"),
    "a flavor that is not there": (["--flavor", "a100-lrge"], ALICE, "--flavor: {url} has no 'a100-lrge'; did you mean 'a100-large'?"),
    "no money": (["--max-usd", "0.01"], ALICE, "before the machine has started; raise --max-usd"),
    "no duration": (["--timeout", "long"], ALICE, "--timeout: 'long' is no duration"),
    "a second price": (["--usd-per-hour", "1"], ALICE, "--usd-per-hour: the Hub itself states $2.50 an hour for a100-large; leave it out"),
    "an image that is not pinned": (["--image", "hubdistill:latest"], ALICE, "--image: 'hubdistill:latest' is not pinned; name a tag other than latest, or a digest"),
    "an image without a tag": (["--image", "localhost:5000/hubdistill"], ALICE, "is not pinned"),
    "a gated model": (["teacher.model=org/gated"], BOB, "teacher.model: model org/gated is gated: accept its terms"),
    "gated data": (["prompts.dataset=org/rows"], BOB, "prompts.dataset: dataset org/rows is gated: accept its terms"),
    "files of this machine": (["teacher.model=./teacher"], ALICE,
                              "./teacher is on this machine alone, so no other machine could go on with the run; put models and data on the Hub (`hf upload`)"),
    "a public mirror": (["--mirror", "org/public"], ALICE, "org/public is public, and a mirror holds prompts and unfinished work"),
    "a repository of something else": (["--mirror", "org/other"], ALICE, "org/other holds model.safetensors and is no mirror of a run"),
    "no name": (["--mirror", "tiny"], ALICE, "'tiny' is not a Hub repository"),
    "skypilot without a price": (["--on", "skypilot"], ALICE, "--max-usd: the price of a machine that SkyPilot finds is not known here; add --usd-per-hour"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_sent(service, recipe, launched, case):
    put(service.hub, "org/public", {"hubdistill-mirror.json": b"{}"})
    put(service.hub, "org/other", {"model.safetensors": b"x"}, private=True)
    arguments, token, message = REFUSED[case]
    repos, started = set(service.hub.state.repos), len(service.hub.state.jobs)
    heads = {name: dict(repo.refs) for name, repo in service.hub.state.repos.items()}
    publish = ["publish.repo=bob/adapter"] if token == BOB and "publish=null" not in arguments else []
    (done,) = ran(service, launch(recipe, *publish, *arguments, token=token))
    assert done["code"] == 2, done
    assert message.format(url=service.hub.url) in done["err"]
    assert len(service.hub.state.jobs) == started
    assert set(service.hub.state.repos) == repos
    assert heads == {name: repo.refs for name, repo in service.hub.state.repos.items()}


def test_a_hub_without_prices_needs_a_given_one(service, recipe, launched):
    _, refused, done, _ = ran(
        service,
        {"call": "set", "kwargs": {"priced": False}},
        launch(recipe, "--dry-run"),
        launch(recipe, "--usd-per-hour", "4", "--dry-run"),
        {"call": "set", "kwargs": {"priced": True}},
    )
    assert refused["code"] == 2
    assert "states no hourly price for a100-large, so what it buys is not known; add --usd-per-hour" in refused["err"]
    assert done["code"] == 0
    assert job_in(done["out"])["timeout"] == 5 * 3600
    assert "$4.00 an hour (--usd-per-hour)" in done["err"]


def test_a_lost_hub_leaves_the_job_and_says_how_to_follow_it(service, recipe, launched):
    lost = {"call": "fault", "kwargs": {"method": "GET", "path": "^/api/jobs/alice/[0-9a-f]+", "status": 500, "times": 99}}
    _, done = ran(service, lost, launch(recipe, "--mirror", "alice/lost"))
    service.hub.state.faults.clear()
    (job,) = jobs(service, "alice/lost")
    assert done["code"] == 2
    assert f"The job goes on. Follow it: hf jobs logs --follow alice/{job['id']}\nStop it: hf jobs cancel alice/{job['id']}" in done["err"]


@pytest.fixture(scope="module")
def sky(service, recipe, launched, tmp_path_factory):
    file = tmp_path_factory.mktemp("sky") / "task.yaml"
    arguments = ["--on", "skypilot", "--flavor", "A100-80GB:1", "--usd-per-hour", "2", "--mirror", "alice/sky", "--output", str(file)]
    dry, done = ran(service, launch(recipe, *arguments, "--dry-run"), launch(recipe, *arguments))
    assert (dry["code"], done["code"]) == (0, 0), (dry, done)
    return dry["out"], done, file


def test_a_skypilot_task_is_what_the_dry_run_showed_and_holds_no_token(service, sky):
    shown, done, file = sky
    assert file.read_text() in shown
    assert ALICE not in shown + file.read_text()
    assert f"Next: sky launch {file} --secret HF_TOKEN" in done["out"]
    assert "hubdistill/recipe.yaml" in tree(service.hub, "alice/sky")
    task = yaml.safe_load(file.read_text())
    assert task["run"] == "timeout --signal=INT --kill-after=60 36000 hubdistill run alice/sky --mirror alice/sky"
    assert task["secrets"] == {"HF_TOKEN": None}
    assert task["config"] == {"docker": {"run_options": ["--user=root"]}}  # the image's user has no sudo
    assert task["resources"]["max_hourly_cost"] == 2.0
    assert task["resources"]["autostop"] == {"idle_minutes": 5, "down": True}


def test_a_skypilot_task_obeys_skypilot_s_schema(sky):
    jsonschema = pytest.importorskip("jsonschema")
    recorded = json.loads((Path(__file__).parents[1] / "recorded" / "skypilot_task_schema.json").read_text())
    task = yaml.safe_load(sky[2].read_text())
    jsonschema.validate(task, recorded["task"])
    jsonschema.validate(task["resources"], recorded["resources"])
    with pytest.raises(jsonschema.ValidationError):  # the schemas do refuse something
        jsonschema.validate(task | {"timeout": 1}, recorded["task"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task["resources"] | {"max_usd": 1}, recorded["resources"])
