"""`tclx sweep`: search the best weights, temperatures, anything of an experiment; read what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, Overrides, RunsDir, aligned, print_json, say, show
from tclx.cli.run import BackendChoice, DryRun
from tclx.terminal import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna
    from optuna.trial import FrozenTrial
    from rich.console import RenderableType

    from tclx.sweep.load import Sweep
    from tclx.sweep.study import StudyFolder
    from tclx.sweep.summary import Summary

EXAMPLE = "Example:  tclx sweep sweeps/loss_weights.yaml --set num_trials=10"


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

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep file.")]
StudyName = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a study's name.")]


@app.command(epilog=EXAMPLE.replace("sweep ", "sweep run ", 1))
def run(
    sweep: SweepFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    backend: BackendChoice = None,
    again: Annotated[bool, typer.Option("--again", help="Begin the study anew; the old one is kept beside.")] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="The sweep has changed: begin anew with the earlier trials that still count."),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Here: return at once; workers outlive the terminal.")] = False,
    dry_run: DryRun = False,
    follow: Annotated[bool, typer.Option("--follow", help="On SLURM: wait and watch; Ctrl-C leaves the jobs running.")] = False,
) -> None:
    """Begin a study, or go on with it; print where it stands.

    Trial 0 is the experiment itself. The same file is the same study: what has ended is never tried again, what was cut off
    goes on from its checkpoints.
    """
    from tclx.sweep.begin import create_study, set_aside
    from tclx.sweep.load import load_sweep
    from tclx.sweep.study import StudyFolder

    checked = load_sweep(sweep, overrides or [], runs_dir=runs_dir, backend=backend.value if backend else None)
    _say_doubts(checked)
    folder = StudyFolder.of(checked.spec.name, runs_dir)
    if again and folder.path.exists():
        say(f"the earlier study is kept as {set_aside(folder, checked)}")
    study = create_study(checked, folder, accept_changes=accept_changes, say=say)
    raise typer.Exit(_work(checked, folder, study, detach=detach, follow=follow))


def _say_doubts(sweep: Sweep) -> None:
    """What makes the trials' figures doubtful, or would be found out by the first trial.

    Raises:
        MachineError: what they take from the hub is neither in the cache nor to be had.
    """
    from tclx.launch.downloads import check_downloads

    for warning in (*sweep.warnings, *check_downloads([sweep.base], with_image=True)):
        say(f"warning: {warning}")


def resume_study(path: Path, *, detach: bool, follow: bool) -> int:
    """Go on with a study as it was last asked for; returns the exit code.

    Args:
        path: its folder.
        detach, follow: as `tclx sweep`.
    """
    from tclx.sweep.begin import create_study
    from tclx.sweep.study import StudyFolder

    folder = StudyFolder(path)
    sweep = folder.read_sweep()
    return _work(sweep, folder, create_study(sweep, folder), detach=detach, follow=follow)


def _work(sweep: Sweep, folder: StudyFolder, study: optuna.Study, *, detach: bool, follow: bool) -> int:
    from tclx.sweep import local

    folder.note_start()
    if sweep.base.launch.backend == "slurm":
        from tclx.sweep.cluster import submit_workers

        submit_workers(sweep, folder, study, say=say)
        return _follow(sweep, folder, study) if follow else 0
    with local.as_only_pool(folder) as alone:
        if alone and not detach:
            return _work_here(sweep, folder, study)
    if alone:
        say(f"working in the background (process {local.detach(folder)}); tclx sweep status {sweep.spec.name} shows it")
        return 0
    say("workers of this study are at work already; this only watches")
    return _follow(sweep, folder, study)


def _work_here(sweep: Sweep, folder: StudyFolder, study: optuna.Study) -> int:
    from tclx.sweep import local
    from tclx.sweep.storage import patiently
    from tclx.sweep.summary import summarise

    with _Watch(study, sweep, folder) as watch:
        exit_code = local.run_workers(
            folder,
            sweep.spec.num_workers,
            say=watch.say,
            look=watch.look,
            num_ended=lambda: patiently(lambda: summarise(study, sweep, folder).ended, say=watch.say),
        )
        watch.look(at_once=True)
    print_study(study, sweep, folder)
    _say_wandb(sweep, folder)
    return exit_code


LOOK_SECONDS = 2.0


class _Watch:
    """Says every trial's end once, with the best so far; below it, on a terminal, a table of what runs."""

    def __init__(self, study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> None:
        from rich.console import Console
        from rich.live import Live

        self._study, self._sweep, self._folder = study, sweep, folder
        self._told = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
        self._looked_at = 0.0
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> _Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Above the table."""
        if self._live is None:
            say(line)
        else:
            self._live.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def look(self, *, at_once: bool = False) -> None:
        """See what is new, every few seconds."""
        import time

        from tclx.sweep.storage import patiently
        from tclx.sweep.summary import summarise

        if not at_once and time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        trials = patiently(lambda: self._study.get_trials(deepcopy=False), say=self.say)
        new = [trial for trial in trials if trial.state.is_finished() and trial.number not in self._told]
        self._told |= {trial.number for trial in new}
        for trial in new:
            self.say(_trial_line(trial, self._sweep, self._folder))
        summary = patiently(lambda: summarise(self._study, self._sweep, self._folder), say=self.say)
        standing = _standing(summary, self._sweep, self._folder)
        if self._live is not None:
            self._live.update(_running_table(trials, standing, self._sweep, self._folder), refresh=True)
        elif new and not at_once:
            say(standing)


def _running_table(trials: Sequence[FrozenTrial], standing: str, sweep: Sweep, folder: StudyFolder) -> RenderableType:
    """What runs at this moment, and how the study stands."""
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    from tclx.sweep.metrics import as_text
    from tclx.sweep.summary import progress_of, short_key, values_of_trial

    running = [trial for trial in trials if trial.state.name == "RUNNING"]
    table = Table(
        "trial", "step", Column(Text(printable(f"{sweep.spec.objective[0].metric} so far"))), "tries", box=None, pad_edge=False
    )
    for trial in running:
        step, total = progress_of(trial, folder)
        so_far = f"{list(trial.intermediate_values.values())[-1]:.4g}" if trial.intermediate_values else "-"
        tries = " ".join(f"{short_key(key, sweep)}={as_text(value)}" for key, value in values_of_trial(trial).items())
        table.add_row(str(trial.number), f"{step}/{total}" if total else "-", so_far, Text(one_line(tries)))
    return Group(table, Text(printable(standing)))


def _follow(sweep: Sweep, folder: StudyFolder, study: optuna.Study) -> int:
    """Watch until no worker lives and nothing is left; Ctrl-C only leaves."""
    import time

    from tclx.sweep.cluster import is_going_on
    from tclx.sweep.storage import patiently

    try:
        with _Watch(study, sweep, folder) as watch:
            while patiently(lambda: is_going_on(folder), say=watch.say):
                watch.look()
                time.sleep(LOOK_SECONDS)
            watch.look(at_once=True)
    except KeyboardInterrupt:
        say("no longer watching; the workers go on")
        return 130
    print_study(study, sweep, folder)
    _say_wandb(sweep, folder)
    return 0


def _say_wandb(sweep: Sweep, folder: StudyFolder) -> None:
    """Where the study is on W&B, or why it is not."""
    from tclx.sweep.tracking import standing

    if line := standing(sweep, folder):
        say(line)


def _trial_line(trial: FrozenTrial, sweep: Sweep, folder: StudyFolder) -> str:
    from tclx.sweep.metrics import as_text
    from tclx.sweep.summary import short_key, values_of_trial

    values = " ".join(f"{short_key(key, sweep)}={as_text(value)}" for key, value in values_of_trial(trial).items())
    return f"trial {trial.number}  {_result(trial, sweep, folder)}  {values}"


def _result(trial: FrozenTrial, sweep: Sweep, folder: StudyFolder) -> str:
    if trial.state.name == "COMPLETE":
        pairs = zip(sweep.spec.objective, trial.values, strict=True)
        return " ".join(f"{objective.metric.rpartition('/')[2]} {value:.4g}" for objective, value in pairs)
    from tclx.sweep.summary import state_word

    reason = trial.user_attrs.get("reason", "")
    return f"{state_word(trial, folder)} {reason}".strip()


def _standing(summary: Summary, sweep: Sweep, folder: StudyFolder) -> str:
    from tclx.cli.status import duration

    winner = f"{_result(summary.best[0], sweep, folder)} (trial {summary.best[0].number})" if len(summary.best) == 1 else ""
    best = f", best {winner}" if winner else ""
    front = f", {len(summary.best)} on the Pareto front" if len(summary.best) > 1 else ""
    words = ("running", "interrupted", "lost", "pruned", "failed")
    counts = ", ".join(f"{count} {word}" for word in words if (count := getattr(summary, word)))
    eta = f", ETA {duration(summary.eta_seconds)}" if summary.eta_seconds else ""
    return f"{summary.ended}/{summary.num_trials} trials" + (f" ({counts})" if counts else "") + best + front + eta


def print_study(study: optuna.Study, sweep: Sweep, folder: StudyFolder, *, most: int = 10) -> None:
    """The best trials as a table, trial 0 among them, and how the study stands."""
    from tclx.sweep.metrics import as_text
    from tclx.sweep.summary import ranked, short_key, state_word, summarise, values_of_trial

    summary = summarise(study, sweep, folder)
    trials = ranked(study, sweep)
    shown = trials[:most]
    if summary.baseline is not None and summary.baseline not in shown:
        shown = [*shown, summary.baseline]
    keys = list(dict.fromkeys(key for trial in shown for key in values_of_trial(trial)))
    heading = ["trial", *(objective.metric for objective in sweep.spec.objective), *(short_key(key, sweep) for key in keys)]
    rows = []
    for trial in shown:
        values = values_of_trial(trial)
        reached = (
            [f"{value:.4g}" for value in trial.values]
            if trial.values
            else [state_word(trial, folder)] * len(sweep.spec.objective)
        )
        name = f"{trial.number}" + (" (the experiment)" if trial.number == 0 else "")
        rows.append([name, *reached, *(as_text(values[key]) if key in values else "-" for key in keys)])
    if rows:
        show(aligned([heading, *rows]))
        sys.stdout.flush()
    say(_standing(summary, sweep, folder))


@app.command(epilog="Example:  tclx sweep plan sweeps/loss_weights.yaml")
def plan(
    sweep: SweepFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    backend: BackendChoice = None,
    as_json: AsJson = False,
) -> None:
    """Check a sweep and print what it would try; nothing is begun."""
    from tclx.sweep.load import load_sweep
    from tclx.sweep.planning import plan_of

    checked = load_sweep(sweep, overrides or [], runs_dir=runs_dir, backend=backend.value if backend else None)
    _say_doubts(checked)
    found = plan_of(checked)
    if as_json:
        print_json({**found, "warnings": list(checked.warnings)})
        return
    show(aligned([(name, str(value)) for name, value in found.items() if name != "space"]))
    show()
    show(
        aligned(
            [["key", "range", "the experiment's"], *([row["key"], row["range"], row["baseline"]] for row in found["space"])]
        )
    )


def _opened(sweep: str, runs_dir: Path) -> tuple[StudyFolder, Sweep, optuna.Study]:
    """A study that is there, by its file or name."""
    from tclx.sweep.study import find_study, open_study

    folder = find_study(sweep, runs_dir)
    checked = folder.read_sweep()
    return folder, checked, open_study(folder, checked)


@app.command(epilog="Example:  tclx sweep status loss-weights")
def status(
    sweep: StudyName,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: AsJson = False,
) -> None:
    """Show how a study stands, from any machine that sees its folder and its storage."""
    from tclx.sweep.claims import living_workers
    from tclx.sweep.summary import as_tree

    folder, checked, study = _opened(sweep, runs_dir)
    if as_json:
        print_json({**as_tree(study, checked, folder), "living_workers": living_workers(folder)})
        return
    print_study(study, checked, folder)
    _say_wandb(checked, folder)
    say(f"{len(living_workers(folder))} workers live; runs in {folder.runs_dir}, study in {folder.path}")


@app.command(epilog="Example:  tclx sweep best loss-weights -o experiments/best.yaml")
def best(
    sweep: StudyName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here, not to stdout.", dir_okay=False)
    ] = None,
    trial: Annotated[int | None, typer.Option("--trial", help="This trial, not the best: one of a Pareto front.")] = None,
    keep_changes: Annotated[
        bool, typer.Option("--keep-changes", help="Keep the sweep's `changes`, such as fewer steps, as its trials had them.")
    ] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write the best trial as an experiment that `tclx run` accepts, with where it comes from.

    It extends the sweep's experiment, at that one's full length: the sweep's own `changes` are named, and left out.
    """
    from tclx.files import write_atomically
    from tclx.sweep.export import experiment_of

    _, checked, study = _opened(sweep, runs_dir)
    text = experiment_of(study, checked, number=trial, keep_changes=keep_changes, beside=output.parent if output else None)
    if output is None:
        show(text, end="")
    else:
        write_atomically(output, text)
        say(f"wrote {output}")


@app.command(epilog="Example:  tclx sweep report loss-weights -o loss-weights.html")
def report(
    sweep: StudyName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="NAME.html by default.", dir_okay=False)
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write one HTML page: what won, what mattered, every trial. It opens from the file and needs no network."""
    from tclx.sweep.report import write_sweep_report

    folder, checked, study = _opened(sweep, runs_dir)
    output = output or Path(f"{checked.spec.name}.html")
    write_sweep_report(study, checked, folder, output)
    show(str(output))


@app.command(epilog="Example:  tclx sweep cancel loss-weights")
def cancel(
    sweep: StudyName,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Ask all workers of a study to save and stop; `tclx sweep SWEEP` goes on later."""
    from tclx.sweep.cluster import cancel_workers
    from tclx.sweep.study import find_study

    folder = find_study(sweep, runs_dir)
    if cancel_workers(folder, say=say) == 0:
        say("no worker of this study is at work")
