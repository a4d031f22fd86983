"""Tables on the console, the official CSV files and JSON."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import ino
from ino.errors import OutputError
from ino.metrics import Summary
from ino.tasks.davis import DavisScores, ObjectScore, print_scores, write_csv, write_json


@pytest.fixture
def scores() -> DavisScores:
    return DavisScores(
        objects=(
            ObjectScore("dog", 1, j=Summary(0.86654, 1.0, 0.064), f=Summary(0.846, 0.98, 0.16)),
            ObjectScore("pigs", 3, j=Summary(0.5, 0.25, -0.1), f=Summary(0.4, 0.5, 0.3)),
        )
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_every_number(scores, width):
    text = io.StringIO()
    print_scores(scores, Console(file=text, width=width))
    rows = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert ["dog", "1", "85.6", "86.7", "100.0", "6.4", "84.6", "98.0", "16.0"] in rows
    assert ["pigs", "3", "45.0", "50.0", "25.0", "-10.0", "40.0", "50.0", "30.0"] in rows
    assert ["mean", "2", "65.3", "68.3", "62.5", "-1.8", "62.3", "74.0", "23.0"] in rows
    assert ["Mean", "Mean", "Recall", "Decay", "Mean", "Recall", "Decay"] in [
        [word for word in row if word not in ("Sequence", "Object")] for row in rows
    ]


def test_the_table_fits_80_columns_with_the_longest_name_of_davis(scores):
    text = io.StringIO()
    one = ObjectScore("paragliding-launch", 3, j=scores.objects[0].j, f=scores.objects[0].f)
    print_scores(DavisScores(objects=(one,)), Console(file=text, width=80))
    assert "paragliding-launch" in text.getvalue()
    assert "…" not in text.getvalue()


def test_csv_files_are_those_of_the_official_evaluation(scores, tmp_path):
    (tmp_path / "global_results-val.csv").write_text("old")
    whole, single = write_csv(scores, tmp_path)
    assert whole.name == "global_results-val.csv"
    assert single.name == "per-sequence_results-val.csv"
    assert whole.read_bytes() == (
        b"J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n"
        b"0.653,0.683,0.625,-0.018,0.623,0.740,0.230\n"
    )
    assert single.read_bytes() == (
        b"Sequence,J-Mean,F-Mean\ndog_1,0.867,0.846\npigs_3,0.500,0.400\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [whole.name, single.name]
    assert write_csv(scores, tmp_path, split="train")[0].name == "global_results-train.csv"


def test_json_holds_everything(scores, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    protocol = {"name": "ino-davis", "radius": 40, "weights": Path("student.pt")}
    write_json(scores, path, protocol=protocol)
    content = json.loads(path.read_text())
    assert content["software"] == {"name": "ino", "version": ino.__version__}
    assert content["protocol"] == {"name": "ino-davis", "radius": 40, "weights": "student.pt"}
    assert content["global"]["J&F-Mean"] == scores.jf_mean
    assert list(content["global"]) == [
        "J&F-Mean",
        "J-Mean",
        "J-Recall",
        "J-Decay",
        "F-Mean",
        "F-Recall",
        "F-Decay",
    ]
    assert content["objects"][1] == {
        "sequence": "pigs",
        "object_id": 3,
        "j": {"mean": 0.5, "recall": 0.25, "decay": -0.1},
        "f": {"mean": 0.4, "recall": 0.5, "decay": 0.3},
    }
    write_json(scores, path, protocol=None)
    assert json.loads(path.read_text())["protocol"] is None


def test_what_cannot_be_written_is_said(scores, tmp_path):
    with pytest.raises(OutputError, match="absent does not exist"):
        write_csv(scores, tmp_path / "absent")
    with pytest.raises(OutputError, match=r"scores\.json: the folder .*absent does not exist"):
        write_json(scores, tmp_path / "absent" / "scores.json", protocol=None)
