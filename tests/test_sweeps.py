"""A sweep computes what is missing, keeps it at once, and never mixes what must not be mixed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mindeye2_lite import cli, grids, paths, sources, sweeps, synthetic
from mindeye2_lite.config import Config

LITE = Config.lite()
KEYS = [{"subject": s, "seed": seed} for seed in range(2) for s in (1, 2)]


def row(value: float, stage: str = "brain") -> dict:
    return {
        "stage": stage,
        "metric": "SSIM",
        "chance": 0.5,
        "better": "higher",
        "values": np.array([value, np.nan, 1.0]),
    }


def keys(config, seeds, subjects):
    return [{"subject": s, "seed": seed} for seed in seeds for s in subjects]


def cell(config, root, key):
    """Leaves a trace of who computed it."""
    (root / f"{key['subject']}-{key['seed']}-{os.getpid()}").touch()
    print("training now")
    return [row(key["seed"] + key["subject"] / 3)]


def slow(config, root, key):
    time.sleep(0.0 if key == KEYS[0] else 60)
    return cell(config, root, key)


def wrong(config, root, key):
    if key["subject"] == 2:
        raise ValueError("no such\nperson")
    return cell(config, root, key)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Registers a sweep; its files and its data lie in tmp_path."""
    return stubs(tmp_path, monkeypatch)


def stubs(folder, monkeypatch):
    """What `fake` is, also for sweep_worker.py."""
    (folder / "results").mkdir(exist_ok=True)
    monkeypatch.setattr(paths, "results", lambda name: folder / "results" / f"{name}.json")
    monkeypatch.setattr(synthetic, "open_cohort", lambda *_, **__: folder)
    monkeypatch.setattr(sources, "source", lambda *_: "abc")
    monkeypatch.setattr(grids, "SWEEPS", {})

    def register(measure=cell, name="fake-sweep", **how):
        grids.SWEEPS[name] = grids.Sweep(
            "a stub", ("subject", "seed"), keys, measure, (1, 2), **how
        )

    register()
    return register


def go(name="fake-sweep", config=LITE, **how):
    how = {"seeds": range(2), "executor": "serial", "progress": False} | how
    return sweeps.run(name, config, **how)


def content(name="fake_sweep"):
    return json.loads(paths.results(name).read_text())


def traces(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_file_says_what_made_it_and_holds_a_cell_per_line(fake, tmp_path, capsys):
    assert go().startswith("fake-sweep: 4 of 4 cells in ")
    found = content()
    assert found["command"] == "mindeye2-lite sweep fake-sweep --profile lite --seeds 2"
    assert (found["profile"], found["source"], found["seed"]) == ("lite", "abc", [0, 1])
    assert [c["cell"] for c in found["cells"]] == KEYS
    assert found["cells"][0]["rows"] == [row(0) | {"values": [0.3333, None, 1]}]
    assert found["commit"] == found["cells"][0]["commit"] and found["device"]
    lines = paths.results("fake_sweep").read_text().splitlines()
    assert sum(line.startswith('{"cell":') for line in lines) == 4 and len(lines) < 20
    assert "training now" not in capsys.readouterr().out


def test_what_is_there_is_not_computed_again(fake, tmp_path):
    go(limit=1)
    assert len(content()["cells"]) == 1 and len(traces(tmp_path)) == 1
    go(seeds=range(1))
    assert [c["cell"] for c in content()["cells"]] == KEYS[:2]
    before = content()["cells"][0]
    go(), go(seeds=range(1))
    assert content()["cells"][0] == before
    assert len(traces(tmp_path)) == 4 == len(content()["cells"])


def test_two_processes_share_the_cells(fake, tmp_path):
    go(executor="local:2", seeds=range(4))
    assert len(content()["cells"]) == 8
    pids = {name.rpartition("-")[2] for name in traces(tmp_path)}
    assert str(os.getpid()) not in pids
    assert sorted(map(str, content()["seed"])) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("what, value", [("profile", "paper"), ("source", "xyz")])
def test_a_file_of_another_profile_or_source_is_refused(fake, monkeypatch, what, value):
    go()
    path = paths.results("fake_sweep")
    path.write_text(
        path.read_text().replace(f'"{what}": "{content()[what]}"', f'"{what}": "{value}"')
    )
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=f"4 cells of {what} '{value}', this is .* --fresh"
    ) as said:
        go()
    assert "\n" not in str(said.value) and path.read_bytes() == before
    go(fresh=True, limit=1)
    assert len(content()["cells"]) == 1 and content()[what] != value


def test_a_broken_file_is_refused_in_one_line(fake):
    paths.results("fake_sweep").write_text('{"cells": [')
    with pytest.raises(ValueError, match="is not JSON .* --fresh"):
        go()


def test_commits_may_move_on_and_all_are_named(fake, monkeypatch):
    monkeypatch.setattr("mindeye2_lite.experiments.commit", lambda: "aaa")
    go(limit=1)
    assert content()["commit"] == "aaa"
    monkeypatch.setattr("mindeye2_lite.experiments.commit", lambda: "bbb")
    go()
    assert content()["commit"] == ["aaa", "bbb"]


def test_code_that_changes_meanwhile_ends_the_run_and_keeps_what_was_before(fake, monkeypatch):
    checks = iter([None, ValueError("the code was changed")])

    def check(self):
        if error := next(checks):
            raise error

    monkeypatch.setattr(sources.Watch, "check", check)
    with pytest.raises(ValueError, match="was changed"):
        go()
    assert len(content()["cells"]) == 1


def test_cells_of_other_ablations_are_copied(fake, tmp_path):
    for name in ("first", "second", "other"):
        fake(name=name, shares=name != "other")
    go("first", seeds=range(1)), go("other", seeds=range(3))
    assert len(traces(tmp_path)) == 6
    assert go("second", limit=1).startswith("second: 3 of 4")
    assert len(traces(tmp_path)) == 6, "the one that was computed leaves the same trace"
    assert content("second")["cells"][:2] == content("first")["cells"]
    path = paths.results("first")
    path.write_text(path.read_text().replace('"abc"', '"old"'))
    paths.results("second").unlink()
    assert go("second", limit=1).startswith("second: 1 of 4"), "nothing of another source"


def test_a_cell_that_fails_does_not_stop_the_others(fake, capsys):
    fake(wrong)
    with pytest.raises(
        ValueError, match="2 cells .* failed, 2 are there: .*no such person"
    ) as said:
        go()
    assert "\n" not in str(said.value) and "test_sweeps.py:" in str(said.value)
    assert len(content()["cells"]) == 2 and "no such person" in capsys.readouterr().err


def test_many_cells_that_fail_stop_the_run(fake):
    fake(wrong)
    with pytest.raises(ValueError, match="4 cells"):
        go(subjects=[2], seeds=range(20))


def in_another_process(folder):
    """Starts a slow sweep from the command line, and waits until there is a cell.

    A program of its own: a fork of one that has used threads can hang.
    """
    worker = Path(__file__).with_name("sweep_worker.py")
    process = subprocess.Popen([sys.executable, worker, folder], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not paths.results("fake_sweep").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return process


def test_a_second_start_is_refused_and_a_kill_costs_the_running_cell_only(fake, tmp_path):
    process = in_another_process(tmp_path)
    with pytest.raises(ValueError, match="sweep fake-sweep is running already") as said:
        go()
    assert "\n" not in str(said.value)
    process.kill()
    process.communicate()
    assert len(content()["cells"]) == 1
    assert go().startswith("fake-sweep: 4 of 4")
    assert not list(paths.results("fake_sweep").parent.glob(".*"))


def test_control_c_ends_with_one_line(fake, tmp_path):
    process = in_another_process(tmp_path)
    for _ in range(6):  # Python drops an interrupt that comes while it frees something
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            break
    _, said = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "stopped: what is done is kept" in said and "Traceback" not in said
    assert len(content()["cells"]) == 1


def test_a_table_of_a_hundred_cells_is_small(fake, tmp_path):
    rng = np.random.default_rng(0)
    table = sweeps.Table(
        tmp_path / "t.json", {"command": "", "source": "", "profile": "", "device": ""}
    )
    rows = 20 * (68 + 26) + 60 * 10  # paper-table's
    for number in range(100):
        found = [row(0) | {"values": rng.random(100)} for _ in range(rows // 100)]
        kept = [sweeps.compact(one) for one in found]
        key = {"cell": {"seed": number}, "seconds": 1.0, "commit": "a", "rows": kept}
        table.cells[str(number)] = key
    assert len(table.text()) < 3e6


def test_sums_are_made_in_one_thread_and_then_as_before():
    import torch

    before = torch.get_num_threads()
    with sweeps.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_without_a_name_the_sweeps_are_listed(fake, capsys):
    go(limit=3)
    assert cli.main(["sweep", "--seeds", "2"]) == 0
    assert capsys.readouterr().out == "fake-sweep             3 of   4 cells  a stub\n"


@pytest.mark.parametrize("line", ["frob", "fake-sweep --seeds 0", "fake-sweep --limit-cells 0"])
def test_a_wrong_sweep_gives_one_line_and_status_one(fake, line, capsys):
    assert cli.main(["sweep", *line.split()]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mindeye2-lite: ") and said.count("\n") == 1


def test_ablations_are_all_but_the_papers_table():
    assert sweeps.names("ablations") == tuple(grids.SWEEPS)[1:]
    assert sweeps.names("paper-table") == ("paper-table",)
