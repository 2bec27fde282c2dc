"""How do a file, its parents and the command line become one tree? `extends`, `--set` and the rule by which they merge.

Mappings merge key by key; everything else, lists and null included, replaces. A mapping that changes its kind (`source: files`
over `source: scenes`) replaces the other one, because keys of the old kind mean nothing in the new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

from tclx.errors import InputError, Location, Problem
from tclx.spec.fields import FILE_ONLY_KEYS, ROOT, Place, file_keys, key_paths, nearest, nearest_key
from tclx.spec.resolve import absolute_path
from tclx.spec.yaml import Node, parse_yaml, read_yaml


class CommandLine(Location):
    """The place of a value given with `--set`, which has no line."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(self.path)


SET = CommandLine("--set", 1, 1)


def merge(base: Node, partial: Node, place: Place | None) -> Node:
    """`partial` over `base`, by the rule above; every value keeps the place where it was written.

    Args:
        base: what was there.
        partial: what changes it.
        place: what the spec allows here, None below an unknown key.
    """
    if not (isinstance(base.value, dict) and isinstance(partial.value, dict)) or _changes_kind(
        base.value, partial.value, place
    ):
        return partial
    merged = dict(base.value)
    for key, node in partial.value.items():
        inner = place.child(key) if place else None
        merged[key] = merge(merged[key], node, inner) if key in merged else node
    return Node(merged, base.where)


def _changes_kind(base: dict[str, Node], partial: dict[str, Node], place: Place | None) -> bool:
    tag = place.tag if place else None
    if place is None or tag is None or tag not in partial:
        return False
    before = base[tag].value if tag in base else place.default_kind
    return before != partial[tag].value


def merge_files(parent: Node, child: Node) -> Node:
    """A whole file over another: as `merge`, variant by variant, and `seed` and `seeds` displace each other."""
    before, after = entries(parent), entries(child)
    rivals = {"seed": "seeds", "seeds": "seed"}
    displaced = {rivals[key] for key in after if key in rivals}
    merged = entries(
        merge(Node({key: node for key, node in before.items() if key not in displaced}, parent.where), child, ROOT)
    )
    if "variants" in before and "variants" in after:
        merged["variants"] = _merge_variants(before["variants"], after["variants"])
    return Node(merged, child.where)


def _merge_variants(before: Node, after: Node) -> Node:
    if not isinstance(before.value, dict) or not isinstance(after.value, dict):
        return after
    changed = {
        name: merge(before.value[name], node, ROOT) if name in before.value else node for name, node in after.value.items()
    }
    return Node(before.value | changed, after.where)


def entries(node: Node) -> dict[str, Node]:
    """The keys of a mapping that was checked to be one."""
    if not isinstance(node.value, dict):
        raise TypeError(f"not a mapping: {node}")
    return node.value


def read_with_parents(path: Path) -> Node:
    """A file merged over its parents, `extends` gone. Chains of any length; each file may name one parent.

    Raises:
        InputError: a file cannot be read, is no spec, or is its own ancestor.
    """
    chain: dict[Path, Path] = {}  # the real file -> as it was named
    layers: list[Node] = []
    next_file: Path | None = path
    asked_at: Location | None = None
    while next_file is not None:
        layer = _read_layer(next_file, asked_at)
        if next_file.resolve() in chain:
            circle = " -> ".join(str(file) for file in [*chain.values(), next_file])
            raise InputError(Problem("extends", f"the files extend each other in a circle: {circle}", where=asked_at))
        chain[next_file.resolve()] = next_file
        layers.append(Node({key: node for key, node in entries(layer).items() if key != "extends"}, layer.where))
        parent = entries(layer).get("extends")
        next_file, asked_at = (_parent_path(parent), parent.where) if parent and parent.value is not None else (None, None)
    return reduce(merge_files, reversed(layers))


def _parent_path(extends: Node) -> Path:
    if isinstance(extends.value, tuple):
        raise InputError(Problem("extends", "must be one file, not a list", "let the parents extend each other", extends.where))
    if not isinstance(extends.value, str) or not extends.value:
        raise InputError(Problem("extends", "must be the path of a YAML file", where=extends.where))
    problems: list[Problem] = []
    path = absolute_path(extends.value, extends.where, "extends", problems)
    if problems:
        raise InputError(*problems)
    return Path(path)


def _read_layer(path: Path, asked_at: Location | None) -> Node:
    try:
        node = read_yaml(path)
    except InputError as error:
        if asked_at is None:
            raise
        named = [one if one.where else one._replace(key="extends", where=asked_at) for one in error.problems]
        raise InputError(*named) from error
    if not isinstance(node.value, dict):
        what = {type(None): "it is empty", tuple: "it is a list"}.get(type(node.value), "it is a single value")
        raise InputError(Problem("", f"a spec is keys and values, and {what}", "start with `name: ...`", node.where))
    if is_sweep(node.value):
        raise InputError(Problem("", "this is a sweep, not an experiment", f"tclx sweep {path} runs it", node.where))
    if problems := list(_layer_problems(node.value)):
        raise InputError(*problems)
    return node


def is_sweep(layer: Mapping[str, Node]) -> bool:
    """Whether a file's keys are a sweep's rather than an experiment's."""
    experiments = {*file_keys(), "variant"}
    if experiments >= layer.keys():
        return False
    from tclx.spec.sweep import SweepSpec  # an experiment's commands need nothing of it

    sweeps = set(SweepSpec.model_fields)
    return sum(key in sweeps - experiments for key in layer) > sum(key in experiments - sweeps for key in layer)


def _layer_problems(layer: dict[str, Node]) -> list[Problem]:
    problems = []
    if "seed" in layer and "seeds" in layer:
        problems.append(Problem("seeds", "give `seed` or `seeds`, not both", where=layer["seeds"].where))
    if "variant" in layer:
        problems.append(Problem("variant", "unknown key", "variants are named under `variants`", layer["variant"].where))
    return problems


def override_tree(overrides: Sequence[str], root: Place = ROOT) -> Node:
    """`key.path=value` pairs as one partial spec; a later pair wins over an earlier one.

    Args:
        overrides: the pairs.
        root: what the spec may hold.

    Raises:
        InputError: no `=`, an unknown key, or a value that is not YAML; the problems of all pairs.
    """
    tree = Node({}, SET)
    problems: list[Problem] = []
    for text in overrides:
        try:
            keys, value = _parse_override(text, root)
            tree = _put(tree, keys, value)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return tree


def _parse_override(text: str, root: Place) -> tuple[list[str], Node]:
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise InputError(Problem("", f"`{text}` is not key.path=value", where=SET))
    if unknown := path_problem(path, root):
        raise InputError(unknown)
    if not value.strip():
        raise InputError(Problem(path, "nothing stands after `=`", f"`{path}=null` switches it off", SET))
    try:
        return _keys(path, root), _parse_value(value)
    except InputError as error:
        raise InputError(*(one._replace(key=path) for one in error.problems)) from error


def _keys(path: str, root: Place) -> list[str]:
    """The keys on the way to a value; some of the user's own names hold dots."""
    keys, place = path.split("."), root
    for depth, key in enumerate(keys):
        if place.names_hold_dots:
            return [*keys[:depth], ".".join(keys[depth:])]
        place = place.child(key) or Place()
    return keys


def _parse_value(text: str) -> Node:
    """YAML without comments: on a command line `#` is part of the value, wherever it stands."""
    stand_in = next(char for char in map(chr, range(0xE000, 0xF8FF)) if char not in text)
    try:
        return _with_hashes(parse_yaml(text.replace("#", stand_in), lambda line, column: SET), stand_in)
    except InputError as error:
        problems = [one._replace(message=_said_with_hashes(one.message, stand_in)) for one in error.problems]
        raise InputError(*(one if one.hint else one._replace(hint=_IN_QUOTES) for one in problems)) from error


def _said_with_hashes(message: str, stand_in: str) -> str:
    return message.replace(stand_in, "#").replace(repr(stand_in)[1:-1], "#")  # the parser quotes single characters


_IN_QUOTES = "put the value in quotes if it is text"


def _with_hashes(node: Node, stand_in: str) -> Node:
    if isinstance(node.value, dict):
        inside = {key.replace(stand_in, "#"): _with_hashes(child, stand_in) for key, child in node.value.items()}
        return Node(inside, node.where)
    if isinstance(node.value, tuple):
        return Node(tuple(_with_hashes(item, stand_in) for item in node.value), node.where)
    return Node(node.value.replace(stand_in, "#"), node.where) if isinstance(node.value, str) else node


def path_problem(path: str, root: Place = ROOT) -> Problem | None:
    """What is wrong with a dotted key path, or None where the spec knows it."""
    first, *others = keys = path.split(".")
    if root == ROOT and (first in ("extends", "variant") or (first in FILE_ONLY_KEYS and others)):
        hint = "`--set` changes every variant: give the key itself" if first in ("variants", "variant") else None
        return Problem(path, "cannot be changed with --set", hint, SET)
    if root == ROOT and first in FILE_ONLY_KEYS:
        return None
    place = root
    for depth, key in enumerate(keys):
        if place.names_hold_dots:  # whatever follows is one of them: changes.training.steps
            return None
        inner = place.child(key)
        if inner is None:
            return Problem(path, f"unknown key `{key}`", _nearest_path(keys, depth, place), SET)
        place = inner
    return None


def _nearest_path(keys: Sequence[str], depth: int, place: Place) -> str | None:
    """A hint for the key at `depth`, which `place` does not know: a neighbour, or a path that ends like this one."""
    name, bracket, _ = keys[depth].partition("[")
    if bracket:
        return f"write the whole list: `{'.'.join([*keys[:depth], name])}=[...]`"
    ending = f".{'.'.join(keys)}"
    neighbour = nearest(name, place.known_keys())
    match = (
        ".".join([*keys[:depth], neighbour]) if neighbour else next((one for one in key_paths() if one.endswith(ending)), None)
    )
    return f"did you mean `{match}`?" if match else nearest_key(name, place)


def _put(tree: Node, keys: Sequence[str], value: Node) -> Node:
    if not keys:
        return value
    first, *rest = keys
    inside: dict[str, Node] = tree.value if isinstance(tree.value, dict) else {}
    return Node({**inside, first: _put(inside.get(first, Node(None, SET)), rest, value)}, SET)
