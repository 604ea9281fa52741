"""Hugging Face Jobs: what a flavor costs, one job for an order, its logs, and how it ended (`hubdistill launch --on hf-jobs`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubdistill.errors import InputError, JobError
from hubdistill.hub.access import hub_api
from hubdistill.hub.failures import UNREAD, endpoint, explained, hub_token, retrying
from hubdistill.hub.launch import TOKEN, Order, slug
from hubdistill.recipe_wording import nearest

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

INTERRUPTED = 130
HOURS = {"second": 1 / 3600, "minute": 1 / 60, "hour": 1.0}  # of the units that the Hub states prices in


@dataclass(frozen=True)
class Running:
    """A job that was started: its id with the namespace, as `hf jobs` takes it, and its page."""

    namespace: str
    id: str
    url: str

    @property
    def follow_command(self) -> str:
        return f"hf jobs logs --follow {self.namespace}/{self.id}"

    @property
    def cancel_command(self) -> str:
        return f"hf jobs cancel {self.namespace}/{self.id}"


def hourly_price(flavor: str, given: float | None) -> tuple[float, str]:
    """US dollars an hour of a flavor, and whose word that is: the Hub's, or that of `given` where the Hub states none.

    Raises InputError for an unknown flavor, for a price that nobody states, and for a second opinion on the Hub's.
    """
    with explained(flavor, "ask for the prices of jobs"):
        api = hub_api(flavor, "launch a job")
        offers = {one.name: one for one in retrying(api.list_jobs_hardware)}
    if offers and flavor not in offers:
        near = nearest(flavor, list(offers))
        raise InputError(f"--flavor: {endpoint()} has no '{flavor}'; " + (f"did you mean '{near}'?" if near else f"it has {', '.join(sorted(offers))}"))
    offer = offers.get(flavor)
    if offer is not None and offer.unit_label in HOURS and offer.unit_cost_usd > 0:
        price = offer.unit_cost_usd / HOURS[offer.unit_label]
        if given is not None:
            raise InputError(f"--usd-per-hour: the Hub itself states ${price:.2f} an hour for {flavor}; leave it out")
        return price, f"the Hub's price for {flavor}"
    if given is None:
        raise InputError(f"--max-usd: {endpoint()} states no hourly price for {flavor}, so what it buys is not known; add --usd-per-hour with the price from its pricing page")
    return given, "--usd-per-hour"


def job_of(order: Order, flavor: str, namespace: str) -> dict[str, Any]:
    """The arguments of `HfApi.run_job`, all but the secrets."""
    return {
        "image": order.image,
        "command": order.command,
        "env": order.environment,
        "flavor": flavor,
        "timeout": order.budget.seconds,
        "attempts": 1,
        "name": order.name,
        "labels": {"mirror": slug(order.mirror)},
        "namespace": namespace,
    }


def shown(job: dict[str, Any]) -> str:
    """Everything that a job is sent as, with the secret's name in place of its value."""
    return json.dumps(job | {"secrets": {TOKEN: f"<{TOKEN}>"}}, indent=2)


def refuse_second(order: Order, namespace: str) -> None:
    """Raise InputError where a job with the same mirror is waiting or running: both would do the same, and be paid for."""
    with explained(namespace, f"list the jobs of {namespace}"):
        api = hub_api(namespace, "launch a job")
        found = retrying(lambda: list(api.list_jobs(status=["SCHEDULING", "RUNNING"], labels={"mirror": slug(order.mirror)}, namespace=namespace)))
    if found:
        job = Running(namespace, found[0].id, found[0].url)
        raise InputError(f"{job.url} works on {order.mirror} already; follow it: {job.follow_command}, or stop it: {job.cancel_command}, or name another --mirror")


def start(order: Order, job: dict[str, Any]) -> Running:
    """Commit the recipe to the mirror and start the job; the token travels in its secrets alone."""
    order.send_recipe()
    with explained(job["namespace"], f"start a job in {job['namespace']}"):
        api = hub_api(order.mirror, "launch a job")
        # Repeated only where it certainly did not arrive: a second job would be paid for as well.
        found = retrying(lambda: api.run_job(**job, secrets={TOKEN: hub_token()}), statuses=UNREAD)
    return Running(job["namespace"], found.id, found.url)


def follow(job: Running, say: Callable[[str], None], resume: str) -> None:
    """Hand each line of a job's log to `say` until it ends.

    Raises JobError for a job that did not complete, with its exit code where the Hub tells it, and when it is
    interrupted here: the job then goes on. HubError where the Hub is lost; the job goes on then, too.
    """
    goes_on = f"The job goes on. Follow it: {job.follow_command}\nStop it: {job.cancel_command}"
    try:
        with explained(job.url, f"follow {job.url}", ending=goes_on):
            api = hub_api(job.id, "follow a job")
            for line in api.fetch_job_logs(job_id=job.id, namespace=job.namespace, follow=True):
                say(line.rstrip("\n"))
            end = retrying(lambda: api.wait_for_job(job.id, namespace=job.namespace, poll_interval=2.0))
    except KeyboardInterrupt:
        raise JobError(f"\nNo longer followed. {goes_on}", INTERRUPTED) from None
    if end.status.stage != "COMPLETED":
        raise JobError(f"{job.url} ended as {_how(end)}\nFinished stages are in its mirror. To go on, run the same command again, or on any machine: {resume}", exit_code(end))


def exit_code(end: JobInfo) -> int:
    """That of the job's command, which the Hub gives in words only; 1 where it does not."""
    said = re.search(r"exit code:?\s*(\d+)", end.status.message or "", re.IGNORECASE)
    return int(said[1]) if said and 0 < int(said[1]) < 256 else 1


def _how(end: JobInfo) -> str:
    return f"{end.status.stage}{f' ({end.status.message})' if end.status.message else ''}"
