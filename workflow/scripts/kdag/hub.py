"""The one door to the network, for the fetch stages: a failure is one line that says what to do."""

import contextlib
from collections.abc import Iterator

import httpx

from kdag.errors import UserError


@contextlib.contextmanager
def fetching(what: str) -> Iterator[None]:
    """Turn what the hub's clients raise into a UserError that names what was to be fetched."""
    try:
        yield
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{what} cannot be fetched from the hub: {reason}. Is there a network, does the name exist, and "
            "is a token needed (HF_TOKEN)? A copy on this machine serves as well: {source: path, path: ...}"
        ) from error
