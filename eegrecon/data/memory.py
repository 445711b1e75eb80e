"""How much memory is free, here and on an accelerator: what decides whether data are kept there."""

import os
from pathlib import Path

import torch

SHARE = 0.5  # of what is free, data may take this much; the network, its gradients and the system need the rest
MEMINFO = Path("/proc/meminfo")
# Limit and use of a container's memory (control groups, version 2 then 1); "max" or a huge number means no limit.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def free_bytes(device: torch.device) -> int:
    """Free memory in bytes: of the CUDA device, else of this machine (or the container it pretends to be)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_available()]
    for limit, used in CGROUPS:
        try:
            free.append(int(limit.read_text()) - int(used.read_text()) + _given_up(used.parent / "memory.stat"))
        except (OSError, ValueError):  # not in such a container, or without a limit
            continue
    return max(0, min(free))


def _given_up(stat: Path) -> int:
    """Files in a container's use that the system gives up as soon as memory is needed, such as a store read once."""
    try:
        counts = dict(line.split() for line in stat.read_text().splitlines())
        return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def _available() -> int:
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    # Not Linux: what the machine has, as nothing says how much of it is free.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
