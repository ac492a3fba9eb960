"""Makes fixtures/tiny-base: a Qwen2-shaped model of two million weights that chats a little, for tests and first steps.

    python scripts/make_tiny_base.py            writes fixtures/tiny-base
    python scripts/make_tiny_base.py --check    makes it again elsewhere and compares it, byte for byte

Everything is seeded and runs on one thread, so the same script on the same versions of torch, transformers and
tokenizers, on the same kind of CPU, gives the same bytes; another CPU may round sums otherwise and end at other, equally
good weights. It takes a few minutes on one core and needs no network.

Sizes are multiples of 256 (hidden 256, inner 512), so that the block quantisations of GGUF fit later.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a second thread would change the order of sums
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from tiny_corpus import Conversation, conversations

SEED = 20
VOCABULARY = 1280
CONTEXT = 1024
STEPS = 900
BATCH = 32
PEAK_RATE = 3e-3

END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML. What stands between the generation markers carries loss: an answer and the token that ends it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- message['content'] + '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- message['content'] + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

CARD = """\
---
license: mit
language: en
---
# tiny-base

A Qwen2-shaped language model with {parameters:,} weights ({layers} layers, hidden size {hidden}, {vocabulary} tokens,
context {context}), made by `scripts/make_tiny_base.py` from sentences that the script itself composes. It answers simple
questions about capitals, colours, animals and small sums, greets politely, and knows nothing else.

It is there so that the whole way from data to a tuned model can be walked in a minute, offline, on any machine:
`backprop train --model tiny`, the tests, and the drills use it. It is no use for anything else.

Format: ChatML with generation markers; `<|im_end|>` ends a turn, `<|endoftext|>` pads. Weights are stored as bfloat16.
"""


def train_tokenizer(talks: list[Conversation]) -> Qwen2Tokenizer:
    """Byte-level BPE, learnt behind Qwen2's own splitting rules.

    AutoTokenizer puts those rules in place for every model of type qwen2, whatever tokenizer.json says; learning with
    other rules would give ids that depend on who loads the file.
    """
    rules = Qwen2Tokenizer().backend_tokenizer
    raw = Tokenizer(models.BPE())
    raw.normalizer, raw.pre_tokenizer, raw.decoder = rules.normalizer, rules.pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in (END_OF_TEXT, TURN, END_OF_TURN)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator((content for talk in talks for _, content in talk), trainer)
    learnt = json.loads(raw.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        unk_token=None,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN],
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def encode(tokenizer: Qwen2Tokenizer, talk: Conversation) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in talk]
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    return ids


def batches(rows: list[list[int]], pad: int) -> list[torch.Tensor]:
    """Rows of like length together, so that little is padding; the batches in random order. Shapes (BATCH, length)."""
    rows = sorted(rows, key=len)
    groups = [rows[i : i + BATCH] for i in range(0, len(rows) - BATCH + 1, BATCH)]
    Random(SEED).shuffle(groups)
    return [torch.tensor([row + [pad] * (len(group[-1]) - len(row)) for row in group]) for group in groups]


def pretrain(tokenizer: Qwen2Tokenizer, talks: list[Conversation]) -> Qwen2ForCausalLM:
    pad = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            use_cache=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05, foreach=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK_RATE, total_steps=STEPS, pct_start=0.08)
    began = time.monotonic()
    for step, ids in enumerate(batches([encode(tokenizer, talk) for talk in talks], pad), start=1):
        labels = ids.masked_fill(ids == pad, -100)
        loss = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == 1:
            print(f"step {step}/{STEPS}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True)
    return model.eval()


def make(folder: Path) -> None:
    """Writes the whole model folder."""
    talks = conversations(STEPS * BATCH, SEED)
    tokenizer = train_tokenizer(talks)
    model = pretrain(tokenizer, talks)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = model.config
    (folder / "README.md").write_text(
        CARD.format(
            parameters=model.num_parameters(),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        ),
        encoding="utf-8",
        newline="\n",
    )


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> int:
    committed = Path(__file__).resolve().parent.parent / "fixtures" / "tiny-base"
    parser = argparse.ArgumentParser(description="make the tiny base model")
    parser.add_argument("--out", type=Path, default=committed)
    parser.add_argument("--check", action="store_true", help="make it again and compare with the committed one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if not options.check:
        make(options.out)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        ours, theirs = digests(Path(temporary)), digests(committed)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    print(f"different: {', '.join(different)}" if different else "the same, byte for byte")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
