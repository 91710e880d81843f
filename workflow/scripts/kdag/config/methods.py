"""Published methods by name: the keys of a strategy that each stands for, with its paper's own settings.

A row that has only a method's loss does not bear its name: `jsd` is the loss of GKD, and GKD is that loss on
the student's own answers. What a method has that cannot be said in these keys is not here: docs/strategies.md
says which methods are missing and why.
"""

from kdag.config.kinds import DATASET, STUDENT, TEACHER
from kdag.config.schedules import is_schedule
from kdag.config.section import suggestion

PURE = {"use_ce_loss": False, "temperature": 1.0}  # only the divergence, of the models as they are

METHODS = {
    # Kim and Rush 2016, arXiv 1606.07947. Theirs are found by beam search; here they are sampled.
    "seqkd": {"answers": TEACHER, "divergence": "none"},
    # Lin et al. 2020, arXiv 2009.07253, as MiniLLM and GKD compare with it: a constant share.
    "imitkd": {"divergence": "fkl", "student_share": 0.5, **PURE},
    # Agarwal et al. 2023, arXiv 2306.13649: lambda is student_share.
    "gkd": {"divergence": "jsd", "beta": 0.5, "student_share": 0.5, **PURE},
    # Ko et al. 2024, arXiv 2402.03898, and its code: skew 0.1; the share grows by 0.1 after an epoch whose
    # held-out loss is 0.1 higher than before; a buffer of 1,000 answers.
    "distillm": {
        "divergence": "skewed-fkl",
        "skew_lambda": 0.1,
        "student_share": {"from": 0.0, "to": 1.0, "over": "adaptive"},
        "sampling": {"replay": 1000},
        **PURE,
    },
    # Ko et al. 2025, arXiv 2503.07067, as its code is by default: both skews 0.1, the student answers before
    # each epoch. The curricula of the paper, of the skews and of the weight of the two, are off there.
    "distillm-2": {
        "divergence": "skewed-fkl",
        "student_divergence": "skewed-rkl",
        "skew_lambda": 0.1,
        "answers": {TEACHER: 0.5, STUDENT: 0.5},
        "pairs": True,
        "sampling": {"refresh": "epoch"},
        **PURE,
    },
    # Shing et al. 2025, arXiv 2501.16937: t from 0.4 to 1, alpha 5e-4, momentum 0.99.
    "taid": {"divergence": "taid", "taid_t": {"from": 0.4, "to": 1.0, "over": "adaptive"}, **PURE},
}


def with_method(strategy):
    """A strategy whose `method` has become the keys it stands for, under those that it says itself.

    ValueError, to be put behind its name, for a method that is not known.
    """
    if not isinstance(strategy, dict) or strategy.get("method") is None:
        return strategy
    name = strategy["method"]
    if name not in METHODS:
        raise ValueError(f".method: no method is called {name!r}{suggestion(str(name), METHODS)}")
    keys = {**METHODS[name], **strategy}
    if isinstance(strategy.get("sampling"), dict):  # of which it overrides some keys
        keys["sampling"] = {**METHODS[name].get("sampling", {}), **strategy["sampling"]}
    share = keys.pop("student_share", None)
    if "answers" not in strategy and share is not None:
        if is_schedule(share):
            keys["answers"] = {DATASET: 1, STUDENT: share}
        elif isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f".student_share: a number from 0 to 1 is needed, got {share!r}")
        else:
            keys["answers"] = {DATASET: 1 - share, STUDENT: share}
    elif "student_share" in strategy:
        raise ValueError(": either answers or student_share is needed")
    return keys
