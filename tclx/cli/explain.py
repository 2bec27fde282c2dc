"""`tclx explain`: what a key of a spec is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import AsJson, print_json, say, show
from tclx.errors import InputError, Problem

if TYPE_CHECKING:
    from tclx.spec.explain import Key
    from tclx.spec.fields import Place

EXAMPLE = "Example:  tclx explain objectives.lmi.pooled_grid"


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from tclx.spec.explain import known_paths

    root = _root(sweep=bool(ctx.params.get("sweep")), table=bool(ctx.params.get("table")))
    return [path for path in known_paths(root) if path.startswith(incomplete)]


def _root(*, sweep: bool, table: bool) -> Place:
    """Of which kind of file a key is."""
    from tclx.spec.explain import SWEEP_ROOT, TABLE_ROOT
    from tclx.spec.fields import ROOT

    if sweep and table:
        raise InputError(Problem("--table", "is at odds with --sweep: a key is of one kind of file"))
    return SWEEP_ROOT if sweep else TABLE_ROOT if table else ROOT


def explain(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="Dotted, such as data.train; all sections by default.", autocompletion=_complete),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="A key of a sweep file.")] = False,
    table: Annotated[bool, typer.Option("--table", help="A key of a table's file (`tclx repro`).")] = False,
    all_keys: Annotated[bool, typer.Option("--all", help="Print the page of all keys, in Markdown.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="With --all: the output file.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a key of a spec is: its values, its default, what it means, which keys go with it."""
    from tclx.spec.explain import explain as explained
    from tclx.spec.explain import key_of, reference

    if all_keys:
        write_page(reference(), output)
        return
    root = _root(sweep=sweep, table=table)
    (section,) = root.sections
    found = (
        explained(key, root)
        if key is not None
        else [key_of(section, name, name) for name in section.model_fields if sweep or table or name != "variant"]
    )
    if as_json:
        print_json([one._asdict() for one in found])
    elif key is None:
        show(section.__doc__ or "")
        width = max(len(one.path) for one in found)
        for one in found:
            show(f"  {one.path:<{width}}  {one.meaning}")
    else:
        show("\n\n".join("\n".join(_lines(one)) for one in found))


def write_page(text: str, output: Path | None) -> None:
    """A page to a file, or to stdout."""
    from tclx.files import write_atomically

    if output is None:
        show(text, end="")
    else:
        write_atomically(output, text)
        say(f"wrote {output}")


def _lines(key: Key) -> list[str]:
    from textwrap import wrap

    facts = {
        "values": key.values,
        "default": key.default,
        "keys": ", ".join(key.inside),
        "rules name it with": ", ".join(key.together_with),
    }
    width = max(len(name) for name, value in facts.items() if value)
    lines = [
        f"{key.path}" + (f"  (with {key.goes_with})" if key.goes_with else ""),
        *(f"  {line}" for line in wrap(key.meaning, 76)),
    ]
    for name, value in facts.items():
        if value:
            first, *rest = wrap(value, 74 - width, break_on_hyphens=False) or [""]
            lines += [f"  {name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in rest)]
    return lines
