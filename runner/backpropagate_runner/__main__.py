"""The runner: `python -P -m backpropagate_runner --parent PID --run-id ID --warm BACKEND|none`, started by the supervisor.

Says Hello, gets one Job, does it, says Done or Fault, and ends. The order of the first lines matters: no orphan from here
on, then no print into the protocol, and only then anything that may crash or talk.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from backpropagate_protocol.lifeline import die_with_parent


def _arguments() -> tuple[int, str, str]:
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    try:
        return int(given["--parent"]), given["--run-id"], given["--warm"]
    except (KeyError, ValueError):
        sys.stderr.write("This is the part that `backprop` starts by itself; start `backprop` instead.\n")
        sys.exit(1)


def main() -> NoReturn:
    parent, run_id, warm = _arguments()
    die_with_parent(parent)

    from backpropagate_runner.channel import claim

    descriptors = claim()

    import faulthandler

    faulthandler.enable()  # dumps all stacks to the log at a crash, and at the SIGABRT that the parent sends before it kills

    from backpropagate_runner.work import work

    work(parent, run_id, warm, descriptors)
    os._exit(70)  # pragma: no cover - work never returns


if __name__ == "__main__":
    main()
