"""How much memory a process of a benchmark takes, now and at its peak."""

from __future__ import annotations

from pathlib import Path


def resident(name: str = "VmRSS") -> int:
    """Bytes that this process has (VmRSS), or has had at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """VmHWM starts here: a child of fork begins with its parent's, and libraries load at first."""
    Path("/proc/self/clear_refs").write_text("5")
