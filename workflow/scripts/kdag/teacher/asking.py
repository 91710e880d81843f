"""Many requests to a server, each answered once: what is answered is on disk, and an interrupted job goes on.

The journal is a file of lines {"key", "value", "seal"}, each written and flushed when its answer is whole.
key is the hash of all that decides an answer. A line that is torn or damaged is not used, and asked again.
"""

import json
import os
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from kdag.files.hashes import sha256_file, sha256_json
from kdag.job.progress import Progress
from kdag.teacher.server import APIS, Answer, Client, Server, StoppedError


def arguments(parser) -> None:
    """How a server is reached, and whose tokenizer it has, for the scripts that ask one."""
    parser.add_argument("--url", required=True, help="where the server is, up to /v1")
    parser.add_argument(
        "--key", nargs="?", default="", const="", help="the environment variable that holds its API key"
    )
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one answer may take")
    parser.add_argument("--retries", type=int, default=5, help="how often a request is sent again")
    parser.add_argument("--parallel", type=int, default=8, help="requests at a time")
    parser.add_argument(
        "--model", type=Path, required=True, help="the student's directory, for its tokenizer"
    )


def server_of(args, asked: dict, tokenizer) -> Server:
    """asked: {id, revision, api} of the configuration's teacher."""
    client = Client(args.url, key=args.key, timeout=args.timeout, retries=args.retries)
    return APIS[asked["api"]](client, asked["id"], tokenizer)


class Journal:
    """{key: value} in an append-only file."""

    def __init__(self, path: Path):
        self.path, self.known = Path(path), {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        with self.path.open("a+b") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                if entry := read_line(line):
                    self.known[entry["key"]] = entry["value"]
            file.truncate(whole)

    def add(self, key: str, value) -> None:
        line = json.dumps({"key": key, "value": value, "seal": sha256_json(value)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.known[key] = value

    def done(self) -> None:
        """What was made of it is sealed elsewhere."""
        self.path.unlink(missing_ok=True)


def read_line(line: bytes) -> dict | None:
    try:
        entry = json.loads(line)
        return entry if entry["seal"] == sha256_json(entry["value"]) else None
    except (ValueError, TypeError, KeyError):
        return None


def ask_all(
    questions: Iterable[dict],
    ask: Callable[[dict], object],
    journal: Journal,
    *,
    parallel: int,
    unit: str,
    stop,
) -> list:
    """The value of each question, in order. ask: question -> value, both JSON, in several threads.

    stop: an event, set once a request has failed. The first failure is raised when no request is under way
    any more; what the others answered meanwhile is kept.
    """
    questions = list(questions)
    keys = [sha256_json(question) for question in questions]
    todo = {key: question for key, question in zip(keys, questions, strict=True) if key not in journal.known}
    waiting, asked, answered = iter(todo.items()), queue.SimpleQueue(), queue.SimpleQueue()

    def work():
        while True:
            key, question = asked.get()
            try:
                answered.put((key, ask(question), None))
            except Exception as error:
                answered.put((key, None, error))

    # Daemons: who interrupts the job does not wait for a server that does not answer.
    for _ in range(min(parallel, len(todo))):
        threading.Thread(target=work, daemon=True).start()
        asked.put(next(waiting))
    progress, failure = Progress(len(todo), unit), None
    done, running = 0, min(parallel, len(todo))
    while running:
        key, value, error = answered.get()
        running -= 1
        if error is None:
            journal.add(key, value)
            done += 1
            progress.update(done)
        elif not isinstance(error, StoppedError):
            failure = failure or error
            stop.set()
        if failure is None and (following := next(waiting, None)):
            asked.put(following)
            running += 1
    if failure:
        raise failure
    return [journal.known[key] for key in keys]


def answers(
    server: Server,
    teacher: Path,
    prompts: list[list[int]],
    sampling: list[dict],
    ends: tuple[int, ...],
    journal: Journal,
    *,
    parallel: int,
    unit: str,
) -> list[Answer]:
    """What the server says to each prompt.

    teacher: the manifest of the server, by which answers of another are told apart; sampling: of each prompt;
    ends: the tokens that end an answer; parallel, unit: of `ask_all`.
    """
    of = sha256_file(teacher)
    questions = [
        {"teacher": of, "prompt": prompt, "sampling": chosen, "ends": list(ends)}
        for prompt, chosen in zip(prompts, sampling, strict=True)
    ]

    def ask(question: dict) -> list:
        said = server.answer(question["prompt"], question["sampling"], ends)
        return [said.ids, said.cut_off]

    found = ask_all(questions, ask, journal, parallel=parallel, unit=unit, stop=server.client.stop)
    return [Answer(ids, cut_off) for ids, cut_off in found]
