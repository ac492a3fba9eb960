"""What it costs to have the frameworks: nothing is imported that nobody here uses, and no time goes to looking for garbage."""

from __future__ import annotations

import subprocess
import sys


def test_what_was_imported_is_never_looked_through_and_a_tracker_s_package_is_not_imported() -> None:
    """In a fresh process, as the runner is one: it is about all of a process."""
    program = (
        "import gc; from importlib.util import find_spec; from backpropagate_runner.frameworks import Frameworks\n"
        "Frameworks('toy').backend('toy')\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 0, find_spec('wandb'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "None"]
