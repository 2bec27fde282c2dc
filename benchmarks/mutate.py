"""Do the tests notice a broken line? `just mutate FILE` breaks one at a time and runs the nearest test file.

A mutant is one line changed in one place: another operator or constant, a condition turned round, a statement gone, two
arguments swapped, a keyword argument dropped. It is killed when a test fails, or when the tests take ten times as long as
without it; a survivor is a line that no test of the nearest file needs. Tests mirror tclx/: those of tclx/a/b.py are in
tests/a/test_b.py, and where there is none, where `ELSEWHERE` says, or else in the files of tests/a/ that import it.

A process that has torch, timm, transformers and Optuna imported is forked for every mutant, since their imports take longer
than most tests. The mutant lies in a clone of the project, so that processes which the tests start see it, too.

    just mutate tclx/train/precision.py          every mutant of one file
    just mutate --sample 200 --seed 0            random lines of all files

Texts are left alone (messages, names of keys), as is zip's `strict`: a change of these is seldom a fault.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = (
    *("torch", "torchvision", "timm", "transformers", "optuna", "sklearn", "pydantic", "cv2", "plotly", "submitit", "typer"),
    *(
        "pytest",
        "xdist",
        "hypothesis",
        "anyio",
        "sqlalchemy.orm",
        "safetensors.torch",
        "simplejpeg",
        "torch.utils.flop_counter",
    ),
)
"""Imported once. Nothing of tclx or its tests: a mutant must be what is imported."""

PATIENCE, SPARE_SECONDS = 10, 60
"""A mutant that takes so many times as long as the unbroken code, and these seconds more, hangs."""

REWRITING = "ignore::pytest.PytestAssertRewriteWarning"
"""Plugins whose packages are imported already cannot have their asserts rewritten, and need not."""

MOST_BYTES = 8 * 2**30
"""Of memory that a mutant may take: a changed size must not take the machine down."""

COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}


ELSEWHERE = {
    "cli/sweep/": ("sweep/test_sweeps.py",),
    "data/sources/": ("data/test_sources.py", "data/test_facts.py", "data/test_overlap.py", "data/test_dataset.py"),
    "tasks/pretrain/terms/": (
        "tasks/pretrain/test_step.py",
        "tasks/pretrain/test_golden_steps.py",
        "tasks/pretrain/test_sigmoid.py",
    ),
    "launch/backend.py": ("test_tables.py", "launch/test_control.py"),
    "launch/local/backend.py": ("cli/test_launching.py",),
    "launch/slurm/backend.py": ("launch/test_control.py", "cli/test_launching.py"),
    "use/": ("cli/test_cli.py", "cli/test_sync.py"),
    "files.py": ("test_runs.py",),
    "sweep/showing.py": ("sweep/test_sweeps.py",),
    "sweep/working.py": ("sweep/test_sweeps.py",),
    "train/failures.py": ("train/test_precision.py", "train/test_loop.py"),
    "train/session.py": ("train/test_loop.py",),
    "cli/data.py": ("cli/test_cli.py",),
    "cli/run.py": ("cli/test_cli.py", "cli/test_launching.py"),
    "cli/status.py": ("cli/test_launching.py", "cli/test_cli.py"),
    "data/structure.py": ("data/test_hostile.py", "data/test_images.py"),
    "provenance.py": ("launch/test_snapshot.py", "train/test_environment.py"),
    "report/cost.py": ("report/test_history.py", "report/test_report.py"),
    "section.py": ("spec/test_validation.py", "spec/test_load.py"),
    "spec/data.py": ("spec/test_validation.py", "spec/test_load.py"),
    "spec/merging.py": ("spec/test_load.py", "spec/test_validation.py"),
    "spec/model.py": ("spec/test_validation.py", "spec/test_load.py"),
    "spec/rules.py": ("test_plan.py", "spec/test_validation.py"),
    "spec/sweep.py": ("sweep/test_load.py", "sweep/test_space.py"),
    "sweep/metrics.py": ("sweep/test_begin.py", "sweep/test_report.py", "sweep/test_load.py"),
    "sweep/process.py": ("sweep/test_storm.py", "sweep/test_sweeps.py"),
    "sweep/tracking.py": ("sweep/test_wandb.py",),
    "sweep/trial.py": ("sweep/test_storm.py", "sweep/test_sweeps.py"),
    "track/wandb/media.py": ("track/wandb/test_upload.py",),
    "track/wandb/study.py": ("sweep/test_wandb.py",),
    "track/wandb/study_upload.py": ("sweep/test_wandb.py",),
    "train/heartbeat.py": ("test_runs.py",),
}
"""Modules of tclx/ without a test file of their own name, or whole folders, and the files of tests/ that are theirs."""


class Mutant(NamedTuple):
    """One change: the text between two columns of a line is another."""

    line: int
    """From 1."""
    first: int
    last: int
    """Columns in bytes, as `ast` counts them."""
    text: str
    kind: str

    def apply(self, source: str) -> str:
        """The whole file with the change."""
        lines = source.encode().splitlines(keepends=True)
        changed = lines[self.line - 1]
        lines[self.line - 1] = changed[: self.first] + self.text.encode() + changed[self.last :]
        return b"".join(lines).decode()


class Outcome(NamedTuple):
    """What became of a mutant."""

    path: Path
    mutant: Mutant
    before: str
    after: str
    killed: bool
    seconds: float


# --------------------------------------------------------------------------------------------------------------- the mutants


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a file that is still Python, in the order of its lines."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted({mutant for mutant in finder.found if _is_python(mutant.apply(source))})


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self.found: list[Mutant] = []
        self._lines = source.encode().splitlines()

    def _text(self, node: ast.expr) -> str:
        return self._lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode()

    def _add(self, node: ast.expr | ast.stmt, text: str, kind: str) -> None:
        if node.lineno == node.end_lineno and node.end_col_offset is not None:
            self.found.append(Mutant(node.lineno, node.col_offset, node.end_col_offset, text, kind))

    def _between(self, left: ast.expr, right: ast.expr, text: str, kind: str) -> None:
        """Replace what stands between two operands; brackets around either of them stay."""
        if left.end_lineno != right.lineno or left.end_col_offset is None:
            return
        between = self._lines[right.lineno - 1][left.end_col_offset : right.col_offset].decode()
        opening, closing = len(between) - len(between.rstrip("( ")), len(between) - len(between.lstrip(") "))
        first, last = left.end_col_offset + closing, right.col_offset - opening
        self.found.append(Mutant(right.lineno, first, last, f" {text} " if closing == opening == 0 else text, kind))

    # What has no behaviour, or whose places Python 3.11 does not know, is passed over.

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *(one for one in node.args.kw_defaults if one), *node.body):
            self.visit(part)

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._add(node.test, f"not ({self._text(node.test)})", "condition turned round")
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add(node.test, f"(not ({self._text(node.test)}))", "condition turned round")
        self.generic_visit(node)

    # What is changed.

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip((node.left, *node.comparators), node.ops, node.comparators, strict=False):
            self._between(left, right, COMPARISONS[type(operator)], "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in OPERATORS:
            self._between(node.left, node.right, OPERATORS[type(node.op)], "operator")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, "or" if isinstance(node.op, ast.And) else "and", "and/or")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self._add(node, f"({self._text(node.operand)})", "not dropped" if isinstance(node.op, ast.Not) else "sign dropped")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(node, str(not node.value), "constant")
        elif isinstance(node.value, int):
            self._add(node, str(node.value + 1), "constant")
        elif isinstance(node.value, float):
            self._add(node, repr(2 * node.value or 1.0), "constant")

    def visit_Call(self, node: ast.Call) -> None:
        if len(node.args) >= 2 and not any(isinstance(each, ast.Starred) for each in node.args[:2]):
            one, two = node.args[:2]
            is_same = self._text(one) == self._text(two) or (isinstance(node.func, ast.Name) and node.func.id in ("min", "max"))
            if not is_same and one.lineno == two.end_lineno and two.end_col_offset is not None:
                text = f"{self._text(two)}, {self._text(one)}"
                self.found.append(Mutant(one.lineno, one.col_offset, two.end_col_offset, text, "arguments swapped"))
        for keyword in node.keywords:
            if keyword.arg == "strict":  # of zip: only faults of ours would make it matter
                continue
            if keyword.arg is not None and keyword.lineno == keyword.end_lineno and keyword.end_col_offset is not None:
                after = self._lines[keyword.lineno - 1][keyword.end_col_offset :]
                last = keyword.end_col_offset + (len(after) - len(after.lstrip(b", ")))
                self.found.append(Mutant(keyword.lineno, keyword.col_offset, last, "", "keyword argument dropped"))
        for part in (node.func, *node.args, *(keyword.value for keyword in node.keywords if keyword.arg != "strict")):
            self.visit(part)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):  # a docstring
            return
        if not isinstance(node.value, ast.Yield | ast.YieldFrom):
            self._add(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):  # a missing name would fail by itself
            self._add(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._add(node, "pass", "statement removed")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(node, "break", "statement removed")

    def visit_Break(self, node: ast.Break) -> None:
        self._add(node, "continue", "statement removed")


def sample(files: Sequence[Path], *, number: int, seed: int) -> list[tuple[Path, Mutant]]:
    """Random mutants: each of a random line among all that have any, so a file counts by its lines; no line comes twice."""
    by_line: dict[tuple[Path, int], list[Mutant]] = {}
    for path in files:
        for mutant in mutants_of(path.read_text(encoding="utf-8")):
            by_line.setdefault((path, mutant.line), []).append(mutant)
    draw = random.Random(seed)
    lines = draw.sample(sorted(by_line), min(number, len(by_line)))
    return [(path, draw.choice(by_line[path, line])) for path, line in lines]


def nearest_tests(path: Path, project: Path) -> list[Path]:
    """The test files of a module, relative to the project.

    Raises:
        ValueError: it has none.
    """
    relative = path.relative_to(project / "tclx")
    room = project / "tests" / relative.parent
    own = room / f"test_{relative.stem}.py"
    if own.exists():
        return [own.relative_to(project)]
    name = relative.as_posix()
    whole_folders = [place for place in ELSEWHERE if place.endswith("/") and name.startswith(place)]
    if (named := ELSEWHERE.get(name, ELSEWHERE.get(max(whole_folders, default="")))) is not None:
        return [Path("tests") / test for test in named]
    beside = sorted(room.glob("test_*.py"))
    module = ".".join(("tclx", *relative.with_suffix("").parts)).removesuffix(".__init__")
    importing = [test for test in beside if _imports(test, module)]
    if not beside:
        raise ValueError(f"{path} has no tests in {room}")
    return [test.relative_to(project) for test in importing or beside]


def _imports(test: Path, module: str) -> bool:
    parent, _, name = module.rpartition(".")
    text = test.read_text(encoding="utf-8")
    return f"from {module} import" in text or (f"from {parent} import" in text and name in text) or f"import {module}" in text


# --------------------------------------------------------------------------------------------------------------- the running


class Bench:
    """A clone of the project whose tests are run on one mutant after the other."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / PROJECT.name
        subprocess.run(["git", "clone", "--quiet", "--shared", PROJECT, self.project], check=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=PROJECT,
            capture_output=True,
            check=True,
        )
        for name in listed.stdout.decode().split("\0"):
            if name and (PROJECT / name).is_file():  # as it is here, committed or not
                (self.project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(PROJECT / name, self.project / name)
        if (PROJECT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(PROJECT.parent / "shared")
        # Compiled once, each file recognised by its content: a mutant of the same size is not taken for it.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "tclx", "tests"],
            cwd=self.project,
            check=True,
        )
        self._printed = folder / "printed"
        self._normal_seconds: dict[tuple[Path, ...], float | str] = {}

    def outcome(self, path: Path, mutant: Mutant) -> Outcome:
        """Break the line, run the nearest tests, mend it.

        Raises:
            RuntimeError: the tests fail without the mutant, too.
        """
        place = self.project / path.relative_to(PROJECT)
        tests = tuple(nearest_tests(place, self.project))
        limit = PATIENCE * self._normal(tests) + SPARE_SECONDS
        source = place.read_text(encoding="utf-8")
        broken = mutant.apply(source)
        try:
            place.write_text(broken, encoding="utf-8")
            exit_code, seconds = self._run(tests, limit)
        finally:
            place.write_text(source, encoding="utf-8")
        before, after = (text.splitlines()[mutant.line - 1].strip() for text in (source, broken))
        return Outcome(path.relative_to(PROJECT), mutant, before, after, exit_code != 0, seconds)

    def _normal(self, tests: tuple[Path, ...]) -> float:
        if tests not in self._normal_seconds:
            exit_code, seconds = self._run(tests, 3600)
            failed = f"{', '.join(map(str, tests))} fail on the unbroken code:\n{self._printed.read_text(errors='replace')}"
            self._normal_seconds[tests] = failed if exit_code else seconds
        if isinstance(found := self._normal_seconds[tests], str):
            raise RuntimeError(found)
        return found

    def _run(self, tests: Sequence[Path], limit: float) -> tuple[int, float]:
        """The exit code of pytest, -1 when it was ended for its time; and the seconds it took."""
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            self._test(tests)
        ended, status = 0, 0
        while not ended and time.monotonic() - began < limit:
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what the tests left behind
        if not ended:
            os.waitpid(child, 0)
            return -1, limit
        return os.waitstatus_to_exitcode(status), time.monotonic() - began

    def _test(self, tests: Sequence[Path]) -> None:
        """In the child: never returns."""
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        printed = os.open(self._printed, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for descriptor in (0, 1, 2):
            os.dup2(printed, descriptor)
        sys.path[:] = [each for each in sys.path if Path(each or ".").resolve() != PROJECT]
        sys.path.insert(0, str(self.project))
        os.environ["PYTHONPATH"] = str(self.project)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        os.chdir(self.project)
        code = 1
        try:
            pytest = sys.modules["pytest"]
            code = int(pytest.main(["-x", "-q", "-W", REWRITING, *map(str, tests)]))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            sys.stdout.flush()
            os._exit(code)


def main() -> None:
    options = argparse.ArgumentParser(description="Break one line at a time and run the nearest tests.")
    options.add_argument("files", nargs="*", type=Path, help="every mutant of these; all of tclx/ with --sample")
    options.add_argument("--sample", type=int, help="so many random mutants only")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="write every outcome here, one line each; what is there is not done again")
    options.add_argument("--list", action="store_true", help="name the mutants, run nothing")
    given = options.parse_args()
    files = [path.resolve() for path in given.files] or sorted((PROJECT / "tclx").rglob("*.py"))
    if given.sample:
        mutants = sample(files, number=given.sample, seed=given.seed)
    elif given.files:
        mutants = [(path, mutant) for path in files for mutant in mutants_of(path.read_text(encoding="utf-8"))]
    else:
        options.error("name a file, or --sample N")
    if given.list:
        for path, mutant in mutants:
            line = mutant.apply(path.read_text(encoding="utf-8")).splitlines()[mutant.line - 1].strip()
            print(f"{path.relative_to(PROJECT)}:{mutant.line}: {mutant.kind}: {line}")
        return
    sys.exit(0 if run(mutants, record=given.json) else 1)


def run(mutants: Sequence[tuple[Path, Mutant]], *, record: Path | None) -> bool:
    """Run the tests on each and print what survives; whether none did."""
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage again and again; none of this is any
    done = set(_recorded(record)) if record is not None and record.exists() else set()
    outcomes: list[Outcome] = []
    unjudged = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        bench = Bench(Path(folder))
        for number, (path, mutant) in enumerate(mutants, start=1):
            if (str(path.relative_to(PROJECT)), mutant) in done:
                continue
            try:
                outcome = bench.outcome(path, mutant)
            except RuntimeError as error:
                print(f"{number:4}/{len(mutants)} not judged: {error}", flush=True)
                unjudged += 1
                continue
            outcomes.append(outcome)
            word = "killed" if outcome.killed else "SURVIVED"
            print(
                f"{number:4}/{len(mutants)} {outcome.seconds:6.1f} s {word} {outcome.path}:{mutant.line}: {mutant.kind}: "
                f"{outcome.before}  ->  {outcome.after}",
                flush=True,
            )
            if record is not None:
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**outcome._asdict(), "path": str(outcome.path), "mutant": list(mutant)}) + "\n")
    survivors = [outcome for outcome in outcomes if not outcome.killed]
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(one.mutant.kind for one in survivors).most_common())
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} killed" + (f"; survivors: {kinds}" if kinds else ""))
    if unjudged:
        print(f"{unjudged} not judged: their tests fail on the unbroken code")
    return not survivors and not unjudged


def _recorded(record: Path) -> Iterator[tuple[str, Mutant]]:
    for line in record.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["path"], Mutant(*row["mutant"])


if __name__ == "__main__":
    main()
