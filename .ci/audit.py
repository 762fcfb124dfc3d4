"""Refuse packages with known holes, packages from nowhere, and installs that do not fit together.

    python .ci/audit.py

Works without a network: the holes stand in ``advisories.toml``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).resolve().parent
Advisories = dict[str, dict[str, str]]


def installed_findings(found: list[Distribution], advisories: Advisories) -> Iterator[str]:
    """Installed packages that are too old, or did not come from a registry or a wheel at hand."""
    for package in found:
        name, version = canonicalize_name(package.metadata["Name"]), Version(package.version)
        hole = advisories.get(name)
        if hole and version < Version(hole["since"]):
            yield f"{name} {version} is older than {hole['since']}: {hole['why']}"
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        if "vcs_info" in origin or str(origin.get("url", "")).startswith("http"):
            yield f"{name} {version} comes from {origin['url']} and not from the registry"


def declared_findings(project: dict[str, Any], advisories: Advisories) -> Iterator[str]:
    """Dependencies of the project that allow a version with a known hole, or name an address."""
    extras = project.get("optional-dependencies", {})
    for line in [*project["dependencies"], *(d for extra in extras.values() for d in extra)]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if wanted.url:
            yield f"{name} is asked for from {wanted.url}"
        hole = advisories.get(name)
        if hole and wanted.specifier and not _excludes_older(wanted, Version(hole["since"])):
            yield f"{line} allows versions before {hole['since']}: {hole['why']}"


def _excludes_older(wanted: Requirement, since: Version) -> bool:
    floors = [Version(s.version) for s in wanted.specifier if s.operator in (">=", "==", "~=")]
    return bool(floors) and max(floors) >= since


def main() -> int:
    advisories = tomllib.loads((HERE / "advisories.toml").read_text())
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    findings = [
        *declared_findings(project, advisories),
        *installed_findings(list(distributions()), advisories),
    ]
    check = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    if check.returncode:
        findings += check.stdout.splitlines()
    for finding in findings:
        print(finding)
    print(f"audit: {len(findings)} findings in {len(list(distributions()))} packages")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
