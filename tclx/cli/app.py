"""Which commands are there, and what happens to a mistake that a user can fix?"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tclx import __version__
from tclx.cli import (
    cancel,
    compare,
    dashboard,
    data,
    doctor,
    embed,
    evaluate,
    examples,
    explain,
    export,
    fetch,
    init,
    logs,
    plan,
    report,
    repro,
    results,
    resume,
    room,
    run,
    schema,
    search,
    status,
    sweep,
    sync,
    tensorboard,
    weights,
)
from tclx.cli.console import print_error
from tclx.errors import TclxError

ELSEWHERE = {
    "train": "run", "fit": "run", "launch": "run", "submit": "run", "start": "run", "validate": "plan", "show": "plan",
    "dry-run": "plan", "evaluate": "eval", "test": "eval", "tune": "sweep", "optimize": "sweep",
    "list": "status", "ls": "status", "ps": "status", "queue": "status", "tail": "logs", "log": "logs", "stop": "cancel",
    "kill": "cancel", "continue": "resume", "restart": "resume", "diff": "compare", "table": "results",
    "delete": "rm", "remove": "rm", "download": "fetch", "clean": "rm", "prune": "rm", "disk": "du",
}  # fmt: skip
"""What other tools call a command -> what it is called here."""


class Commands(TyperGroup):
    """Prints a `TclxError` as plain lines and exits with its code; bugs keep their traceback."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As it is, but a word that is no command is led to the one that was meant."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            match = next(iter(get_close_matches(name, [*self.commands, *ELSEWHERE], n=1)), None)
            hint = f"did you mean `tclx {ELSEWHERE.get(match, match)}`?" if match else "`tclx --help` lists the commands"
            ctx.fail(f"there is no command `{name}` ({hint})")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TclxError as error:
            print_error(error)
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  tclx run experiments/quickstart.yaml",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Vision-language pre-training with triple contrastive learning: a spec in, a trained and evaluated model out.

    Exit codes: 0 done; 1 a run failed; 2 a spec, a file or the command line is wrong; 3 this machine cannot do it; 130 stopped
    and saved.
    """


app.command(epilog=init.EXAMPLE)(init.init)
app.command(epilog=examples.EXAMPLE)(examples.examples)
app.command(epilog=run.EXAMPLE)(run.run)
app.add_typer(sweep.app, name="sweep")
app.command(epilog=plan.EXAMPLE)(plan.plan)
app.command(epilog=fetch.EXAMPLE)(fetch.fetch)
app.command(epilog=status.EXAMPLE)(status.status)
app.command(epilog=logs.EXAMPLE)(logs.logs)
app.command(epilog=cancel.EXAMPLE)(cancel.cancel)
app.command(epilog=resume.EXAMPLE)(resume.resume)
app.command("eval", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=embed.EXAMPLE)(embed.embed)
app.command(epilog=search.EXAMPLE)(search.search)
app.command(epilog=export.EXAMPLE)(export.export)
app.command(epilog=results.EXAMPLE)(results.results)
app.command(epilog=compare.EXAMPLE)(compare.compare)
app.command(epilog=report.EXAMPLE)(report.report)
app.command(epilog=repro.EXAMPLE)(repro.repro)
app.command(epilog=dashboard.EXAMPLE)(dashboard.dashboard)
app.command(epilog=sync.EXAMPLE)(sync.sync)
app.command(epilog=doctor.EXAMPLE)(doctor.doctor)
app.command(epilog=tensorboard.EXAMPLE)(tensorboard.tensorboard)
app.command(epilog=room.DU_EXAMPLE)(room.du)
app.command(epilog=room.RM_EXAMPLE)(room.rm)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.command(epilog=explain.EXAMPLE)(explain.explain)
app.command(epilog=schema.EXAMPLE)(schema.schema)
