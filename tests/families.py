"""Chat templates in the style of many families, each next to what it should render, told in Python.

A family: its template, its special tokens (the first one begins a text, if it is named bos), the tokens that end
an answer, and `says(turns, system)`: [(all that stands before an answer, the answer with its end)], one for each
answered turn. Written for these tests after the families' own templates; none is a copy.
"""

from collections.abc import Callable
from dataclasses import dataclass

DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Family:
    template: str
    special: tuple[str, ...]
    ends: tuple[str, ...]
    says: Callable
    bos: str | None = None
    system: bool = True  # does it know a system turn?
    metaspace: bool = False  # does its tokenizer put a space before the first word?
    named: bool = False  # is it one of several templates of its tokenizer?
    apart: bool = False  # are earlier turns told otherwise than the last one?


def chatml(default=None, closed="", end="<|im_end|>"):
    """closed: what generation puts behind the opening."""

    def says(turns, system=None):
        system = system or default
        text = f"<|im_start|>system\n{system}{end}\n" if system else ""
        found = []
        for asked, answered in turns:
            text += f"<|im_start|>user\n{asked}{end}\n<|im_start|>assistant\n"
            found.append((text + closed, f"{answered}{end}"))
            text += f"{answered}{end}\n"
        return found

    return says


CHATML = """{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- elif DEFAULT %}{{ '<|im_start|>system\\n' + DEFAULT + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{%- if message.role != 'system' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

QWEN3 = """{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}{{ '<|im_start|>system\\n' + system + '\\n\\n' + (tools | map('tojson') | join('\\n')) + '<|im_end|>\\n' }}
{%- elif system %}{{ '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{%- endif %}
{%- set last = namespace(user=0) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{%- set content = message.content %}{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > last.user %}{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{- content }}{%- endif %}
{%- for call in message.tool_calls or [] %}{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' +
 (call.function.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}OPENED{%- endif %}"""
SWITCH = (
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
)


def llama3(head):
    def says(turns, system=None):
        text = f"<|begin_of_text|>{head(system)}"
        found = []
        for asked, answered in turns:
            text += f"<|start_header_id|>user<|end_header_id|>\n\n{asked.strip()}<|eot_id|>"
            text += "<|start_header_id|>assistant<|end_header_id|>\n\n"
            found.append((text, f"{answered.strip()}<|eot_id|>"))
            text += f"{answered.strip()}<|eot_id|>"
        return found

    return says


def llama_system(text):
    return f"<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>"


LLAMA3 = """{{- bos_token }}HEAD
{%- for message in messages %}{%- if message.role != 'system' %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SYSTEM_IF_ANY = """{%- if messages[0].role == 'system' %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' +
 messages[0].content | trim + '<|eot_id|>' }}{%- endif %}"""
DATED = """{%- if not date_string is defined %}{%- if strftime_now is defined %}
{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"""
FIXED = "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
KNOWLEDGE = """{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + date_string +
 '\\n\\n' + system + '<|eot_id|>' }}"""


def knowing(system):
    return llama_system(f"Cutting Knowledge Date: December 2023\nToday Date: {DATE}\n\n{system or ''}")


def bracketed(
    first=lambda asked, system: asked, space=" ", lead="", begin="[INST] ", close=" [/INST]", again="<s>"
):
    """Llama 2's and Mistral's: the opening stands before each question or once."""

    def says(turns, system=None):
        text, found = "", []
        for number, (asked, answered) in enumerate(turns):
            asked = first(asked, system) if number == 0 else asked
            text += (
                ("<s>" if number == 0 else again) + (lead if number == 0 else "") + f"{begin}{asked}{close}"
            )
            found.append((text, f"{space}{answered}{space if again else ''}</s>"))
            text += f"{space}{answered}{space if again else ''}</s>"
        return found

    return says


LLAMA2 = """{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{%- for message in turns %}
{%- if message.role == 'user' %}{{- bos_token + '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- else %}{{- ' ' + message.content + ' ' + eos_token }}{%- endif %}{%- endfor %}"""
MISTRAL = """{%- if messages[0].role == 'system' %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}
{{- bos_token }}{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
{%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}{%- endfor %}"""
MISTRAL_SYSTEM = """{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}
{%- elif message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}"""


def mistral_answers(turns, system=None):
    text, found = "<s>", []
    for asked, answered in turns:
        text += f"[INST] {asked} [/INST]"
        found.append((text, f" {answered}</s>"))
        text += f" {answered}</s>"
    return found


def mistral_system(turns, system=None):
    text, found = "<s>" + (f"[SYSTEM_PROMPT]{system}[/SYSTEM_PROMPT]" if system else ""), []
    for asked, answered in turns:
        text += f"[INST]{asked}[/INST]"
        found.append((text, f"{answered}</s>"))
        text += f"{answered}</s>"
    return found


def marked(begin="", user="", assistant="", end="", after="", system=None, folded=None, trim=False):
    """Turns between markers. system: how a system turn is told; folded: before the first question instead."""

    def says(turns, prompt=None):
        text, found = begin, []
        if prompt and system:
            text += system.format(prompt)
        for number, (asked, answered) in enumerate(turns):
            asked = folded.format(prompt, asked) if folded and prompt and number == 0 else asked
            text += f"{user}{asked.strip() if trim else asked}{after}{assistant}"
            answered = answered.strip() if trim else answered
            found.append((text, f"{answered}{end}"))
            text += f"{answered}{end}{after.removeprefix(end)}"
        return found

    return says


GEMMA2 = """{{- bos_token }}{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""
GEMMA3 = """{{- bos_token }}{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if first else messages %}
{%- for message in turns %}{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""
PHI3 = """{%- for message in messages %}{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}"""
PHI4 = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}"""
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
DEEPSEEK = """{{- bos_token }}{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}
{%- for message in messages %}{%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' %}{%- set content = message.content %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}OPENED{%- endif %}"""
DEEPSEEK_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", USER, ASSISTANT)
R1 = DEEPSEEK.replace("OPENED", "{{- '<think>\\n' }}")
GLM = """[gMASK]<sop>{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""
GRANITE = """{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- else %}
{%- set system = 'Knowledge Cutoff Date: April 2024.\\nToday\\'s Date: ' + strftime_now('%B %d, %Y') + '.\\nYou are Granite.' %}
{%- endif %}{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- for message in messages %}{%- if message.role != 'system' %}
{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + '<|end_of_text|>\\n' }}
{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""


def granite(turns, system=None):
    system = system or "Knowledge Cutoff Date: April 2024.\nToday's Date: July 26, 2024.\nYou are Granite."
    text, found = f"<|start_of_role|>system<|end_of_role|>{system}<|end_of_text|>\n", []
    for asked, answered in turns:
        text += f"<|start_of_role|>user<|end_of_role|>{asked}<|end_of_text|>\n"
        text += "<|start_of_role|>assistant<|end_of_role|>"
        found.append((text, f"{answered}<|end_of_text|>"))
        text += f"{answered}<|end_of_text|>\n"
    return found


SMOL3 = """{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}
{{- '<|im_start|>system\\n## Metadata\\n\\nToday Date: ' + strftime_now('%d %B %Y') + '\\nReasoning Mode: ' + mode + '\\n\\n' }}
{{- (messages[0].content if messages[0].role == 'system' else 'You are SmolLM.') + '<|im_end|>\\n' }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') + message.content.lstrip('\\n') +
 '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') }}
{%- endif %}"""


def smol3(turns, system=None):
    head = "## Metadata\n\nToday Date: 26 July 2024\nReasoning Mode: /no_think\n\n" + (
        system or "You are SmolLM."
    )
    text, found = f"<|im_start|>system\n{head}<|im_end|>\n", []
    for asked, answered in turns:
        text += f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"
        found.append((text, f"{answered}<|im_end|>"))
        text += f"{answered}<|im_end|>\n"
    return found


OLMO = """{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'assistant' %}{{- '<|assistant|>\\n' + message.content + eos_token + ('' if loop.last else '\\n') }}
{%- else %}{{- '<|' + message.role + '|>\\n' + message.content + '\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""


def olmo(turns, system=None):
    text, found = "<|endoftext|>" + (f"<|system|>\n{system}\n" if system else ""), []
    for asked, answered in turns:
        text += f"<|user|>\n{asked}\n<|assistant|>\n"
        found.append((text, f"{answered}<|endoftext|>"))
        text += f"{answered}<|endoftext|>\n"
    return found


START, END = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
COMMAND_R = """{{- bos_token }}{%- for message in messages %}
{%- set role = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[message.role] %}
{{- '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' + message.content + '<|END_OF_TURN_TOKEN|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}"""
ZEPHYR = """{%- for message in messages %}{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""
ALPACA = """{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content + '\\n\\n' }}
{%- elif message.role == 'user' %}{{- '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else %}{{- '### Response:\\n' + message.content + eos_token + '\\n\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}"""


def nemotron_system(system):
    return llama_system(f"{system or ''}\n\n/no_think".strip())


NEMOTRON = """{{- bos_token }}{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if enable_thinking is defined and not enable_thinking %}{%- set system = (system + '\\n\\n/no_think') | trim %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}{%- if message.role != 'system' %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + content | trim + '<|eot_id|>' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"""

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CLOSED = "<think>\n\n</think>\n\n"
FAMILIES = {
    "chatml": Family(CHATML.replace("DEFAULT", "''"), IM, ("<|im_end|>",), chatml()),
    "qwen2.5": Family(
        CHATML.replace("DEFAULT", repr(QWEN_SYSTEM)), IM, ("<|im_end|>", "<|endoftext|>"), chatml(QWEN_SYSTEM)
    ),
    "qwen3": Family(
        QWEN3.replace("OPENED", SWITCH + "{%- endif %}"),
        IM,
        ("<|im_end|>",),
        chatml(closed=CLOSED),
        apart=True,
    ),
    "qwen3.5": Family(
        QWEN3.replace("OPENED", SWITCH + "{%- else %}{{- '<think>\\n' }}{%- endif %}"),
        IM,
        ("<|im_end|>",),
        chatml(closed=CLOSED),
        apart=True,
    ),
    "llama-2": Family(
        LLAMA2,
        ("<s>", "</s>"),
        ("</s>",),
        bracketed(lambda asked, system: f"<<SYS>>\n{system}\n<</SYS>>\n\n{asked}" if system else asked),
        bos="<s>",
        metaspace=True,
    ),
    "llama-3": Family(
        LLAMA3.replace("HEAD", SYSTEM_IF_ANY),
        LLAMA3_SPECIAL,
        ("<|eot_id|>", "<|end_of_text|>"),
        llama3(lambda system: llama_system(system) if system else ""),
        bos="<|begin_of_text|>",
    ),
    "llama-3.1": Family(
        LLAMA3.replace("HEAD", FIXED + KNOWLEDGE),
        LLAMA3_SPECIAL,
        ("<|eot_id|>",),
        llama3(knowing),
        bos="<|begin_of_text|>",
    ),
    "llama-3.2": Family(
        LLAMA3.replace("HEAD", DATED + KNOWLEDGE),
        LLAMA3_SPECIAL,
        ("<|eot_id|>",),
        llama3(knowing),
        bos="<|begin_of_text|>",
    ),
    "mistral": Family(
        MISTRAL, ("<s>", "</s>"), ("</s>",), mistral_answers, bos="<s>", system=False, metaspace=True
    ),
    "mistral-system": Family(
        MISTRAL_SYSTEM,
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        ("</s>",),
        mistral_system,
        bos="<s>",
    ),
    "gemma-2": Family(
        GEMMA2,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        marked(
            "<bos>",
            "<start_of_turn>user\n",
            "<start_of_turn>model\n",
            "<end_of_turn>",
            "<end_of_turn>\n",
            trim=True,
        ),
        bos="<bos>",
        system=False,
    ),
    "gemma-3": Family(
        GEMMA3,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        marked(
            "<bos>",
            "<start_of_turn>user\n",
            "<start_of_turn>model\n",
            "<end_of_turn>",
            "<end_of_turn>\n",
            folded="{}\n\n{}",
            trim=True,
        ),
        bos="<bos>",
    ),
    "phi-3": Family(
        PHI3,
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        ("<|endoftext|>", "<|end|>"),
        marked("", "<|user|>\n", "<|assistant|>\n", "<|end|>", "<|end|>\n", system="<|system|>\n{}<|end|>\n"),
    ),
    "phi-4": Family(
        PHI4,
        (*IM, "<|im_sep|>"),
        ("<|im_end|>",),
        marked(
            "",
            "<|im_start|>user<|im_sep|>",
            "<|im_start|>assistant<|im_sep|>",
            "<|im_end|>",
            "<|im_end|>",
            system="<|im_start|>system<|im_sep|>{}<|im_end|>",
        ),
    ),
    "deepseek-v3": Family(
        DEEPSEEK.replace("OPENED", ""),
        DEEPSEEK_SPECIAL,
        (DEEPSEEK_SPECIAL[1],),
        marked(DEEPSEEK_SPECIAL[0], USER, ASSISTANT, DEEPSEEK_SPECIAL[1], system="{}"),
        bos=DEEPSEEK_SPECIAL[0],
    ),
    "deepseek-r1": Family(
        R1,
        DEEPSEEK_SPECIAL,
        (DEEPSEEK_SPECIAL[1],),
        lambda turns, system=None: [
            (f"{prompt}<think>\n\n</think>\n\n", answer)
            for prompt, answer in marked(
                DEEPSEEK_SPECIAL[0], USER, ASSISTANT, DEEPSEEK_SPECIAL[1], system="{}"
            )(turns, system)
        ],
        bos=DEEPSEEK_SPECIAL[0],
        apart=True,
    ),
    "glm-4": Family(
        GLM,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        ("<|endoftext|>", "<|user|>"),
        marked("[gMASK]<sop>", "<|user|>\n", "<|assistant|>\n", "", system="<|system|>\n{}"),
    ),
    "granite": Family(
        GRANITE, ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), ("<|end_of_text|>",), granite
    ),
    "smollm2": Family(
        CHATML.replace("DEFAULT", "'You are a helpful AI assistant named SmolLM, trained by Hugging Face'"),
        IM,
        ("<|im_end|>",),
        chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    ),
    "smollm3": Family(SMOL3, IM, ("<|im_end|>",), smol3),
    "olmo-2": Family(OLMO, ("<|endoftext|>", "<|pad|>"), ("<|endoftext|>",), olmo, bos="<|endoftext|>"),
    "command-r": Family(
        COMMAND_R,
        ("<BOS_TOKEN>", START, END, "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        (END,),
        marked(
            "<BOS_TOKEN>",
            f"{START}<|USER_TOKEN|>",
            f"{START}<|CHATBOT_TOKEN|>",
            END,
            END,
            system=START + "<|SYSTEM_TOKEN|>{}" + END,
        ),
        bos="<BOS_TOKEN>",
        named=True,
    ),
    "hermes": Family(CHATML.replace("DEFAULT", "''"), IM, ("<|im_end|>",), chatml(), named=True),
    "zephyr": Family(
        ZEPHYR,
        ("<s>", "</s>"),
        ("</s>",),
        marked("", "<|user|>\n", "<|assistant|>\n", "</s>", "</s>\n", system="<|system|>\n{}</s>\n"),
        metaspace=True,
    ),
    "alpaca": Family(
        ALPACA,
        ("<s>", "</s>"),
        ("</s>",),
        lambda turns, system=None: [
            (
                (f"{system}\n\n" if system else "")
                + "".join(f"### Instruction:\n{q}\n\n### Response:\n{a}</s>\n\n" for q, a in turns[:number])
                + f"### Instruction:\n{turns[number][0]}\n\n### Response:\n",
                f"{turns[number][1]}</s>",
            )
            for number in range(len(turns))
        ],
    ),
    "nemotron": Family(
        NEMOTRON, LLAMA3_SPECIAL, ("<|eot_id|>",), llama3(nemotron_system), bos="<|begin_of_text|>"
    ),
}
