"""From nothing to a tuned model in a few minutes: installs, trains the bundled tiny model, and asks it a question.

    python scripts/quickstart.py                    writes to output/quickstart
    python scripts/quickstart.py --output FOLDER
    python scripts/quickstart.py --python PATH      with an environment of your own, installing nothing

Needs Python 3.11 or newer and, the first time, the network for pip; no GPU, no account, no model download. The exit
status is 0 only if the tuned model answers the trained question with the trained answer, word for word.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from _venv import ROOT, Refusal, ensure, has_nvidia, say

DATA = ROOT / "fixtures" / "quickstart.jsonl"

# Five conversations are learnt by heart: a high learning rate and many passes, which real data would not want.
TRAINING = ("--steps", "80", "--learning-rate", "3e-3", "--lora-r", "32", "--batch-size", "8", "--seed", "42")


# A model this small gains nothing from a second thread, and loses much by it where the cores are busy.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **os.environ}


def trained_pair() -> tuple[str, str]:
    """The first question of the data set, and its answer."""
    with open(DATA, encoding="utf-8") as file:
        question, answer = json.loads(file.readline())["conversations"][:2]
    return question["value"], answer["value"]


def backprop(python: Path, *arguments: str) -> None:
    """One command of ours, its output straight to the screen; Refusal if it fails."""
    command = [str(python), "-m", "backpropagate", *arguments]
    status = subprocess.run(command, stdin=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT, check=False).returncode
    if status != 0:
        raise Refusal(f"`backprop {arguments[0]}` ended with exit status {status}; its message is above")


def ask(python: Path, model: str, question: str) -> str:
    """What `model` (a name or an adapter's folder) answers."""
    command = [str(python), "-m", "backpropagate", "generate", model, question, "--max-new-tokens", "60"]
    said = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if said.returncode != 0:
        raise Refusal(f"`backprop generate {model}` ended with exit status {said.returncode}; its message is above")
    return said.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="install, train the tiny model, ask it a question")
    parser.add_argument("--output", "-o", type=Path, default=ROOT / "output" / "quickstart")
    parser.add_argument("--python", type=Path, help="an interpreter that has the package already: nothing is installed")
    options = parser.parse_args()
    output = options.output.resolve()
    try:
        python = options.python or ensure("cuda" if has_nvidia() else "cpu")
        question, expected = trained_pair()
        say(f"training the tiny model on {DATA.relative_to(ROOT)}, under supervision")
        backprop(python, "train", "--data", str(DATA), "--model", "tiny", *TRAINING, "--output", str(output))
        say("asking both models the same question")
        before, after = ask(python, "tiny", question), ask(python, str(output / "lora"), question)
    except Refusal as refusal:
        print(f"\nquickstart stopped: {refusal}", file=sys.stderr)
        return 1
    print(f"\n  question     {question}\n  base model   {before}\n  tuned model  {after}\n")
    if after != expected:
        print(f"The tuned model should have said: {expected}", file=sys.stderr)
        return 1
    print(f"The adapter is in {output / 'lora'}.")
    print("Next: `backprop train --data YOUR.jsonl --model YOUR_MODEL`, in the environment .venv.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nquickstart stopped; run it again to start over", file=sys.stderr)
        sys.exit(130)
