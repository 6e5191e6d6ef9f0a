"""How much memory a device has free."""

from pathlib import Path

import torch

_MEMORY = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def available_bytes(
    device: str, *, memory: Path = _MEMORY, control_group: Path = _CONTROL_GROUP
) -> int | None:
    """What can be allocated on a torch device now; None where the system does not say.

    On a CPU that is Linux's own estimate, or what the container's limit leaves if that is less.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if kind != "cpu" or not memory.is_file():
        return None
    lines = dict(line.split(":", 1) for line in memory.read_text().splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return None
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = _number(control_group / "memory.max")
    used = _number(control_group / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used + _reclaimable(control_group / "memory.stat")))
    return free


def _reclaimable(file: Path) -> int:
    """Cached file contents that count as used, and are dropped when the room is needed."""
    if not file.is_file():
        return 0
    stats = dict(line.split() for line in file.read_text().splitlines())
    return int(stats.get("inactive_file", 0))


def _number(file: Path) -> int | None:
    """What a file of the control group says; None if there is none, or no limit."""
    if not file.is_file():
        return None
    text = file.read_text().strip()
    return int(text) if text.isdigit() else None
