"""Who is told that something has ended? Messages through apprise, from a process of its own that may take only so long.

The addresses hold keys, so they are in the environment and never in a spec, a run folder or a log. Nothing that goes wrong here
reaches what it tells of: one line says that nobody was told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from tclx.runs import RunFolder
from tclx.spec.tracking import NotifySpec

ADDRESSES = "TCLX_NOTIFY"
"""Environment variable: addresses as apprise has them, separated by blanks."""
SECONDS = 20.0
"""For all addresses together."""

Event = Literal["finished", "failed", "interrupted", "best"]


def addresses() -> list[str]:
    """Of this process's environment."""
    return os.environ.get(ADDRESSES, "").split()


def tell(spec: NotifySpec | None, event: Event, *, title: str, body: str, say: Callable[[str], None]) -> None:
    """Send a message where the spec wants one of this event.

    Args:
        spec: `tracking.notify`.
        event: what has happened.
        title, body: of the message.
        say: receives why nobody was told.
    """
    if spec is None or event not in spec.on:
        return
    if not addresses():
        say(f"nobody was told: {ADDRESSES} names no address")
        return
    try:
        told = subprocess.run(
            [sys.executable, "-m", "tclx.track.notify"],
            input=json.dumps({"title": title, "body": body}),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        reason = told.stdout.strip() if told.returncode else ""
        reason = reason or (f"the process that sends ended with {told.returncode}" if told.returncode else "")
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"it took more than {SECONDS:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
    if reason:
        say(f"not everybody was told: {reason}")


def tell_of_run(folder: RunFolder, spec: NotifySpec | None, *, say: Callable[[str], None]) -> None:
    """That a run has ended, and how: its main metrics, or the reason."""
    from tclx.metrics import main_metrics, without_split

    state = folder.read_state()
    if spec is None or state is None or state.status not in ("finished", "failed", "interrupted"):
        return
    lines = [state.reason] if state.reason else []
    if state.status == "finished":
        for split, evaluated in folder.read_evaluations().items():
            values = {without_split(name): value for name, value in evaluated.metrics.items()}
            shown = [f"{name} {values[name]:.2f}" for name in main_metrics() if name in values]
            lines += [f"{split}: {', '.join(shown)}"] if shown else []
    where = f"step {state.step} of {state.total_steps}, {folder.path} on {os.uname().nodename}"
    tell(spec, state.status, title=f"tclx: {folder.run_id} {state.status}", body="\n".join([*lines, where]), say=say)


def main(named: Sequence[str]) -> int:
    """Send what stdin says to each address; prints the kinds of those that did not take it."""
    import apprise

    message = json.load(sys.stdin)
    missed = []
    for address in named:
        kind = address.partition(":")[0]
        receiver = apprise.Apprise()
        if not receiver.add(address):
            missed.append(f"{kind}: apprise knows no such address")
        elif not receiver.notify(title=message["title"], body=message["body"]):
            missed.append(f"{kind}: it was not taken")
    print("; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(addresses()))
