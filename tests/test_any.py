"""Any model, any rows, through the DAG: each experiment with another family and kind of file.

One goes on to the table; the others end with what a student scored, and go on in tests/faults/test_cases.py.
"""

import csv
import json
import shutil

import pandas as pd
import pytest
import tiny
import transformers
import yaml
from conftest import Project
from families import FAMILIES
from test_templates import tokenizer_of

ROWS = tiny.rows(32)
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"bird": "wren"}'}}


def messages_with_tools(folder):
    """OpenAI's messages: a system prompt, a call of a tool, its result, reasoning."""
    found = []
    for row in ROWS:
        talk = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": row["input"] or "nothing"},
            {"role": "assistant", "content": row["output"], "reasoning_content": "The tool has it."},
        ]
        found.append({"messages": talk, "tools": [TOOL], "id": len(found)})
    tiny.write_jsonl(folder / "rows.json", found)  # lines, as many exporters write them


def sharegpt(folder):
    talks = [
        [
            ("human", row["instruction"]),
            ("gpt", row["output"]),
            ("human", "And then?"),
            ("gpt", "\n" + row["output"]),
        ]
        for row in ROWS
    ]
    rows = [{"conversations": [{"from": who, "value": said} for who, said in talk]} for talk in talks]
    (folder / "rows.json").write_text(json.dumps(rows))


def comma_separated(folder):
    with open(folder / "rows.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "id"])
        writer.writerows([[row["instruction"], row["output"], number] for number, row in enumerate(ROWS)])


def alpaca(folder):
    """Instruction columns with system and history, in Parquet, with a picture next to them."""
    further = {"system": "Be brief.", "history": [["Hi", "Hello."]], "image": b"\x89PNG\xff"}
    pd.DataFrame([row | further for row in ROWS]).to_parquet(folder / "rows.parquet")


def models(folder, family: str, architecture: str, **further) -> None:
    """teacher/ and student/ of an architecture, with a tokenizer and a template in the style of a family."""
    tokenizer = tokenizer_of(FAMILIES[family])
    ends = tokenizer.convert_tokens_to_ids(list(FAMILIES[family].ends))
    for seed, (name, hidden) in enumerate([("teacher", 64), ("student", 32)]):
        transformers.set_seed(seed)
        config = getattr(transformers, f"{architecture}Config")(
            vocab_size=len(tokenizer) + 8,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=hidden // 4,
            max_position_embeddings=1024,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends,
            pad_token_id=0,
            **further,
        )
        getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


CAP = {"final_logit_softcapping": 5.0}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERIMENTS = {
    # name: rows, their file, keys of `data`, family, architecture, its settings, `chat`, text of every prompt
    "qwen3 moe": (
        messages_with_tools, "rows.json", {}, "qwen3", "Qwen3Moe", MOE, {"thinking": "keep"}, "assistant\n",
    ),
    "gemma 2": (
        sharegpt, "rows.json", {"learn": "last"}, "gemma-2", "Gemma2", CAP, {}, "model\n",
    ),
    "llama 3.2": (
        alpaca, "rows.parquet", {}, "llama-3.2", "Llama", {}, {"date": "2025-12-24"},
        "Today Date: 24 Dec 2025",
    ),
    "granite and a base student": (
        comma_separated,
        "rows.csv",
        {"instruction_field": "question", "output_field": "answer"},
        "granite",
        "Granite",
        {"logits_scaling": 4.0},
        {},
        "You are Granite.",
    ),
}  # fmt: skip


EVAL = "results/tiny/eval"
WANTED = {  # how far an experiment goes; check_models is a small rehearsal of every stage
    "table": [],
    "student": [f"{EVAL}/{name}" for name in ("teacher-untrained/samples.jsonl", "fkl-seed0/fidelity.json")],
    "check": [f"{EVAL}/teacher-untrained/samples.jsonl", "check_models"],
}
FAR = {
    "qwen3 moe": "student",
    "granite and a base student": "student",
    "gemma 2": "check",
    "llama 3.2": "check",
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_through_the_dag(name, tmp_path):
    through_the_dag(name, tmp_path, FAR[name])


def through_the_dag(name: str, folder, far: str) -> None:
    """far: of WANTED."""
    write, file, data, family, architecture, further, chat, prompted = EXPERIMENTS[name]
    project = Project(folder)
    made = project.folder / "tiny"
    shutil.rmtree(made / "teacher")
    shutil.rmtree(made / "student")
    models(made, family, architecture, **further)
    write(made)
    if "base student" in name:
        (made / "student" / "chat_template.jinja").unlink()
    raw = tiny.configuration(made)
    raw["data"] |= {"path": str(made / file), "train_rows": 16, "heldout_rows": 4, "max_tokens": 512, **data}
    raw |= {"chat": chat, "strategies": {"fkl": {"divergence": "fkl"}}}
    raw["evaluation"] |= {"limit": 2}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    project.snakemake("--", *WANTED[far])

    if far == "table":
        table = (project.results / "report" / "table.md").read_text()
        assert "missing" not in table and "student - fkl" in table
    samples = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(project.results.glob("eval/*/samples.jsonl"))
    ]
    assert len(samples) == (5 if far == "table" else 1)
    rendered = [[sample["rendered_prompt"] for sample in row] for row in samples]
    assert all(row == rendered[0] for row in rendered) and prompted in rendered[0][0]
    train = pd.read_parquet(project.results / "data" / "train.parquet")
    chat_json = json.loads((project.results / "data" / "chat.json").read_text())
    for ids, mask in zip(train["input_ids"], train["response_mask"], strict=True):
        learned = [t for t, learn in zip(ids, mask, strict=True) if learn]
        assert learned and learned[-1] in chat_json["end_ids"]
    if far == "check":
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        project.results / "students" / "fkl" / "seed0" / "model"
    )
    assert tokenizer.chat_template == chat_json["template"], "who opens the student has the template"
    fidelity = json.loads((project.results / "eval" / "fkl-seed0" / "fidelity.json").read_text())
    assert 0 < fidelity["forward_kl"] < 20


def test_the_cases_need_no_day(tmp_path):
    """What a template says of today does not depend on the clock."""
    from datetime import date

    from kdag.config.chat import Chat
    from kdag.data import template
    from kdag.data.chat import settle

    tokenizer = tokenizer_of(FAMILIES["llama-3.2"])
    chat = settle(Chat(), tokenizer, tokenizer, {tokenizer.eos_token_id})
    prompt = template.prompt_text(tokenizer, chat, [{"role": "user", "content": "Hi"}])
    assert "26 Jul 2024" in prompt and f"{date.today():%d %b %Y}" not in prompt
