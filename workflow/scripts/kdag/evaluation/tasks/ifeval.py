"""IFEval's score as a pure function of prompts and responses: no model, equal on every run.

The checkers are lm-eval's (they equal Google's). They are random in two ways: langdetect is
unseeded, and a `letter` outside a-z is replaced by a random one (IFEval's keys 1122 and 1129, which ask
for # and for !). Both are seeded here, for each document anew, so that a document's score depends on
nothing but itself; and for strict and loose alike, so that both count the same letter.

A document is {"key", "prompt", "instruction_id_list", "kwargs"}, with a dict of kwargs for each
instruction. nltk, langdetect and lm-eval's checkers (no torch) are imported by the first call.
"""

import functools
import importlib.metadata
import random
import statistics
from pathlib import Path

from kdag.config.metrics import IFEVAL
from kdag.data.loops import is_repeated
from kdag.files.hashes import sha256_json, sha256_text
from kdag.files.manifest import verify_beside
from kdag.job.errors import UserError

SEED = 0
PUNKT = "tokenizers/punkt_tab/english"
# Named as lm-eval names them, so that the metrics of further tasks fit next to these.
LEVELS = ("strict", "loose")
LIST_KWARGS = {"keywords", "forbidden_words"}
TEXT_KWARGS = {
    "capital_relation",
    "end_phrase",
    "first_word",
    "keyword",
    "language",
    "let_relation",
    "letter",
    "postscript_marker",
    "prompt_to_repeat",
    "relation",
    "section_spliter",
}


# --- the sentence splitter's data -----------------------------------------------------------------


def bundled_nltk_data() -> Path | None:
    """The NLTK data directory that an installed llama-index-core carries; it is not imported."""
    try:
        files = importlib.metadata.files("llama-index-core") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix().endswith(f"/{PUNKT}/ortho_context.tab"):
            return Path(file.locate()).parents[3]
    return None


def use_nltk_data(directory: Path | None = None) -> None:
    """Make NLTK read `directory`; if None: NLTK_DATA, NLTK's own places, then the bundled copy.

    Called before lm-eval's checkers are imported, since these download punkt_tab where it is
    missing, and only print where that fails.
    """
    import nltk.data

    if directory is None and not _punkt_found():
        directory = bundled_nltk_data()
    elif directory is not None:
        verify_beside(directory)  # other sentences would be other scores
    if directory is not None and str(directory) not in nltk.data.path:
        nltk.data.path.insert(0, str(directory))
    if not _punkt_found():
        where = directory or "NLTK_DATA or any of NLTK's usual directories"
        raise UserError(
            f"NLTK's punkt_tab (English) is not in {where}. Fetch it with "
            "workflow/scripts/fetch_nltk_data.py --output DIR and name it with --nltk-data DIR."
        )


def _punkt_found() -> bool:
    import nltk.data

    try:
        nltk.data.find(PUNKT)
    except LookupError:
        return False
    return True


@functools.cache
def _checkers():
    """({level: its scorer}, InputExample, {instruction id: checker class}) of lm-eval, langdetect seeded."""
    use_nltk_data()
    import langdetect
    from lm_eval.tasks.ifeval import instructions_registry, utils

    langdetect.DetectorFactory.seed = SEED
    scorers = {level: getattr(utils, f"test_instruction_following_{level}") for level in LEVELS}
    return scorers, utils.InputExample, instructions_registry.INSTRUCTION_DICT


# --- prompts --------------------------------------------------------------------------------------


def prompt_set_hash(docs: list[dict]) -> str:
    """SHA-256 over what is asked and how it is checked, in order. A null kwarg counts as absent."""
    return sha256_json(
        [
            {
                "key": doc["key"],
                "prompt": doc["prompt"],
                "instruction_id_list": doc["instruction_id_list"],
                "kwargs": [_given(kwargs) for kwargs in doc["kwargs"]],
            }
            for doc in docs
        ]
    )


def _given(kwargs: dict) -> dict:
    """Hub copies of the data carry every kwarg there is, null where it has no meaning."""
    return {name: value for name, value in kwargs.items() if value is not None}


def check_prompts(docs: list[dict]) -> None:
    """Raise UserError, naming the row, unless every document can be scored as written.

    A kwarg that is missing or zero is refused: lm-eval would put a random value in its place.
    """
    if not docs:
        raise UserError("the prompt file holds no prompts")
    keys = {}
    for number, doc in enumerate(docs, start=1):
        where = f"prompts, row {number}"
        missing = [n for n in ("key", "prompt", "instruction_id_list", "kwargs") if n not in doc]
        if missing:
            raise UserError(f"{where}: no field {', '.join(missing)}")
        where += f" (key {doc['key']})"
        if not isinstance(doc["key"], int | str) or isinstance(doc["key"], bool):
            raise UserError(f"{where}: a key is a whole number or a text")
        if doc["key"] in keys:
            raise UserError(f"{where}: row {keys[doc['key']]} has the same key")
        keys[doc["key"]] = number
        if not isinstance(doc["prompt"], str) or not doc["prompt"].strip():
            raise UserError(f"{where}: the prompt is empty or no text")
        _check_instructions(doc, where)


def _check_instructions(doc: dict, where: str) -> None:
    ids, kwargs_list = doc["instruction_id_list"], doc["kwargs"]
    if not isinstance(ids, list) or not ids:
        raise UserError(f"{where}: instruction_id_list must be a list of one instruction or more")
    if not isinstance(kwargs_list, list) or len(kwargs_list) != len(ids):
        raise UserError(f"{where}: kwargs must be a list of {len(ids)}, one per instruction")
    _, _, registry = _checkers()
    for name, kwargs in zip(ids, kwargs_list, strict=True):
        if not isinstance(name, str) or name not in registry:
            raise UserError(f"{where}: unknown instruction {name!r}; known: {', '.join(registry)}")
        if not isinstance(kwargs, dict):
            raise UserError(f"{where}, {name}: kwargs must be an object, got {kwargs!r}")
        expected = set(registry[name](name).get_instruction_args_keys())
        given = _given(kwargs)
        if set(given) != expected:
            wanted = ", ".join(sorted(expected)) or "none"
            got = ", ".join(sorted(given)) or "none"
            raise UserError(f"{where}, {name}: it takes the kwargs {wanted}; given: {got}")
        for kwarg, value in given.items():
            if problem := _kwarg_problem(kwarg, value):
                raise UserError(f"{where}, {name}: {kwarg} must be {problem}, got {value!r}")
    try:
        score_document(doc, "A probe.")
    except Exception as error:  # whatever a checker stumbles over is the row's fault
        raise UserError(f"{where}: cannot be scored: {type(error).__name__}: {error}") from error


def _kwarg_problem(kwarg: str, value) -> str | None:
    if kwarg in LIST_KWARGS:
        if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            return None
        return "a list of words"
    if kwarg in TEXT_KWARGS:
        return None if isinstance(value, str) and value.strip() else "a text"
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return None
    return "a whole number above 0"


# --- scores ---------------------------------------------------------------------------------------


def score_document(doc: dict, response: str) -> dict[str, list[bool]]:
    """{"strict": [one verdict per instruction], "loose": the same} of one response."""
    scorers, example, _ = _checkers()
    asked = example(**{field: doc[field] for field in ("key", "instruction_id_list", "prompt", "kwargs")})
    return {level: _seeded(scorer, asked, response) for level, scorer in scorers.items()}


def _seeded(scorer, asked, response: str) -> list[bool]:
    state = random.getstate()
    random.seed(SEED)
    try:
        return [bool(verdict) for verdict in scorer(asked, response).follow_instruction_list]
    finally:
        random.setstate(state)


def random_letters(docs: list[dict]) -> list:
    """The keys of the documents that ask for a "letter" outside a-z: a random one is counted in its place."""

    def outside(letter: str | None) -> bool:
        return letter is not None and (len(letter) > 1 or not "a" <= letter.lower() <= "z")

    return [doc["key"] for doc in docs if any(outside(kwargs.get("letter")) for kwargs in doc["kwargs"])]


def score(docs: list[dict], responses: list[dict]) -> dict:
    """Everything known of a model's answers: rows {"response"}, where known n_tokens and cut_off.

    Counts and their ratios over prompts (all instructions followed) and over instructions, strict
    and loose; per instruction type; length and the shares empty, cut off and repeated; the verdicts
    on every prompt. What the rows do not tell is null.
    """
    check_prompts(docs)
    if len(docs) != len(responses):
        raise UserError(f"{len(docs)} prompts but {len(responses)} responses: they join by order")
    prompts = []
    for number, (doc, row) in enumerate(zip(docs, responses, strict=True), start=1):
        text = row.get("response")
        if not isinstance(text, str):
            raise UserError(f"responses, row {number} (key {doc['key']}): no text in `response`")
        prompts.append(
            {
                "key": doc["key"],
                **score_document(doc, text),
                "empty": not text.strip(),
                "repeated": is_repeated(text),
                "cut_off": row.get("cut_off"),
                "n_tokens": row.get("n_tokens"),
                "n_words": len(text.split()),
            }
        )
    return {
        "task": "ifeval",
        "scorer": f"lm-eval {importlib.metadata.version('lm_eval')}, seed {SEED}",
        "prompts_sha256": prompt_set_hash(docs),
        "random_letters": random_letters(docs),
        "responses_sha256": sha256_text("\0".join(row["response"] for row in responses)),
        **_accuracies(prompts),
        "metrics": metrics(prompts),
        "instruction_types": _by_type(docs, prompts),
        "answers": _answers(prompts),
        "prompts": prompts,
    }


def _accuracies(prompts: list[dict]) -> dict:
    n_prompts = len(prompts)
    n_instructions = sum(len(prompt["strict"]) for prompt in prompts)
    result = {"n_prompts": n_prompts, "n_instructions": n_instructions}
    for level in LEVELS:
        by_prompt = sum(all(prompt[level]) for prompt in prompts)
        by_instruction = sum(sum(prompt[level]) for prompt in prompts)
        result[f"prompt_level_{level}_correct"] = by_prompt
        result[f"prompt_level_{level}_accuracy"] = by_prompt / n_prompts
        result[f"inst_level_{level}_correct"] = by_instruction
        result[f"inst_level_{level}_accuracy"] = by_instruction / n_instructions
    return result


def metrics(prompts: list[dict]) -> list[dict]:
    """How each accuracy comes from the verdicts, for the tests and intervals (report/measures.py)."""
    accuracies, found = _accuracies(prompts), []
    for name in IFEVAL:
        unit, _, level, _ = name.split("_")
        entry = {"verdicts": level, "item": "document" if unit == "prompt" else "verdict"}
        found.append({"metric": name, "value": accuracies[name], **entry})
    return found


def _by_type(docs: list[dict], prompts: list[dict]) -> dict[str, dict[str, int]]:
    types = {}
    for doc, prompt in zip(docs, prompts, strict=True):
        for position, name in enumerate(doc["instruction_id_list"]):
            counts = types.setdefault(name, {"total": 0, "strict_correct": 0, "loose_correct": 0})
            counts["total"] += 1
            for level in LEVELS:
                counts[f"{level}_correct"] += prompt[level][position]
    return types


def _answers(prompts: list[dict]) -> dict:
    """Shares of answers (0 to 1) and lengths; null where not every row tells."""
    result = {}
    for flag in ("empty", "cut_off", "repeated"):
        values = [prompt[flag] for prompt in prompts]
        known = None not in values
        result[f"{flag}_count"] = sum(values) if known else None
        result[f"{flag}_share"] = sum(values) / len(values) if known else None
    for unit in ("n_tokens", "n_words"):
        values = [prompt[unit] for prompt in prompts]
        result[unit] = None if None in values else _length(values)
    return result


def _length(values: list[int]) -> dict:
    return {
        "mean": sum(values) / len(values),
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }
