"""Known holes in what is installed beside this script, by pip-audit: `make audit`.

pip-audit alone ends well where the index that it asks publishes no advisories: it skips every package and finds
nothing. Here a package that no service could answer for is a failure, named.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

SERVICES = ("pypi", "osv")


def ask(service: str) -> list[dict[str, Any]]:
    """What a service says of each installed package; nothing where it cannot be reached."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "-s", service]
    done = subprocess.run([*command, "--skip-editable"], capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        sys.stderr.write(f"{service} did not answer: {reason}\n")
        return []
    return found


def verdict(answers: Iterable[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """The packages that somebody answered for, their holes, and the packages that nobody knows."""
    holes: dict[str, list[str]] = {}
    unknown: set[str] = set()
    for package in answers:
        if "vulns" in package:
            known = holes.setdefault(package["name"], [])
            known += [f"{package['name']} {package['version']}: {one['id']}" for one in package["vulns"]]
        elif "editable" not in package["skip_reason"]:
            unknown.add(package["name"])
    return sorted(holes), sorted({hole for one in holes.values() for hole in one}), sorted(unknown - set(holes))


def main() -> int:
    """Ask the services in turn until every package is answered for; 0 where all are and none has a hole."""
    answers: list[dict[str, Any]] = []
    for service in SERVICES:
        answers += ask(service)
        answered, holes, unknown = verdict(answers)
        if answered and not unknown:
            break
    lines = [f"{len(answered)} packages audited, {len(holes)} known holes", *holes]
    if unknown or not answered:
        lines.append(
            f"{len(unknown)} packages could not be audited, so nothing is known of them: {', '.join(unknown)}. "
            "Run this where PyPI's own index or OSV can be reached."
        )
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if holes or unknown or not answered else 0


if __name__ == "__main__":
    sys.exit(main())
