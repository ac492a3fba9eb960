"""What the trained model says, for the proof of an export: the same numbers that the model itself computes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.jobs import ChatJob, ReferenceJob
from backpropagate_protocol.messages import Made
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.reference import (
    CONVERSATIONS,
    MAX_NEW_TOKENS,
    MAX_ROWS,
    Reference,
    read_reference,
    read_rows,
)
from backpropagate_protocol.spec import ModelSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS, run
from tests.backends.torch_session import make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

PROMPTS = ("What is the capital of France?", "Please add two and three.", "  odd \n blanks ")


class Kept:
    """What a backend tells the stage."""

    def __init__(self) -> None:
        self.signs: list[tuple[int, int, str]] = []
        self.notices: list[str] = []

    def advance(self, done: int = 0, total: int = 0, detail: str = "") -> None:
        self.signs.append((done, total, detail))

    def notice(self, text: str, level: str = "info") -> None:
        self.notices.append(text)


@pytest.fixture(scope="module")
def adapter(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(run(cpu, make_job(tiny, steps=12), rows, tmp_path_factory.mktemp("adapter")).done.adapter)


def refer(
    cpu: CpuBackend,
    model: Path,
    adapter: Path | None,
    out: Path,
    kept: Kept | None = None,
    *,
    four_bit: bool | None = None,
    prompts: tuple[str, ...] = PROMPTS,
) -> tuple[Made, Reference]:
    job = ReferenceJob(
        model=ModelSpec(name="tiny", path=str(model), load_in_4bit=four_bit),
        adapter=str(adapter) if adapter else None,
        prompts=prompts,
        out=str(out),
        backend="cpu",
    )
    return cpu.reference(job, kept or Kept()), read_reference(out)


def test_rows_and_answers_are_the_models_own(cpu: CpuBackend, tiny: Path, adapter: Path, tmp_path: Path) -> None:
    """Compared with one pass of transformers and PEFT over prompt and answer at once."""
    _, reference = refer(cpu, tiny, adapter, tmp_path / "reference")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), adapter).eval()
    for prompt in reference.prompts:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt.ids, *prompt.answer]])).logits[0].numpy()
        kept = np.frombuffer(read_rows(tmp_path / "reference", reference, prompt), np.float32)
        kept = kept.reshape(prompt.rows, reference.vocabulary)
        assert np.abs(kept - logits[prompt.first : prompt.first + prompt.rows]).max() < 1e-4
        best = logits[len(prompt.ids) - 1 : -1]
        assert best.argmax(1).tolist() == list(prompt.answer)
        two = np.sort(best, axis=1)[:, -2:]
        assert prompt.gaps == pytest.approx((two[:, 1] - two[:, 0]).tolist(), abs=1e-4)


def test_the_adapter_is_on_it(cpu: CpuBackend, tiny: Path, adapter: Path, tmp_path: Path) -> None:
    _, with_adapter = refer(cpu, tiny, adapter, tmp_path / "with")
    _, without = refer(cpu, tiny, None, tmp_path / "without")
    one, other = with_adapter.prompts[0], without.prompts[0]
    assert one.ids == other.ids
    assert read_rows(tmp_path / "with", with_adapter, one) != read_rows(tmp_path / "without", without, other)
    assert (len(with_adapter.adapter_digest), without.adapter_digest) == (64, "")


def test_a_template_that_writes_date_and_hour_writes_the_moment_that_it_is_given(
    cpu: CpuBackend, tiny: Path, tmp_path: Path
) -> None:
    dated = shutil.copytree(tiny, tmp_path / "dated")
    template = dated / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y %H:%M') }}" + template.read_text(encoding="utf-8"))
    for name in ("today", "tomorrow"):
        job = ReferenceJob(
            model=ModelSpec(name="tiny", path=str(dated)),
            adapter=None,
            prompts=PROMPTS[:1],
            out=str(tmp_path / name),
            backend="cpu",
            moment="2026-03-01T23:59:58+00:00",
        )
        cpu.reference(job, Kept())
        reference = read_reference(tmp_path / name)
        assert reference.moment == job.moment
        assert reference.prompts[0].text.startswith("01 Mar 2026 23:59")
        assert (reference.rendered[0].text or "").startswith("01 Mar 2026 23:59")


def test_it_stays_small_and_counts_what_it_kept(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    made, reference = refer(cpu, tiny, None, tmp_path / "reference")
    assert made.bytes == sum(path.stat().st_size for path in (tmp_path / "reference").iterdir())
    for prompt in reference.prompts:
        assert 0 < prompt.rows <= MAX_ROWS
        assert 0 < len(prompt.answer) <= MAX_NEW_TOKENS
        assert prompt.first + prompt.rows < len(prompt.ids) + len(prompt.answer)


def test_text_and_tokens_are_those_of_the_chat_template(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    _, reference = refer(cpu, tiny, None, tmp_path / "reference")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert [prompt.turns for prompt in reference.prompts] == [(("user", text),) for text in PROMPTS]
    for prompt in reference.prompts:
        turns = [{"role": role, "content": content} for role, content in prompt.turns]
        rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        assert list(prompt.ids) == rendered["input_ids"]
        assert prompt.text == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert [rendered.turns for rendered in reference.rendered] == list(CONVERSATIONS)
    assert all(rendered.text for rendered in reference.rendered)
    assert reference.special["eos"] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in reference.ends
    for probe in reference.probes:
        assert list(probe.ids) == tokenizer(probe.text, add_special_tokens=False)["input_ids"]


def test_a_model_without_a_template_is_asked_as_it_is(cpu: CpuBackend, tmp_path: Path) -> None:
    from tests.backends.tiny_model import make_model

    _, reference = refer(cpu, make_model(tmp_path / "plain", template=None), None, tmp_path / "reference")
    assert reference.template is None
    assert [prompt.text for prompt in reference.prompts] == list(PROMPTS)
    assert reference.rendered == ()


def test_a_template_that_refuses_a_conversation_is_noted_as_such(cpu: CpuBackend, tmp_path: Path) -> None:
    from tests.backends.tiny_model import TEMPLATE, make_model

    refuses = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}" + TEMPLATE
    _, reference = refer(cpu, make_model(tmp_path / "strict", template=refuses), None, tmp_path / "reference")
    assert [rendered.text is None for rendered in reference.rendered] == [False, True, True]


def test_the_tokenizer_beside_the_adapter_is_the_one_it_was_trained_with(
    cpu: CpuBackend, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    from tests.backends.tiny_model import TEMPLATE

    mine = shutil.copytree(adapter, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = TEMPLATE.replace("assistant\\n", "parrot\\n")
    tokenizer.save_pretrained(mine)
    _, reference = refer(cpu, tiny, mine, tmp_path / "reference")
    assert reference.template == tokenizer.chat_template
    assert reference.prompts[0].text.endswith("<|im_start|>parrot\n")


def test_a_model_trained_in_4_bit_is_asked_in_full_precision_and_that_is_told(
    cpu: CpuBackend, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    made, reference = refer(cpu, tiny, adapter, tmp_path / "reference", four_bit=True)
    assert (reference.precision, reference.stored) == ("fp32", "fp32")
    assert any("full-precision base" in note for note in made.notes)


def test_each_prompt_is_a_sign_of_progress(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    kept = Kept()
    refer(cpu, tiny, None, tmp_path / "reference", kept)
    assert [done for done, _, _ in kept.signs] == [0, 1, 2, 3]
    assert {total for _, total, _ in kept.signs} == {3}


def test_nothing_stays_of_a_reference_that_could_not_be_made(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="holds no adapter"):
        refer(cpu, tiny, tmp_path, tmp_path / "out" / "reference")
    assert not (tmp_path / "out").exists()


def test_a_repeated_prompt_is_asked_once(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    _, reference = refer(cpu, tiny, None, tmp_path / "reference", prompts=("a", "b", "a"))
    assert [prompt.turns[0][1] for prompt in reference.prompts] == ["a", "b"]


def test_a_model_larger_than_any_memory_is_not_loaded_and_that_is_told(
    cpu: CpuBackend, tiny: Path, tmp_path: Path
) -> None:
    """Its configuration promises 10^13 parameters; nobody looks at the weights."""
    import json

    huge = shutil.copytree(tiny, tmp_path / "huge")
    config = json.loads((huge / "config.json").read_text())
    config |= {"hidden_size": 1 << 20, "intermediate_size": 1 << 22, "num_attention_heads": 1 << 10}
    (huge / "config.json").write_text(json.dumps(config))
    kept = Kept()
    made, reference = refer(cpu, huge, None, tmp_path / "reference", kept)
    assert "GiB" in reference.why_not
    assert made.notes == (reference.why_not,)
    assert "proved by its weights" in kept.notices[0]
    assert [prompt.answer for prompt in reference.prompts] == [(), (), ()]
    assert all(prompt.ids for prompt in reference.prompts)
    assert (tmp_path / "reference" / "logits.f32").stat().st_size == 0


def test_a_conversation_streams_what_generate_would_say(cpu: CpuBackend, tiny: Path) -> None:
    held = cpu.chat(ChatJob(model=ModelSpec(name="tiny", path=str(tiny)), max_new_tokens=40))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    for messages in ([("user", PROMPTS[0])], [("user", "a"), ("assistant", "b"), ("user", PROMPTS[1])]):
        turns = [{"role": role, "content": content} for role, content in messages]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
        pieces = list(held.answer(messages))
        expected = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert "".join(pieces) == expected
        assert len(pieces) > 1


def test_a_conversation_without_a_model_or_with_a_foreign_adapter_is_refused(
    cpu: CpuBackend, adapter: Path, tmp_path: Path
) -> None:
    from tests.backends.tiny_model import make_model

    with pytest.raises(UserInputError, match="no model"):
        cpu.chat(ChatJob())
    narrow = ModelSpec(name="narrow", path=str(make_model(tmp_path / "narrow", hidden=32)))
    with pytest.raises(ModelLoadError, match="cannot be put on this model"):
        cpu.chat(ChatJob(model=narrow, adapter=str(adapter)))
