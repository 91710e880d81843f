"""Where models and data come from: a hub, whose failures are one line each, or an installed package."""

import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import httpx

from kdag.job.errors import UserError


@contextlib.contextmanager
def fetching(what: str) -> Iterator[None]:
    """Turn what the hub's clients raise into a UserError that names what was to be fetched."""
    try:
        yield
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{what} cannot be fetched from the hub: {reason}. Is there a network (on a cluster: is this the "
            "login node), does the name exist, and is a token needed (HF_TOKEN)? A copy on this machine "
            "serves as well: {source: path, path: ...}"
        ) from error


def package_file(package: str, file: str) -> Path:
    """The path of a file that an installed distribution ships; nothing of it is imported."""
    try:
        found = distribution(package)
    except PackageNotFoundError as error:
        raise UserError(f"the package {package} is not installed; pip install {package}") from error
    path, root = (Path(os.path.normpath(found.locate_file(name))) for name in (file, "."))
    if not path.is_file() or not path.is_relative_to(root):
        raise UserError(f"the package {package} has no file {file}")
    return path
