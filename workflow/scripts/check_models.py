"""Take both models through what the experiment asks of them, in seconds, before anything dear runs.

Each is loaded, trained for one step on the longest rows, saved, loaded again and asked for an answer. What
the teacher thinks of these rows is stored, and is what the student's step learns from. What cannot work ends
here, in one line. On a GPU a step has a whole batch, so that its memory is tried too. All of it is done by
transformers: with Unsloth in the process no other model of the family computes (training/backends.py).
"""

import contextlib
import gc
import json
import logging
import math
import shutil
import time
from pathlib import Path

from kdag.config import precision
from kdag.config.section import checked
from kdag.config.training import DistillationJob, TeacherCache, TeacherTraining
from kdag.files.atomic import write_json
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.files.records import recorded
from kdag.job import cli, launching
from kdag.job.errors import UserError
from kdag.job.launching import one_process_per_gpu
from kdag.training.memory import tokens_per_pass

ANSWER = 4  # tokens


def arguments():
    parser = cli.parser(__doc__.splitlines()[0], gpus=True)
    parser.add_argument("--config", type=json.loads, required=True, help="settings of every stage, JSON")
    parser.add_argument("--teacher", type=Path, required=True, help="model directory")
    parser.add_argument("--student", type=Path, required=True, help="model directory")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument(
        "--own", type=Path, nargs="*", help="train.parquet and chat.json of a teacher of another tokenizer"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON, written when all of it worked")
    return parser


def main(args):
    teacher = checked(TeacherTraining, args.config["teacher_training"])
    students = [checked(DistillationJob, {"divergence": "fkl", **keys}) for keys in args.config["students"]]
    from kdag.losses.divergences import load as load_divergence
    from kdag.training import processes
    from kdag.training.schedule import Objective

    check = Check(args, [teacher, *students])
    own = check.of_teacher()  # the same for one tokenizer
    try:
        with check.asked("the teacher"):
            own.step("teacher", args.teacher, teacher, Objective(), None)
            if launching.rank() == 0:
                own.answer("teacher", teacher.dtype)
                own.remember(live=any(student.teacher_dtype for student in students))
        processes.agreed(None)  # the others wait for the teacher's states
        objective = Objective()  # what the teacher thinks is of other tokens
        if own is check:
            objective = Objective(load_divergence("fkl"), {}, kl_weight=0.5, temperature=2.0)
        for number, student in enumerate(students, start=1):
            which = f", settings {number} of {len(students)}" if number > 1 else ""
            with check.asked(f"the student{which}"):
                name = f"student{number}"
                seen = check.seen(student) if own is check else None
                check.step(name, args.student, student, objective, seen)
                if launching.rank() == 0:
                    check.answer(name, student.dtype)
    finally:  # what failed for want of room leaves none of it behind
        if launching.rank() == 0:
            shutil.rmtree(check.scratch, ignore_errors=True)
    processes.leave()
    write_json(args.output, {"rows": check.frame["row_hash"].tolist(), "params": args.config})


class Check:
    """What the steps of both models share: the rows, the chat, a folder that is removed at the end."""

    def __init__(self, args, trainings, train: Path | None = None, chat: Path | None = None):
        from kdag.data.rows import longest, read_rows
        from kdag.data.template import read_chat
        from kdag.models import load

        self.args, self.trainings = args, trainings
        self.train, self.chat = train or args.train, read_chat(chat or args.chat)
        self.data = read_manifest(self.train.parent / "manifest.json", SUBSET)
        rows = read_rows(self.train)
        most = 1
        if load.device().type == "cuda":  # a pass that is as wide as any
            limits = [tokens_per_pass(settings, on_cpu=False) for settings in trainings]
            most = max(1, max(limits) // int(rows.lengths.max()))
        self.frame = longest(rows, most * launching.processes())
        self.scratch = args.output.parent / "scratch"
        if launching.rank() == 0:
            shutil.rmtree(self.scratch, ignore_errors=True)  # of a check that was killed
        logging.info("rows: %d, the longest of %d tokens", len(self.frame), self.frame.lengths.max())

    def of_teacher(self) -> "Check":
        """The check of the teacher: with another tokenizer it has rows and a chat of its own."""
        return Check(self.args, self.trainings, *self.args.own) if self.args.own else self

    @contextlib.contextmanager
    def asked(self, what: str):
        """An error in here is one line that begins with what failed."""
        import torch

        logging.info("%s: a step, saved, loaded again, an answer", what)
        begin = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
        except Exception as error:
            if cli.refusal(error) is not None or isinstance(error, torch.OutOfMemoryError):
                raise  # which has a line of its own
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            raise UserError(f"{what}: {kind}{error or 'no reason given'}") from error
        release()
        peak = ""
        if torch.cuda.is_available():
            peak = f", at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
        logging.info("%s: works, %.0f s%s", what, time.monotonic() - begin, peak)

    def step(self, name: str, start: Path, settings, objective, teacher) -> None:
        """One optimiser step; what comes out of it is saved, by the first process."""
        from kdag.training.job import fit, sharding, write_model

        passes = math.ceil(len(self.frame) / (settings.batch_size * launching.processes()))
        settings = settings.model_copy(
            update={
                "epochs": 1,
                "gradient_accumulation": passes * launching.processes(),
                "dtype": precision.settle(settings.dtype, "dtype"),
            }
        )
        by_transformers = {"start": start, "backend": "transformers"}
        trained = fit(
            settings,
            objective,
            frame=self.frame,
            teacher=teacher,
            vocabulary=self.data["vocabulary_size"],
            work=self.scratch / f"checkpoints-{name}",
            shard=sharding.wanted(start, settings),
            **by_transformers,
        )
        if launching.rank() == 0:
            folder = self.scratch / name / "model"
            self.said = self.logits(write_model(trained, folder, settings, chat=self.chat, **by_transformers))

    def logits(self, model):
        """Of the first tokens of a row, on the CPU: a model is held no longer than it has to be."""
        import torch

        from kdag.models.same import PROBE

        ids = torch.tensor([self.frame["input_ids"][0][:PROBE].tolist()], device=model.device)
        with torch.no_grad():
            return model.eval()(input_ids=ids, use_cache=False).logits.cpu()

    def answer(self, name: str, trained_in: str) -> None:
        """Load what was saved, compare it with what was trained, and ask it for a few tokens."""
        import torch

        from kdag.models.decoding import decode_greedily, load_model
        from kdag.models.same import distance, same

        release()
        dtype = precision.settle(self.args.config["evaluation"]["dtype"], "evaluation.dtype")
        model, _ = load_model(self.scratch / name / "model", dtype, self.args.gpus)
        said = self.said.to(getattr(torch, precision.settle(trained_in, "dtype")))  # as it was saved
        computed = self.logits(model)
        if not same(said, computed):
            raise UserError(
                "the model that was saved is not the one that was trained: its logits are off by "
                f"{distance(said, computed):.1%}"
            )
        ids, targets = self.frame["input_ids"][0], self.frame["targets"][0]
        first = (targets != -100).argmax()  # predicts the first token of the answer
        decode_greedily(
            model,
            [ids[: first + 1].tolist()],
            vocabulary=self.data["vocabulary_size"],
            eos_ids=list(self.chat.end_ids),
            max_new_tokens=ANSWER,
        )

    def remember(self, live: bool) -> None:
        """Store what the teacher thinks of the rows; live: it will be asked itself, too."""
        from kdag.teacher.writing import write_cache

        release()
        folder = self.scratch / "teacher" / "model"
        if live:
            manifest = folder.parent / "manifest.json"
            write_manifest(manifest, stage="check_models", params={}, inputs={}, outputs=[folder])
        settings = checked(TeacherCache, self.args.config["teacher_cache"])
        dtype = precision.settle(settings.dtype, "teacher_cache.dtype")
        write_cache(
            folder,
            {"train": self.frame},
            self.data,
            settings.model_copy(update={"dtype": dtype}),
            self.scratch / "cache" / "manifest.json",
            params={},
            inputs={"data": sha256_file(self.train.parent / "manifest.json")},
            gpus=self.args.gpus,
        )

    def seen(self, student: DistillationJob):
        """The teacher as a student's training will see it."""
        from kdag.teacher.cache import TeacherCache as Cached
        from kdag.teacher.live import LiveTeacher

        if student.teacher_dtype:
            dtype = precision.settle(student.teacher_dtype, "teacher_cache.dtype")
            return LiveTeacher(
                self.scratch / "teacher" / "manifest.json", dtype, self.data["vocabulary_size"]
            )
        return Cached(self.scratch / "cache" / "manifest.json", "train", self.frame, self.data)


def release() -> None:
    """Give back the memory of models that nobody holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    cli.run(recorded(one_process_per_gpu(main)), arguments(), memory="batch_size")
