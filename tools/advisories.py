"""Look the pinned packages up in the package index's advisories; fails if one is known to be vulnerable.

Needs pip-audit, which `make advisories` installs. An index without advisories, such as most mirrors, knows
none of the packages: that is said, and is no failure.
"""

import json
import subprocess
import sys

PINS = "envs/constraints.txt"


def main() -> None:
    options = ["--disable-pip", "--require-hashes", "-r", PINS, "-f", "json", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *options]
    done = subprocess.run(command, text=True, capture_output=True)
    if not done.stdout.strip():
        sys.exit(f"pip-audit gave no answer:\n{done.stderr.strip()}")
    packages = json.loads(done.stdout)["dependencies"]
    unknown = [package for package in packages if "skip_reason" in package]
    found = [(package, problem) for package in packages for problem in package.get("vulns", [])]
    for package, problem in found:
        mended = ", ".join(problem["fix_versions"]) or "no release yet"
        print(f"{package['name']} {package['version']}: {problem['id']}, mended in {mended}")
    known = len(packages) - len(unknown)
    print(f"{known} of {len(packages)} pinned packages looked up, {len(found)} advisories")
    if len(unknown) == len(packages):
        print("the index at hand has no advisories, so nothing is known, good or bad")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
