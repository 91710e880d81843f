"""Equal products give equal bits: what a process sets before torch is imported."""

import os

# Intel's MKL chooses its kernels by threads and by where operands lie in memory, so that equal products may
# differ in the last bit. This makes it choose by shapes alone (oneMKL's conditional numerical
# reproducibility); it is read when MKL is first used. AUTO: the newest instructions that there are.
REPRODUCIBLE = {"MKL_CBWR": "AUTO,STRICT"}


def make_reproducible() -> None:
    """Before torch is imported: equal products give equal bits, whatever the threads and addresses."""
    for name, value in REPRODUCIBLE.items():
        os.environ.setdefault(name, value)


def recorded() -> dict[str, str]:
    """What `make_reproducible` left in force, for manifests and scores."""
    return {name: os.environ.get(name, "") for name in REPRODUCIBLE}
