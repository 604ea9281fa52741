"""A forecast as text, for `plan`."""

from __future__ import annotations

from typing import Any

GIB = 2**30


def forecast_lines(found: dict[str, Any]) -> list[str]:
    """Memory by stage, disk, time and cost on the device, and the GPUs that would do."""
    machine, width = found["machine"], max(len(stage["stage"]) for stage in found["memory"])
    lines = [f"memory    on {machine['name']} ({_gib(machine['memory'])}), at most, every prompt and response at its limit:"]
    lines += [f"          {stage['stage']:<{width}}  {_gib(stage['measured'] or stage['bytes']):>9}{_beside(stage)}  {_parts(stage['parts'])}" for stage in found["memory"]]
    lines += [f"          {stage['stage']} also takes of the teacher's device: {_parts(stage['other_device'])}" for stage in found["memory"] if stage["other_device"]]
    if not found["fits"]:
        lines.append("          it does not fit")
    lines.append(f"disk      at most {_gib(sum(found['disk'].values()))}{': ' if _parts(found['disk']) else ''}{_parts(found['disk'])}")
    lines.append(f"time      {_time(found)}")
    lines.append(f"cost      {_cost(found)}")
    lines.append("GPUs      " + " · ".join(_gpu(one) for one in found["gpus"] if one["fits"]) if any(one["fits"] for one in found["gpus"]) else "GPUs      none of the table has the memory for it")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _beside(stage: dict[str, Any]) -> str:
    return f" measured (forecast: {_gib(stage['bytes'])})" if stage["measured"] else ""


def _parts(parts: dict[str, int]) -> str:
    """The parts that matter, the largest first."""
    shown = sorted(((size, name) for name, size in parts.items() if size >= GIB / 20), reverse=True)
    return ", ".join(f"{name} {size / GIB:.1f}" for size, name in shown)


def _time(found: dict[str, Any]) -> str:
    if found["seconds"] is None:
        return "not known: the data set does not say how many prompts it has; set prompts.count"
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found["seconds"].items() if seconds)
    how = "from the probe" if any(stage["measured"] for stage in found["memory"]) else "guessed from the sizes of the models; --probe measures"
    return f"about {duration(sum(found['seconds'].values()))}, every response at its limit ({how}): {parts}"


def _cost(found: dict[str, Any]) -> str:
    machine = found["machine"]
    if found["usd"] is None:
        return "no price is known; --usd-per-hour gives one" if machine["kind"] == "cuda" or machine["usd_per_hour"] is None else "not known"
    return f"about ${found['usd']:.2f} at ${machine['usd_per_hour']:.2f} an hour, by the minute ({machine['price_of']})"


def _gpu(one: dict[str, Any]) -> str:
    time = "" if one["seconds"] is None else f" {duration(one['seconds'])}"
    return f"{one['name']}{time}" + ("" if one["usd"] is None else f" ${one['usd']:.2f}")


def duration(seconds: float) -> str:
    """"6 h 10 min", "4 min" or "20 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min" if seconds >= 5400 else f"{seconds / 60:.0f} min"
