"""The writer: whole files, in bounded memory, with no number lost."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backpropagate_runner.export.gguf_tensors import Computed, Tensor, pairs
from backpropagate_runner.export.gguf_write import Head, safe_name, write
from tests.runner.export.gguf_models import Contents, read

_MIB = 1 << 20


def written(
    path: Path, tensors: list[Tensor], memory: int = _MIB
) -> tuple[Contents, list[str], list[tuple[int, int, str]]]:
    told: list[tuple[int, int, str]] = []
    digest, notes = write(path, Head("llama", "x"), tensors, lambda *sign: told.append(sign), memory)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return read(path), notes, told


def numbers(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(5).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("memory", [1, 40_000, 64 * _MIB])
def test_the_file_does_not_depend_on_how_much_is_held_at_once(tmp_path: Path, memory: int) -> None:
    values = numbers(96, 64)
    tensors = [
        Tensor("blk.0.attn_q.weight", (96, 64), type_, Computed(values), step=24, arrange=pairs(24))
        for type_ in ("F32", "F16", "BF16", "Q8_0")
    ]
    tensors = [Tensor(f"{n}.{t.name}", t.shape, t.type, t.source, t.step, t.arrange) for n, t in enumerate(tensors)]
    whole, _, _ = written(tmp_path / "whole.gguf", tensors, 1 << 30)
    pieces, _, told = written(tmp_path / "pieces.gguf", tensors, memory)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()
    assert pieces.tensors.keys() == whole.tensors.keys()
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][0] == told[-1][1] == sum(tensor.bytes for tensor in tensors)


def test_halves_that_turn_together_become_neighbours() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(12, 1)
    assert pairs(6)(rows).reshape(-1).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_numbers_too_large_for_half_precision_keep_their_tensor_in_bfloat16(tmp_path: Path) -> None:
    small, large = numbers(64, 32), numbers(64, 32)
    large[50, 3] = 1e6
    tensors = [
        Tensor("a.weight", (64, 32), "F16", Computed(small)),
        Tensor("b.weight", (64, 32), "F16", Computed(large), step=8),
        Tensor("c.weight", (64, 32), "F16", Computed(small)),
    ]
    made, notes, told = written(tmp_path / "made.gguf", tensors, memory=4096)
    assert [made.tensors[name][0] for name in ("a.weight", "b.weight", "c.weight")] == ["F16", "BF16", "F16"]
    kept = made.tensors["b.weight"][2].view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_allclose(kept.view(np.float32).reshape(64, 32), large, rtol=2**-8)
    np.testing.assert_array_equal(made.tensors["c.weight"][2], small.astype(np.float16))
    assert "kept as bf16" in notes[0]
    assert "b.weight" in notes[0]
    assert told[-1][0] == told[-1][1]


def test_what_is_infinite_already_is_no_overflow(tmp_path: Path) -> None:
    values = numbers(4, 32)
    values[0, 0] = np.inf
    made, notes, _ = written(tmp_path / "made.gguf", [Tensor("a.weight", (4, 32), "F16", Computed(values))])
    assert (made.tensors["a.weight"][0], notes) == ("F16", [])


def test_every_tensor_begins_on_a_boundary(tmp_path: Path) -> None:
    tensors = [Tensor(f"{n}.weight", (n,), "F32", Computed(numbers(n))) for n in (1, 3, 9, 2)]
    made, _, _ = written(tmp_path / "made.gguf", tensors)
    for tensor in tensors:
        np.testing.assert_array_equal(made.tensors[tensor.name][2], tensor.source.rows(0, tensor.shape[0]))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("my-model", "my-model"),
        ("Phi-3.5", "Phi 3.5"),
        ("x-phi3-phi-3", "x-phi 3-phi 3"),
        ("phi-4", "phi-4"),
        ("", "model"),
    ],
)
def test_no_name_makes_llama_cpp_look_for_tokens_of_phi_3(name: str, safe: str) -> None:
    assert safe_name(name) == safe


_LARGE = """
import re, sys
from pathlib import Path
import numpy as np
from backpropagate_runner.export.gguf_tensors import Tensor
from backpropagate_runner.export.gguf_write import Head, write

class Endless:
    # rows that are in no memory until they are asked for
    dtype = "F32"

    def rows(self, start, stop):
        return np.full((stop - start, 1024), start, dtype=np.float32)

    stored = rows

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

peak, before = 0, 0
def advance(done, total, name):
    global peak
    peak = max(peak, held())

small = Tensor("a.weight", (64, 1024), sys.argv[2], Endless())
write(Path(sys.argv[1]), Head("llama", "x"), [small], advance, 16 << 20)
before = peak
large = Tensor("a.weight", (32768, 1024), sys.argv[2], Endless())
write(Path(sys.argv[1]), Head("llama", "x"), [large], advance, 16 << 20)
print((peak - before) << 10)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in /proc")
@pytest.mark.parametrize("type_", ["F16", "Q8_0"])
def test_an_embedding_larger_than_the_budget_is_written_within_it(tmp_path: Path, type_: str) -> None:
    """128 MiB of numbers within 16 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path / "large.gguf"), type_],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) <= 16 * _MIB
