"""What a result depends on beside its configuration: code, versions, machine."""

import hashlib
import inspect
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tokenprune.core.strategy import PruningStrategy

_REPORTED = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pillow", "scikit-learn", "pyarrow", "matplotlib")


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a number or a picture."""
    import tokenprune

    found = {"tokenprune": tokenprune.__version__, "python": platform.python_version()}
    for name in _REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def source_digest() -> str:
    """SHA-256 over the package's own Python files: names this code, committed or not."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    # The two folders that are links in a checkout are ordinary folders in an installed package; both are followed.
    folders = [root, *(folder for folder in sorted(root.iterdir()) if folder.is_dir())]
    files = {file for folder in folders for file in folder.glob("*.py" if folder == root else "**/*.py")}
    for file in sorted(files, key=lambda file: file.relative_to(root).as_posix()):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def foreign_sources(strategies: Iterable[PruningStrategy]) -> dict[str, str]:
    """SHA-256 of the source files of strategies from elsewhere, by module: a run is not resumed by other code."""
    found: dict[str, str] = {}
    for strategy in strategies:
        for part in (strategy, *getattr(strategy, "stages", ())):
            module = type(part).__module__
            if module.split(".")[0] == "tokenprune" or module in found:
                continue
            try:
                file = inspect.getsourcefile(type(part))
                found[module] = hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
            except (OSError, TypeError):  # defined interactively: there is no file
                found[module] = "unknown"
    return found


def git_state() -> dict[str, object] | None:
    """Commit of the checkout that this code runs from, and whether it has changes; None outside of a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=30
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changes.strip())}


def device_name(device: str) -> str:
    """The accelerator's or processor's name, as results print it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def load_average() -> float | None:
    """Processes that wanted a core, mean of the last minute; more of them than cores and times say little."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
