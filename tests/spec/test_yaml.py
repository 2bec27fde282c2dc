"""Promises of `tclx.spec.yaml`: plain YAML 1.2 with places, and a sentence instead of a traceback for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tclx.errors import InputError, Location
from tclx.spec.yaml import MAX_DEPTH, Node, parse_yaml, read_yaml


def parsed(text: str) -> Node:
    return parse_yaml(text, lambda line, column: Location("x", line, column))


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parsed(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1_000", 1000),
        ("0x10", 16),
        ("-.5", -0.5),
        ("no", "no"),
        ("on", "on"),
        ("24:00:00", "24:00:00"),
        ("~", None),
        ("", None),
        ("True", True),
        ("'1'", "1"),
        ("0", 0),
        ("[1, [a], {b: c}]", [1, ["a"], {"b": "c"}]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_read_as_yaml_1_2_says(written: str, value: object) -> None:
    found = parsed(f"key: {written}").plain()["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line_and_column() -> None:
    tree = parsed("a: 1\nb:\n  c: [x,\n    y]\n")
    assert tree.where == ("x", 1, 1)
    assert isinstance(tree.value, dict)
    assert isinstance(tree.value["b"].value, dict)
    inner = tree.value["b"].value["c"]
    assert inner.where == ("x", 3, 3)
    assert isinstance(inner.value, tuple)
    assert [item.where for item in inner.value] == [("x", 3, 7), ("x", 4, 5)]


def test_equal_keys_are_an_error_that_names_both_places() -> None:
    assert refused("a:\n  b: 1\n  c: 2\n  b: 3\n") == "x:4:3: b: `b` is written twice (the first is at x:2:3)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &n 1", "x:1:4: the anchor &n stands here; write the value out, or share it through `extends`"),
        ("a: &n 1\nb: *n", "x:2:4: the alias *n stands here; write the value out, or share it through `extends`"),
        ("<<: {a: 1}", "x:1:1: `<<` merges nothing here; share values through `extends`"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "x:1:4: the tag tag:yaml.org,2002:python/object/apply:os.system stands here",
        ),
        ("a: !x 1", "x:1:4: the tag !x stands here; write a plain value"),
        ("1: a", "x:1:1: keys are text, and `1` is not (put it in quotes if it is meant)"),
        ("true: a", "x:1:1: keys are text, and `true` is not"),
        ("? [a]\n: b", "x:1:3: keys are text, and this one is not"),
        (": b", "x:1:1: keys are text, and this one is not"),
        ("a: 2026-01-01", "x:1:4: `2026-01-01` reads as a date (put it in quotes if it is text)"),
        ("a: .nan", "x:1:4: `.nan` is no number that a spec can use"),
        ("a: [-.inf]", "x:1:5: `-.inf` is no number that a spec can use"),
        ("a: 1e999", "x:1:4: `1e999` is no number that a spec can use"),
        ("a: 99999999999999999999", "x:1:4: `99999999999999999999` is no number that a spec can use"),
        ("a: " + "9" * 5000, "x:1:4: `9999999999999999999999999999999999999...` is not a number"),
        ("a: 012", "x:1:4: `012` is not a number (no leading zeros; put it in quotes if it is text)"),
        ("a:\n\tb: 1", "x:2:1: a tab stands here; YAML is indented with spaces"),
        ("a: b: c", "x:1:5: not valid YAML: mapping values are not allowed here"),
        ("a: [1, 2", "x:1:9: not valid YAML: expected ',' or ']'"),
        ("a: 'b", "not valid YAML: found unexpected end of stream"),
        ("a: 1\n  b: 2", "x:2:4: not valid YAML: mapping values are not allowed here"),
        ('a: "\\UFFFFFFFF"', "x:1:1: not valid YAML"),
        ('a: "\\ud800"', "x:1:4: the text holds the control character U+D800"),
        ('a: "\\0"', "x:1:4: the text holds the control character U+0000"),
        ("a: 1\nb: \x01", "x:2:4: not a text file: it holds the control character U+0001"),
        ("a: 1\n---\nb: 2", "x:2:1: a second document starts here; a spec is one document"),
        ("%YAML 1.1\n---\na: no", "x:2:1: a spec is YAML 1.2; remove the %YAML line above"),
        ("a: " + "[" * 99 + "]" * 99, f"x:1:36: nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_a_spec_may_not_hold_is_refused_with_its_place(text: str, message: str) -> None:
    assert message in refused(text)


def test_all_odd_values_of_a_file_are_reported_at_once() -> None:
    assert len(refused("a: .nan\n1: 2\nc: 2026-01-01\nc: 3").splitlines()) == 4


def test_a_billion_laughs_stop_at_the_first() -> None:
    laughs = "a: &a [x, x, x, x]\n" + "".join(
        f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n" for before, this in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert refused(laughs).startswith("x:1:4: the anchor &a stands here")


def test_files_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("é: 1\nname: \xff".encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.yaml:1:1: not UTF-8 text \(byte 0xe9\)"):
        read_yaml(path)
    path.write_bytes("é: 1\nname: ".encode() + b"\xff")
    with pytest.raises(InputError, match=r"x\.yaml:2:7: not UTF-8 text \(byte 0xff\)"):
        read_yaml(path)
    path.write_bytes("name: a".encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_yaml(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_yaml(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffname: a".encode())
    assert read_yaml(path).plain() == {"name": "a"}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("name: a")
    with pytest.raises(InputError, match=r"no such file: .*/toi\.yaml \(did you mean .*/toy\.yaml\?\)"):
        read_yaml(tmp_path / "toi.yaml")
    with pytest.raises(InputError, match="is a folder; name a YAML file in it"):
        read_yaml(tmp_path)
    with pytest.raises(InputError, match="File name too long"):
        read_yaml(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="cannot read"):
        read_yaml(tmp_path / "a\0b")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="symbolic links"):
        read_yaml(tmp_path / "loop")
    with pytest.raises(InputError, match="is not a regular file"):
        read_yaml(Path("/dev/null"))
    (tmp_path / "large.yaml").write_text("#" * (1 << 20) + "#")
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_yaml(tmp_path / "large.yaml")
