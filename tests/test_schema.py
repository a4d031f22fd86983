"""What is wrong with a file or a value is said in one sentence that names it."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ino.errors import ConfigError
from ino.schema import Model, checked, parse_json, read_json, read_yaml, yaml_value


class Row(Model):
    size: int = 1
    weights: dict[str, float] = Field(default_factory=dict)


class Table(Model):
    title: str = ""
    lr: Annotated[float, Field(gt=0)] = 1.0
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    kind: Literal["block", "random"] = "block"
    scale: tuple[float, float] = (0.5, 1.0)
    names: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["a"])
    is_wide: bool = False
    rows: dict[str, Row] = Field(default_factory=dict)
    steps: list[Row] = Field(default_factory=list)
    first: int | list[int] | Row = 0
    best: Row | None = None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"titel": "x"}, "unknown key titel; did you mean title?"),
        ({"rows": {"a b": {"sizes": 1}}}, "unknown key rows.a b.sizes; did you mean rows.a b.size"),
        ({"best": {"zoom": 1}}, "unknown key best.zoom; known are size, weights"),
        ({"lr": "fast"}, "lr must be a number, but is 'fast'"),
        ({"lr": -3}, "lr must be greater than 0, but is -3"),
        ({"lr": float("inf")}, "lr must be a finite number, but is inf"),
        ({"share": 1.5}, "share must be at most 1, but is 1.5"),
        ({"share": -1}, "share must be at least 0, but is -1"),
        ({"workers": -1}, "workers must be at least 0 or 'auto', but is -1"),
        ({"workers": "all"}, "workers must be a whole number or 'auto', but is 'all'"),
        ({"kind": "none"}, "kind must be 'block' or 'random', but is 'none'"),
        ({"scale": [1]}, "scale[1] is missing"),
        ({"scale": [1, "b"]}, "scale[1] must be a number, but is 'b'"),
        ({"scale": [1, 2, 3]}, "scale must be a list of at most 2, but is [1, 2, 3]"),
        ({"names": []}, "names must be a list of at least 1, but is []"),
        ({"names": "a"}, "names must be a list, but is 'a'"),
        ({"title": False}, "title must be text, but is False"),
        ({"is_wide": 7}, "is_wide must be true or false, but is 7"),
        ({"rows": 3}, "rows must be keys and values, but is 3"),
        ({"rows": {"a": 3}}, "rows.a must be keys and values, but is 3"),
        ({"rows": {"a": {"weights": {"b": "c"}}}}, "rows.a.weights.b must be a number, but is 'c'"),
        ({"steps": [{}, {"size": 1.5}]}, "steps[1].size must be a whole number, but is 1.5"),
        ({"first": {"size": "b"}}, "first.size must be a whole number, but is 'b'"),
        ({"first": [1, "b"]}, "first[1] must be a whole number, but is 'b'"),
        ({"names": ["a" * 200] * 2 + [0]}, "names[2] must be text, but is 0"),
        ({"lr": "a" * 200}, f"lr must be a number, but is '{'a' * 79}..."),
    ],
)
def test_a_wrong_value_is_told_by_name_rule_and_value(values, sentence):
    with pytest.raises(ConfigError, match=re.escape(f"the file: {sentence}")):
        checked(Table, values, where="the file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [\n", "table.yaml, line 2 cannot be used: while parsing a flow node"),
        ("a: 1\n\na: 2\n", "table.yaml, line 3 cannot be used: the key 'a' is there twice"),
        ("b: {a: 1, a: 2}\n", "line 1 cannot be used: the key 'a' is there twice"),
        ("a: &x 1\nb: *x\n", "line 2 cannot be used: alias *x is not allowed"),
        ("a: {<<: {b: 1}}\n", "line 1 cannot be used: the merge key << is not allowed"),
        ("a:\n  8: 1\n", "line 2 cannot be used: the key 8 is no name: put it in quotes"),
        ("{[1]: 2}\n", "the key that is a list or map is no name"),
        ("a: !!python/object:os.system {}\n", "line 1 cannot be used"),
        ("a: \0\n", "special characters are not allowed"),
        ("- 1\n", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("a: " + "[" * 5000, "cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, words):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read_yaml(path, what="table")
    assert "\n" not in str(caught.value)


def test_bytes_and_folders_are_no_files_of_text(tmp_path):
    (tmp_path / "table.yaml").write_bytes(b"a: \xff\n")
    for path in (tmp_path / "table.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be"):
            read_yaml(path, what="table")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-0", 0),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("010", "010"),
        ("1:30", "1:30"),
        ("true", True),
        ("off", "off"),
        ("no", "no"),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("[0.5, 1]", [0.5, 1]),
        ("{a: b}", {"a": "b"}),
        ("[", "["),
        ("*x", "*x"),
    ],
)
def test_texts_mean_what_yaml_1_2_says(text, value):
    found = yaml_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x {b: 1}\nc:\n  <<: {b: 2}", "merge key <<"),
        ("a: &x [*x]", "alias"),
        ("a: " + "[" * 65 + "]" * 65, "more than 64 levels"),
        ("a: " + "{b: " * 100_000, "more than 64 levels|more than 262144 bytes"),
        ('a: "b\\0"', "NUL"),
        ("a: b\0", "special characters"),
        ("a: 1\n" * 60_000, "more than 262144 bytes"),
    ],
)
def test_hostile_yaml_is_refused_at_once(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"the table .*a\.yaml.*({words})"):
        read_yaml(path, what="table")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "64 levels"),
        ("[" * 65 + "]" * 65, "64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "64 levels"),
        ("[1e400]", "1e400 is no finite number"),
        ("[-1e400]", "no finite number"),
        ("NaN", "NaN is no finite number"),
        ("Infinity", "no finite number"),
        ('["a\\u0000"]', "NUL"),
        ("9" * 5000, "digits"),
        ("[1", "delimiter"),
    ],
)
def test_hostile_json_is_a_value_error(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_is_read_as_it_is(tmp_path):
    value = {"a": [1, 0.5, None, "é", True], "b": json.loads("[" * 62 + "]" * 62)}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "pipe"])
def test_devices_and_pipes_are_not_read(tmp_path, device):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / device
    with pytest.raises(OSError, match="a device or a pipe"):
        read_json(path)
    with pytest.raises(ConfigError, match="cannot be read: it is a device or a pipe"):
        read_yaml(Path(path), what="table")
