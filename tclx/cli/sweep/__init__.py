"""`tclx sweep`: search the best weights, temperatures, anything of an experiment; read what came out."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from tclx.cli.sweep import best, cancel, plan, report, run, status, table

EXAMPLE = run.EXAMPLE.replace("sweep run ", "sweep ", 1)


class _RunIsDefault(TyperGroup):
    """`tclx sweep FILE` stands for `tclx sweep run FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in ("-h", "--help", *self.commands):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunIsDefault,
    no_args_is_help=True,
    help="Search over an experiment's keys: `tclx sweep SWEEP.yaml` begins or continues a study.",
    epilog=EXAMPLE,
)
app.command(epilog=run.EXAMPLE)(run.run)
app.command(epilog=plan.EXAMPLE)(plan.plan)
app.command(epilog=status.EXAMPLE)(status.status)
app.command(epilog=best.EXAMPLE)(best.best)
app.command(epilog=table.EXAMPLE)(table.table)
app.command(epilog=report.EXAMPLE)(report.report)
app.command(epilog=cancel.EXAMPLE)(cancel.cancel)
