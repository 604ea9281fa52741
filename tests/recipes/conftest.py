"""Until hubdistill.targets has its registry, a stand-in with the one target that recipes name."""

from __future__ import annotations

from types import SimpleNamespace

import hubdistill.targets
from hubdistill.specs import Spec

if not hasattr(hubdistill.targets, "TARGETS"):
    hubdistill.targets.TARGETS = (SimpleNamespace(name="text", options=Spec),)  # type: ignore[attr-defined]
