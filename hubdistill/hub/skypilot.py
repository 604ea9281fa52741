"""A SkyPilot task for an order (`hubdistill launch --on skypilot`): a YAML file for `sky launch`, which picks a cloud and starts it.

Written against the task schema of skypilot 0.14 (`sky.utils.schemas.get_task_schema`). SkyPilot itself is not needed to
write the file. It ends no job by itself, so `timeout` does; then the idle machine is torn down.
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from hubdistill.hub.launch import TOKEN, Order, slug

IDLE_MINUTES = 5  # SkyPilot counts whole minutes; a machine is billed for them as well
GRACE = 60  # seconds between the interrupt, on which a run stops in order, and the end


def task(order: Order, accelerators: str) -> dict[str, Any]:
    """The task: `accelerators` such as `A100-80GB:1`; machines that cost more an hour than the budget assumes are not taken."""
    stop = ["timeout", "--signal=INT", f"--kill-after={GRACE}", str(order.budget.seconds)]
    return {
        "name": slug(order.name),
        "resources": {
            "accelerators": accelerators,
            "image_id": f"docker:{order.image}",
            "max_hourly_cost": order.budget.usd_per_hour,
            "autostop": {"idle_minutes": IDLE_MINUTES, "down": True},
        },
        # SkyPilot sets a container up by sudo and logs in to it as its user; the image's own user has no sudo.
        "config": {"docker": {"run_options": ["--user=root"]}},
        "envs": order.environment,
        "secrets": {TOKEN: None},  # no value: `sky launch --secret HF_TOKEN` reads it from the environment
        "run": shlex.join([*stop, *order.command]),
    }


def task_text(order: Order, accelerators: str) -> str:
    """The file, with what to do with it on top."""
    header = (f"# Made by hubdistill: goes on with the run in {order.mirror}, wherever it was.\n"
              f"# {order.budget.text()}; to this add the start of the machine and {IDLE_MINUTES} idle minutes.\n"
              f"# The token comes from the environment of who starts it: sky launch THIS_FILE --secret {TOKEN}\n")  # fmt: skip
    return header + yaml.safe_dump(task(order, accelerators), sort_keys=False, width=1000)
