"""How long a job may run: as long as its money lasts, or as its timeout says, whichever is shorter. Prices are asked for or given, never known here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hubdistill.errors import InputError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds
SHORTEST = 60  # seconds; a machine has not started by then


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a job may cost and how long it may run; `price_of` says whose price it is."""

    usd_per_hour: float
    price_of: str
    max_usd: float
    bought: int  # seconds that `max_usd` buys
    timeout: int | None  # seconds, as asked for

    @property
    def seconds(self) -> int:
        """The smaller of what the money buys and what was asked for."""
        return self.bought if self.timeout is None else min(self.bought, self.timeout)

    @property
    def at_most(self) -> float:
        """US dollars for `seconds` of running."""
        return self.seconds / 3600 * self.usd_per_hour

    def text(self) -> str:
        """Both limits, and which of them stops the job."""
        asked = "no --timeout" if self.timeout is None else f"--timeout is {shown(self.timeout)}"
        return (f"${self.usd_per_hour:.2f} an hour ({self.price_of}): --max-usd {self.max_usd:g} buys {shown(self.bought)}, {asked}; "
                f"the job is stopped after {shown(self.seconds)}, at most ${self.at_most:.2f}")  # fmt: skip


def budget(max_usd: float, timeout: str | None, usd_per_hour: float, price_of: str) -> Budget:
    """The limits of a job. Raises InputError for amounts that are none, and for a budget that ends before the machine has started."""
    for name, amount in (("--max-usd", max_usd), ("--usd-per-hour", usd_per_hour)):
        if not (math.isfinite(amount) and amount > 0):
            raise InputError(f"{name}: must be an amount above 0, got {amount:g}; write US dollars such as 20")
    found = Budget(usd_per_hour=usd_per_hour, price_of=price_of, max_usd=max_usd, bought=int(max_usd / usd_per_hour * 3600), timeout=None if timeout is None else seconds_of(timeout))
    if found.seconds < SHORTEST:
        raise InputError(f"{found.text()}, before the machine has started; raise {'--max-usd' if found.seconds == found.bought else '--timeout'}")
    return found


def seconds_of(duration: str) -> int:
    """Seconds of `6h`, `90m`, `1.5h`, `2d` or `3600s`. Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", duration.strip())
    if not match or float(match[1]) <= 0:
        raise InputError(f"--timeout: '{duration}' is no duration; write a number with s, m, h or d, such as 6h")
    return int(float(match[1]) * UNITS[match[2]])


def shown(seconds: int) -> str:
    """A duration for people: "6 h 0 min"."""
    return f"{seconds // 3600} h {seconds % 3600 // 60} min" if seconds >= 3600 else f"{seconds // 60} min {seconds % 60} s"
