"""Run directories appear whole or not at all, refuse what is not theirs, and say which hash differs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from evoprune.run_directory import RunDirectory, check_writable, read_json, write_json
from search_spaces.errors import RunDirectoryError

OPTIONS: dict[str, Any] = {"model": "vgg16", "budget": {"macs": 0.3}}
HASHES = {"weights": "a" * 64, "data": "b" * 64, "space": "c" * 64}


def create(path: Path) -> RunDirectory:
    return RunDirectory.create(path, options=OPTIONS, hashes=HASHES)


def test_a_new_run_directory_can_be_opened_and_checked(tmp_path: Path) -> None:
    create(tmp_path / "deep" / "run")
    run = RunDirectory.open_existing(tmp_path / "deep" / "run")
    assert run.read_config()["options"] == OPTIONS
    assert "torch" in run.read_config()["versions"]
    run.check_hashes(HASHES)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    create(tmp_path / "run")
    assert (tmp_path / "run" / "config.json").is_file()


def test_an_empty_folder_stays_the_folder_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    number = folder.stat().st_ino
    monkeypatch.chdir(folder)
    for place in (Path(), tmp_path / "link"):
        RunDirectory.check_available(place)
        run = create(place)
        assert run.path == folder.resolve()
        assert folder.stat().st_ino == number
        assert sorted(entry.name for entry in Path().iterdir()) == ["checkpoint", "config.json"]
        run.config_path.unlink()
        run.checkpoint_path.rmdir()
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_what_does_not_exist_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert create(tmp_path / "link").path == (tmp_path / "run").resolve()
    assert (tmp_path / "link" / "config.json").is_file()


def test_a_failure_while_filling_leaves_the_folder_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        RunDirectory.create(tmp_path, options={"budget": float("nan")}, hashes=HASHES)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_refused_with_the_resume_command(tmp_path: Path) -> None:
    create(tmp_path / "run")
    for refuse in (create, RunDirectory.check_available):
        with pytest.raises(RunDirectoryError, match=r"holds a run; continue it with `evoprune resume .*run`.*--out"):
            refuse(tmp_path / "run")


def test_a_folder_with_other_content_and_a_file_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "folder", tmp_path / "file"):
        for refuse in (create, RunDirectory.check_available):
            with pytest.raises(RunDirectoryError, match="choose another --out"):
                refuse(path)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "years of work"


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    RunDirectory.check_available(tmp_path / "a" / "b" / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/run", "/proc/evoprune-run"])
def test_an_unwritable_place_is_an_error_that_leaves_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    for refuse in (create, RunDirectory.check_available):
        with pytest.raises(RunDirectoryError, match="must be writable"):
            refuse(tmp_path / place)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_while_creating_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        RunDirectory.create(tmp_path / "run", options={"budget": float("nan")}, hashes=HASHES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights", "data", "space"])
def test_a_differing_hash_is_named(tmp_path: Path, name: str) -> None:
    run = create(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=rf"these differ: {name} \(recorded \w+, now dddddddddddd\);"):
        run.check_hashes({**HASHES, name: "d" * 64})


def test_edited_options_are_named(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    config = run.read_config()
    config["options"]["budget"] = {"macs": 0.5}
    write_json(run.config_path, config)
    with pytest.raises(RunDirectoryError, match="these differ: options"):
        run.check_hashes(HASHES)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"schema_version": 1}'])
def test_a_damaged_config_is_an_error(tmp_path: Path, content: str) -> None:
    run = create(tmp_path / "run")
    run.config_path.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"config\.json"):
        RunDirectory.open_existing(tmp_path / "run")


@pytest.mark.parametrize("name", ["options", "hashes", "versions"])
def test_a_config_with_something_else_in_place_of_an_object_is_an_error(tmp_path: Path, name: str) -> None:
    run = create(tmp_path / "run")
    write_json(run.config_path, {**run.read_config(), name: [1]})
    with pytest.raises(RunDirectoryError, match=rf"`{name}` in .*config\.json' must be a JSON object, but is a list"):
        RunDirectory.open_existing(tmp_path / "run")


def test_what_is_no_run_directory_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunDirectoryError, match=r"must hold config\.json"):
            RunDirectory.open_existing(path)


def test_a_run_of_another_version_is_an_error(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    write_json(run.config_path, {**run.read_config(), "schema_version": 99})
    with pytest.raises(RunDirectoryError, match="has version 99"):
        RunDirectory.open_existing(run.path)


def test_a_torn_log_line_harms_no_other(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert list(run.read_log()) == []
    run.append_log("generation", generation=0)
    with run.log_path.open("a") as file:
        file.write('{"event": "gener')
    run.append_log("generation", generation=1)
    assert [event["generation"] for event in run.read_log()] == [0, 1]
    assert [json.loads(run.log_path.read_text().splitlines()[i])["generation"] for i in (0, 2)] == [0, 1]


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert not run.is_held()
    with run.locked(), pytest.raises(RunDirectoryError, match="one process at a time"), run.locked():
        pass
    with run.locked():
        assert run.is_held()
    assert not run.is_held()


def test_a_file_replaces_its_own_kind_alone(tmp_path: Path) -> None:
    run = create(tmp_path / "run")

    def check(path: Path) -> None:
        check_writable(path, "a drawing", lambda file: file.suffix == ".svg")

    for name in ("new", "empty", "old.svg"):
        path = tmp_path / name
        if name != "new":
            path.write_text("" if name == "empty" else "<svg/>")
        check(path)
        check(run.path / name)
    (tmp_path / "notes.md").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"a drawing replaces nothing but another one, but .*notes\.md"):
        check(tmp_path / "notes.md")
    for place in ("config.json", "result.json", "best/drawing.svg"):
        with pytest.raises(RunDirectoryError, match="must not take the place of what a run holds of its own"):
            check(run.path / place)
