"""How much memory processes take, each shared page counted once: proportional set size (PSS)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryUse:
    """bytes: pss = private + this process's share of the pages that it has in common with others."""

    pss_bytes: int
    private_bytes: int

    @property
    def shared_bytes(self) -> int:
        return self.pss_bytes - self.private_bytes


def memory_use(pid: int) -> MemoryUse:
    """From /proc/PID/smaps_rollup. Raises OSError when the process is gone or another user's."""
    return parse_smaps(Path(f"/proc/{pid}/smaps_rollup").read_text())


def parse_smaps(text: str) -> MemoryUse:
    kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return MemoryUse(pss_bytes=kilobytes["Pss"] * 1024, private_bytes=private * 1024)
