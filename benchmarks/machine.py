"""What measured numbers depend on: the machine, and the versions of the libraries."""

import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Sequence

_PROCESSORS = pathlib.Path("/proc/cpuinfo")


def machine(distributions: Sequence[str]) -> dict[str, object]:
    """Cores, processor, load and versions, to be kept beside a measurement.

    Args:
      distributions: packages whose versions count; one that is missing is listed as "not installed".
    """
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "load average at the start": os.getloadavg()[0],
        "versions": versions,
    }


def versions(facts: dict) -> str:
    """Of what `machine` found: the versions, in one line."""
    return ", ".join(f"{name} {version}" for name, version in facts["versions"].items())


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    named = _PROCESSORS.is_file() and re.search(r"^model name\s*: (.+)$", _PROCESSORS.read_text(), re.MULTILINE)
    return named[1].strip() if named else platform.machine()
