"""What a machine elsewhere needs to carry out a recipe: the resolved recipe in a private mirror repository, an image, a command.

    hubdistill launch R --on hf-jobs --flavor a100-large --max-usd 20

The recipe travels as a file of the mirror (hubdistill/hub/mirror.py), and the command is one that anybody with access
to the mirror can give on any machine: `hubdistill run ORG/NAME --mirror ORG/NAME`. So the command line, the
environment and the labels of a job, which others may see, hold nothing but names; the token is its only secret.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import hubdistill
from hubdistill.errors import InputError
from hubdistill.hub.access import hub_api
from hubdistill.hub.budget import Budget
from hubdistill.hub.failures import endpoint, explained, hub_token, retrying
from hubdistill.hub.mirror import SIGN, check_mirror, create_mirror
from hubdistill.hub.names import RECIPE, require_repo
from hubdistill.hub.reproduce import pinned_recipe
from hubdistill.hub.secrets import refuse_secrets
from hubdistill.models.sources import PYPI
from hubdistill.plan import Plan

IMAGE = f"ghcr.io/hubdistill/hubdistill:{hubdistill.__version__}"
TOKEN = "HF_TOKEN"  # the name of the only secret
HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class Order:
    """One job, whoever runs it; everything but the token."""

    recipe: str  # YAML: every value spelled out, every revision pinned
    mirror: str
    mirror_shown: str  # what `check_mirror` says of it
    image: str
    budget: Budget
    remote_code: bool
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the job: letters, digits, - and _."""
        return "hubdistill-" + slug(self.mirror.split("/")[1])

    @property
    def command(self) -> list[str]:
        """What the machine is told to do; given anywhere else, it goes on with the same run."""
        return ["hubdistill", "run", self.mirror, "--mirror", self.mirror, *(["--allow-remote-code"] if self.remote_code else [])]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that anybody with access to the job may see."""
        return {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **({"HF_ENDPOINT": endpoint()} if endpoint() != HUB else {})}

    @property
    def resume(self) -> str:
        """The command as a line for a shell."""
        return shlex.join(self.command)

    def send_recipe(self) -> None:
        """Create the mirror where it is not there, and commit the recipe to it."""
        create_mirror(self.mirror, {RECIPE: self.recipe.encode()})

    def recipe_text(self) -> str:
        """What `send_recipe` would commit."""
        return f"Commit to {self.mirror_shown}: {SIGN} and {RECIPE}:\n\n{self.recipe.rstrip()}"


def user_name() -> str:
    """Whose token it is. Raises HubError where there is none."""
    with explained("your account", "launch a job"):
        api = hub_api("", "launch a job")
        return str(retrying(lambda: api.whoami(cache=True))["name"])


def default_mirror(plan: Plan, namespace: str) -> str:
    """NAMESPACE/<recipe name>-run."""
    return f"{namespace}/{re.sub('[^A-Za-z0-9_.]+', '-', plan.loaded.name.removesuffix('-run'))}-run"


def prepare(plan: Plan, mirror: str, image: str, budget: Budget) -> Order:
    """The order for a plan, with what would stop the job checked beyond the plan, which has read each model's config
    and the data by this token: files of this machine, the image, the mirror. Writes nothing. Raises InputError and HubError."""
    require_repo(mirror)
    check_image(image)
    shown = check_mirror(mirror, plan)
    recipe = pinned_recipe(plan, publish=plan.recipe.publish)
    refuse_secrets({"recipe": recipe}, token=hub_token())
    remote_code = plan.recipe.teacher.trust_remote_code or plan.recipe.student.trust_remote_code
    return Order(recipe=recipe, mirror=mirror, mirror_shown=shown, image=image, budget=budget, remote_code=remote_code, warnings=tuple(_warnings(plan)))


def check_image(image: str) -> None:
    """Raise InputError for an image that is not pinned: what `latest` is may change between two attempts of a job."""
    name, _, tag = image.rpartition("/")[2].partition(":")
    if "@sha256:" in image:
        return
    if not name or not tag or tag == "latest" or re.search(r"\s", image):
        raise InputError(f"--image: '{image}' is not pinned; name a tag other than latest, or a digest: {IMAGE}")


def slug(name: str) -> str:
    """A name as labels of jobs allow it."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _warnings(plan: Plan) -> list[str]:
    models = (plan.recipe.teacher.model, plan.recipe.student.model)
    packages = sorted({model.removeprefix(PYPI) for model in models if model.startswith(PYPI)})
    found = [f"the image must have the Python package {package}, which the recipe takes a model from" for package in packages]
    if plan.recipe.train.tracker not in ("none", "tensorboard"):
        found.append(f"train.tracker: the job is not logged in to {plan.recipe.train.tracker}; {TOKEN} is the only secret that it gets")
    if plan.recipe.publish is None:
        found.append("the recipe has no `publish`: the adapter stays in the mirror, and the command that resumes fetches it")
    if (hub_token() or "").startswith("hf_oauth_"):
        found.append("your token comes from a browser login and may expire before the job ends; set HF_TOKEN to an access token with write access")
    return found
