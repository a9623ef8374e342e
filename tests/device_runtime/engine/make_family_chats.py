"""Write tests/data/family_chats.json: six conversations, as transformers renders them with templates of every family.

    pip install transformers==5.24.0 jinja2==3.1.6
    PYTHONPATH=. python tests/device_runtime/engine/make_family_chats.py

The templates are written here after what the families' own ones do: where the system message goes, which roles may
follow which, what is trimmed, how thinking is switched off, what happens to tools.
"""

# ruff: noqa: E501  (templates)

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parents[2] / "data"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
_TURNS = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant') }}{% endif %}"
)

TEMPLATES = {
    # Qwen2.5: a system message of its own where none is given
    "qwen2": """
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helper.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) or m.role == 'assistant' %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
    # Qwen3: thoughts of earlier turns go, and an empty thought switches thinking off
    "qwen3": """
{%- set ns = namespace(last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- if m.role == 'user' and ns.last == messages|length - 1 %}{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    # Mistral: the system message goes before the first user message; roles take turns
    "mistral": "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content.strip() + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}" + _TURNS + "{% if loop.first %}{% set text = system ~ m.content %}{% else %}"
    "{% set text = m.content %}{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + eos_token }}{% endif %}{% endfor %}",
    # Gemma 1 and 2: no system message; the assistant is called model
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}" + _TURNS + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    # Phi-3: one line for each role, none for others
    "phi3": "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    # Llama 3: trimmed, header tokens; tools are spoken of by another role
    "llama3": "{% for m in messages %}{% set text = '<|start_header_id|>' + (m.role if m.role != 'tool' else 'ipython')"
    " + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    # SmolLM3: a mode in the system message, switched off by a flag or by a word in it
    "smollm3": "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if '/no_think' in system %}{% set mode = '/no_think' %}{% elif enable_thinking %}{% set mode = '/think' %}"
    "{% else %}{% set mode = '/no_think' %}{% endif %}{{ '<|im_start|>system\\nReasoning: ' + mode + '\\n\\n' }}"
    "{{ system.replace('/no_think', '').rstrip() }}{{ '<|im_end|>\\n' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if mode == '/no_think' %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}{% endif %}",
    # EXAONE 4: thinking is off unless asked for
    "exaone4": "{% for m in messages %}{{ '[|' + m.role + '|]\\n' + m.content }}{{ '[|endofturn|]\\n' if m.role != 'user' "
    "else '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is true %}{{ '<think>\\n' }}"
    "{% else %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
    # StableLM 2, Zephyr
    "stablelm": "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\\n' + m.content + eos_token }}"
    "{% elif m.role == 'system' %}{{ '<|system|>\\n' + m.content + eos_token }}{% elif m.role == 'assistant' %}"
    "{{ '<|assistant|>\\n' + m.content + eos_token }}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '<|assistant|>' }}{% endif %}\n{% endfor %}",
}
CONVERSATIONS = {
    "system": [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " Is 38 °C too hot?\n"}],
    "tools": [
        {"role": "user", "content": "How warm is hall 3?"},
        {"role": "assistant", "content": '<tool_call>\n{"name": "read", "arguments": {"hall": 3}}\n</tool_call>'},
        {"role": "tool", "content": '{"temp_c": 38.5}'},
        {"role": "tool", "content": '{"bar": 2}'},
    ],
    "several turns": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nhello yourself"},
        {"role": "user", "content": "naïve 温度 🙂 & <b>"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nyes"},
        {"role": "user", "content": "again"},
    ],
    "empty system": [{"role": "system", "content": ""}, {"role": "user", "content": "hello"}],
    "two users in a row": [{"role": "user", "content": "hello"}, {"role": "user", "content": "there"}],
    "thinking off": [{"role": "user", "content": "hello"}],
}


def main() -> None:
    """Write the file."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(DATA / "checkpoints" / "gqa-tied" / "tokenizer.json"), **SPECIAL
    )
    expected: dict[str, dict[str, str]] = {}
    for name, template in TEMPLATES.items():
        for kind, messages in CONVERSATIONS.items():
            variables = {"enable_thinking": False} if kind == "thinking off" else {}
            try:
                text = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True, **variables
                )
                expected[f"{name} / {kind}"] = {"text": text}
            except TemplateError as error:
                expected[f"{name} / {kind}"] = {"refused": str(error)}
    found = {"special": SPECIAL, "templates": TEMPLATES, "conversations": CONVERSATIONS, "expected": expected}
    text = json.dumps(found, ensure_ascii=False, indent=1)
    (DATA / "family_chats.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
