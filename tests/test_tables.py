"""Tables on the screen, as CSV, Markdown and JSON."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from ino.tables import fraction, markdown, percent, print_table, shown, write_csv, write_json

ROWS = [
    ["row", "what", "J&F", "$f$"],
    ["[red]a[/red]", "two words or more of them", "85.6", "-"],
    ["<b> :smile:", "", "7.0", "1.0"],
    ["mean", "", "46.3", "1.0"],
]


def printed(rows, *, width=100, **options) -> str:
    text = io.StringIO()
    print_table(rows, Console(file=text, width=width), **options)
    return text.getvalue()


@pytest.mark.parametrize("has_total", [False, True])
def test_texts_are_no_markup(has_total):
    options = {"num_texts": 2, "has_total": has_total, "caption": "in [percent]"}
    screen = printed(ROWS, width=80, **options)
    for row in ROWS:
        assert all(word in screen for text in row for word in text.split()), row
    assert "in [percent]" in screen
    lines = [line for line in screen.splitlines() if line.strip(" ─")]
    assert len(lines) == 6  # the second column is wrapped at words: two lines of the first row
    assert lines[-2].split() == ["mean", "46.3", "1.0"]


def test_numbers_are_aligned_to_the_right():
    lines = printed([["name", "number"], ["a", "1.0"], ["b", "100.0"]]).splitlines()
    ends = {len(line.rstrip()) for line in lines if line.endswith((".0 ", "r ")) or ".0" in line}
    assert len(ends) == 1


def test_long_labels_are_folded_and_short_ones_are_whole():
    assert "paragliding-launch" in printed([["a", "b"], ["paragliding-launch", "1"]], width=60)
    screen = printed([["a", "b"], ["x" * 70, "1"]], width=60)
    assert screen.count("x") == 70


WIDE = [
    ["row", "weights", "J&F\n(published)", "steps"],
    ["a", "runs/a/checkpoints/step_00003000", "45.4 ± 0.2 (72.5, -27.1)", ""],
    ["mean", "", "45.4", "3000"],
]


CAPTION = "in brackets what was published, in percent"


@pytest.mark.parametrize("width", [68, 72, 80, 100])
def test_words_are_never_broken_in_a_table(width):
    screen = printed(WIDE, width=width, num_texts=2, has_total=True)
    assert max(map(len, screen.splitlines())) <= width
    words = {word for row in WIDE for cell in row for word in cell.split()}
    assert words <= set(screen.split())


def test_first_cells_are_broken_where_the_others_need_the_width():
    screen = printed([["network", "J&F"], ["mean removed, changes equal", "84.9"]], width=32)
    lines = [line.split() for line in screen.splitlines() if "mean" in line or "equal" in line]
    assert lines == [["mean", "84.9"], ["equal"]]


def test_a_caption_has_the_whole_width():
    assert "what was published, in percent" in printed([["a"], ["b"]], caption=CAPTION)


def test_a_row_that_is_too_wide_for_the_screen_becomes_a_list():
    screen = printed(WIDE, width=60, num_texts=2, has_total=True, caption="percent")
    assert [line.rstrip() for line in screen.splitlines()] == [
        "a",
        "  weights          runs/a/checkpoints/step_00003000",
        "  J&F (published)  45.4 ± 0.2 (72.5, -27.1)",
        "",
        "mean",
        "  J&F (published)  45.4",
        "  steps            3000",
        "",
        "percent",
        "",
    ]


def test_markdown():
    assert markdown([["a", "b"], ["x", "1.0"]]) == "| a | b |\n| --- | ---: |\n| x | 1.0 |\n"


def test_numbers_as_texts():
    assert [percent(value) for value in (0.12345, None, math.nan)] == ["12.3", "-", "-"]
    assert [fraction(value) for value in (0.12345, None)] == ["0.123", ""]


def test_files(tmp_path):
    write_csv(tmp_path / "a.csv", [["a", "b, c"], ["x", "1.0"]])
    assert (tmp_path / "a.csv").read_bytes() == b'a,"b, c"\nx,1.0\n'
    write_json(tmp_path / "a.json", {"a": {"b": math.nan, "c": (1.5, tmp_path)}})
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["software", "a"]
    assert content["a"] == {"b": None, "c": [1.5, str(tmp_path)]}


HOSTILE = "a\x1b[31m\n\u202eb\udce9 [red]x[/red] <b>$_é|"


def test_what_is_shown_is_one_line_without_control_characters():
    assert shown(HOSTILE) == r"a\x1b[31m\n\u202eb\xe9 [red]x[/red] <b>$_é|"
    assert shown(Path("a\tb")) == r"a\tb"
    assert shown("été 日本　語 👩‍👧") == "été 日本　語 👩‍👧"


def test_tables_show_hostile_names_as_they_are(tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=True)
    print_table([["name", "J&F"], [HOSTILE, "1.0"]], console, caption="a\x1b[31m[b]")
    assert r"a\x1b[31m\n\u202eb\xe9 [red]x[/red] <b>$_é|" in screen.getvalue()
    assert r"a\x1b[31m[b]" in screen.getvalue()
    assert "\x1b[31m" not in screen.getvalue()
    text = markdown([["name", "J&F"], [HOSTILE, "1.0"]])
    assert text.splitlines()[2] == (r"| a\\x1b[31m\\n\\u202eb\\xe9 [red]x[/red] \<b>$_é\| | 1.0 |")
    path = tmp_path / "a.csv"
    write_csv(path, [["=1+1", "-0.25"], ["-", "@x"], [HOSTILE, "+a"], ["\t=1", None]])
    assert list(csv.reader(path.open(encoding="utf-8"))) == [
        ["'=1+1", "-0.25"],
        ["-", "'@x"],
        [shown(HOSTILE), "'+a"],
        [r"\t=1", ""],
    ]
