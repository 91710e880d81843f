"""One writer of a result at a time, wherever its folder is seen from.

A job locks a file in the folder that it writes to. The kernel frees the lock when the job dies, however it
dies, also through a link to the folder and, where the file system locks across machines, on another one.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from pathlib import Path

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_LOG_LINES = 60.0

_held = []  # open files: what is locked stays locked as long as they are open


def take(file: Path) -> bool:
    """Lock `file` for the life of this process; waits for another one, and says whether it had to."""
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = open(file, "a+")  # noqa: SIM115, open as long as this process lives; what it says is whose
    said = None
    while not (locked := _try(opened, file)):
        if said is None or time.monotonic() - said > SECONDS_BETWEEN_LOG_LINES:
            said = time.monotonic()
            logging.info("waiting: %s makes the same result now, in %s", _owner(opened), file.parent)
        time.sleep(SECONDS_BETWEEN_TRIES)
    if locked is not None:
        opened.truncate(0)
        opened.write(f"process {os.getpid()} on {socket.gethostname()}")
        opened.flush()
    _held.append(opened)
    return said is not None


def _try(opened, file: Path) -> bool | None:
    """True: locked. False: another process has it. None: this file system has no locks."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        logging.warning("%s cannot be locked (%s): take care that nothing else writes there", file, error)
        return None
    return True


def _owner(opened) -> str:
    opened.seek(0)
    return opened.read() or "another process"
