"""Where and when numbers were made: commit, versions, device, time. No user, host or absolute path."""

from __future__ import annotations

import datetime
import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from study import paths


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(paths.ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(device: str) -> dict[str, Any]:
    """What the numbers may depend on besides the specification: the code as it was when the process started to compute,
    and the settings of now."""
    return {
        **_started(device),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32) if device == "cuda" else None,
    }


@functools.cache
def _started(device: str) -> dict[str, Any]:
    packages = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "advertorch", "wellcond")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--", "lib", "book/experiments")),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "cuda": torch.version.cuda if device == "cuda" else None,
        "device": _device_name(device),
        # processors of one name differ in it, and with it in the last bits of every sum
        "instructions": torch.backends.cpu.get_cpu_capability() if device == "cpu" else None,
    }


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
