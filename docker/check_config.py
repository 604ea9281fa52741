"""Checks the configuration of a built image: `buildah inspect --type image NAME | python3 docker/check_config.py VERSION REVISION`."""

from __future__ import annotations

import json
import sys
from typing import Any


def problems(config: dict[str, Any], version: str, revision: str) -> list[str]:
    """What in an OCI image configuration is not as docs/docker.md says; nothing where all is well."""
    label = "org.opencontainers.image."
    wanted = {
        "Entrypoint": ["hubdistill"],
        "Cmd": ["--help"],
        "User": "1000",
        "WorkingDir": "/work",
        "Volumes": {"/cache": {}},
        "Labels": {**config.get("Labels", {}), label + "version": version, label + "revision": revision},
    }
    found = [f"{key} is {config.get(key)!r}, not {value!r}" for key, value in wanted.items() if config.get(key) != value]
    return found + [f"{name} is set in the image" for name in (entry.partition("=")[0] for entry in config.get("Env", [])) if "TOKEN" in name or name.startswith("PIP_")]


if __name__ == "__main__":
    if found := problems(json.load(sys.stdin)["OCIv1"]["config"], *sys.argv[1:]):
        sys.exit("\n".join(["the image's configuration is wrong:", *found]))
