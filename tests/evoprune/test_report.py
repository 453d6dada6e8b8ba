"""The report of a run: finished, unfinished, staged, damaged; and without Plotly."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import evoprune
from evoprune.callbacks import GenerationFinished
from evoprune.report import write_report
from evoprune.run_directory import RunDirectory
from evoprune.stopping import MaxEvaluations
from search_spaces.errors import OptionError, RunDirectoryError
from tests.evoprune.test_runner import make_run
from tests.evoprune.test_runner import run as run_tiny
from tests.evoprune.tiny_data import bars, small_network
from tests.integration.command_line import run

pytest.importorskip("plotly", reason="the extra report is not installed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "a <run>"
    options: dict[str, Any] = {"budget": 0.6, "seed": 0, "population_size": 4, "n_generations": 2}
    evoprune.search(small_network(), bars(), out=folder, n_fitness_images=16, **options)
    return folder


class _Page(HTMLParser):
    """Headings and cells of the page, and whatever it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.loaded: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - whichever it is
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("h1", "h2"):
            self.headings.append(data)
        if self._tag == "p":
            self.texts.append(data)
        if self._tag == "td":
            self.cells.append(data)


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text())
    return page


def _plots(path: Path) -> list[list[Any]]:
    """Return the traces of every plot, as Plotly's script is given them."""
    decoder = json.JSONDecoder()
    text = path.read_text()
    starts = [match.end() for match in re.finditer(r'Plotly\.newPlot\(\s*"plot-\d+",\s*', text)]
    return [decoder.raw_decode(text[start:])[0] for start in starts]


def test_a_finished_run(finished: Path) -> None:
    path = write_report(finished)
    assert path == finished / "report.html"
    page = _read(path)
    assert page.headings == ["a <run>", "The course of the search", "Quality and cost", "What is kept of every group"]
    assert page.loaded == []
    result = json.loads((finished / "result.json").read_text())
    assert f"{result['test_accuracy']:.2%}" in page.cells
    course, quality, kept = _plots(path)
    assert [trace["name"] for trace in quality] == ["judged", "front"]
    description = json.loads((finished / "best" / "evoprune.json").read_text())
    kept_channels = description["genome"]["kept_channels"]
    assert kept[0]["x"] == list(kept_channels)
    assert description["genome"]["group_sizes"] == {"0": 8}
    assert kept[0]["text"] == [f"{len(channels)} of 8" for channels in kept_channels.values()]
    assert course[0]["name"] == "best"
    assert len(course[0]["text"]) == 3


def test_equal_runs_have_equal_reports(finished: Path) -> None:
    assert write_report(finished).read_bytes() == write_report(finished).read_bytes()


def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    assert _read(write_report(directory.path)).headings == ["run"]
    run_tiny(directory, stop=MaxEvaluations(20))
    path = write_report(directory.path, tmp_path / "elsewhere.html")
    assert _read(path).headings == ["run", "The course of the search", "Quality and cost"]
    assert [trace["name"] for trace in _plots(path)[1]] == ["judged"]


def test_sensitivity_curves_are_drawn_where_a_run_has_them(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    (directory.path / "sensitivity.csv").write_text(
        "part,cost_share,error,rung\nstem,1.0,0.0,network\nstem,0.8,0.5,network\nhead,1.0,0.0,network\n"
    )
    (traces,) = _plots(write_report(directory.path))
    assert [trace["name"] for trace in traces] == ["stem", "head"]
    assert traces[0]["type"] == "scatter"
    assert traces[0]["mode"] == "lines+markers"
    assert (traces[0]["x"], traces[0]["y"]) == ([0.8, 1.0], [0.5, 0.0])  # by cost


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("layerwise", "no sensitivity.csv yet"),
        ("staged", "under a budget; without one no stage is cut alone"),
        ("global", ""),
    ],
)
def test_a_run_without_sensitivity_says_why_where_its_mode_measures_it(tmp_path: Path, mode: str, reason: str) -> None:
    directory = RunDirectory.create(tmp_path / "run", options={"mode": mode}, hashes={})
    page = _read(write_report(directory.path))
    assert ("What cutting each part alone does" in page.headings) == bool(reason)
    assert reason in "".join(page.texts)


def test_a_live_run_of_parts_has_its_curves_from_the_first_generation_on(tmp_path: Path) -> None:
    n_traces: list[int] = []

    class Watching(evoprune.Callback):
        def on_generation(self, event: GenerationFinished) -> None:  # noqa: ARG002 - when is enough
            n_traces.append(len(_plots(write_report(tmp_path / "run"))[-1]))

    options: dict[str, Any] = {"budget": 0.6, "seed": 0, "population_size": 4, "n_generations": 0, "mode": "layerwise"}
    evoprune.search(
        small_network(), bars(), out=tmp_path / "run", callbacks=[Watching()], n_fitness_images=16, **options
    )
    assert n_traces == [1]  # it has one group


def test_a_damaged_file_is_named(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "front.csv").write_text("macs,objective\n1,2\n")
    with pytest.raises(RunDirectoryError, match=r"must be as evoprune wrote them.*KeyError: 'rung'"):
        write_report(copy)


def test_without_plotly(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(OptionError, match=r"needs the extra `report`.*pip install 'evoprune\[report\]'"):
        write_report(finished)


def test_on_the_command_line(finished: Path, tmp_path: Path) -> None:
    outcome = run("report", finished, "--out", tmp_path / "page.html")
    assert (outcome.exit_code, outcome.stdout.strip()) == (0, str(tmp_path / "page.html"))
    described = run("report", finished, "--json").json
    assert described == {"report": str(finished / "report.html"), "n_bytes": (finished / "report.html").stat().st_size}
    assert run("report", tmp_path).message.startswith("error: a run directory must hold config.json")
    assert "needs a folder that exists" in run("report", finished, "--out", tmp_path / "no" / "page.html").message
