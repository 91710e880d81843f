"""What strangers wrote is tried in a process of its own: a crash, a loop or a hunger for memory ends there.

A damaged Parquet file may be a segmentation fault of its reader, and a chat template is a program.
"""

import faulthandler
import json
import multiprocessing
import resource
import signal
import sys
import warnings
from pathlib import Path

from kdag.job.errors import UserError

PAGE = resource.getpagesize()


def run(function, *args, what: str, seconds: float, memory: int | None = None):
    """function(*args) in a child; its result, which must be JSON, or a UserError that begins with `what`.

    memory: bytes that the child may take on top of what this process has, None: no bound.
    """
    # The one thread of a stage that has not begun watches its parent; a fork without it is what is wanted.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, function, args, memory))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    try:
        answer = json.loads(ours.recv_bytes()) if ours.poll(seconds) else {"refused": _long(seconds)}
    except EOFError:
        process.join()
        answer = {"refused": f"its reader crashed ({_end(process.exitcode)})"}
    finally:
        process.kill()
        process.join()
    if "refused" in answer:
        refused = answer["refused"]
        raise UserError(refused if refused.startswith(what) else f"{what}: {refused}")
    return answer["made"]


def _child(pipe, function, args, memory: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()
    if memory is not None and Path("/proc/self/statm").exists():
        held = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    try:
        answer = {"made": function(*args)}
    except MemoryError:
        bound = f"{memory / 2**30:.0f} GiB of memory" if memory else "the memory that there is"
        answer = {"refused": f"it takes more than {bound}"}
    except UserError as error:
        answer = {"refused": str(error)}
    except Exception as error:  # whatever the reader stumbles over is the fault of what it reads
        answer = {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    pipe.send_bytes(json.dumps(answer).encode())


def _long(seconds: float) -> str:
    return f"it is not done after {seconds:.0f} seconds"


def _end(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
