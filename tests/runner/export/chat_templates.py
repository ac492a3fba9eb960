"""Chat templates of the shapes that models have, written for tests, and a GGUF that carries one."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from backpropagate_runner.export.ollama_template import Tokens

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = Tokens(eos="<|im_end|>", control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))

# A system message of its own where the user gives none.
QWEN_LIKE = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helper.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if (m.role == 'user') or (m.role == 'system' and not loop.first) or (m.role == 'assistant' and not m.tool_calls) %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

# bos in the template, headers, a date, and a system block that is always there.
LLAMA_LIKE = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA_TOKENS = Tokens(
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    adds_bos=True,
    control=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
)

PHI_LIKE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_TOKENS = Tokens(bos="<s>", eos="<|endoftext|>", eot="<|end|>", control=("<|user|>", "<|assistant|>", "<|end|>"))

# The system message goes before the last user turn, wherever that is.
MISTRAL_LIKE = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for m in rest %}"
    "{%- if m['role'] == 'user' %}{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL_TOKENS = Tokens(bos="<s>", eos="</s>", adds_bos=True, control=("<s>", "</s>", "[INST]", "[/INST]"))

GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_TOKENS = Tokens(bos="<bos>", eos="<end_of_turn>", adds_bos=True, control=("<start_of_turn>", "<end_of_turn>"))


def write_gguf(path: Path, template: str | None, *, adds_bos: bool | None = None, pre: str = "qwen2") -> Path:
    """A GGUF with a vocabulary of five tokens and one tensor."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["a", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"])
    writer.add_token_types([1, 3, 3, 3, 4])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(3)
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.zeros((5, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
