"""Sweeps' cells become tables: in the paper's order, with intervals, also before all are there."""

import numpy as np
import pytest

from mindeye2_lite import grids, metrics, paths, sweep_tables, sweeps
from mindeye2_lite.config import Config

LITE = Config.lite()
PICTURES = ("PixCorr", "SSIM")
RNG = np.random.default_rng(0)


def row(stage, metric, level):
    values = level + 0.1 * RNG.random(20)
    return {"stage": stage, "metric": metric, "chance": 0.5, "better": "higher", "values": values}


def stages(key):
    if key.get("system", "MindEye2") != "MindEye2":
        return ["pictures"]
    return ["refined", "unrefined", "low-level", *sweep_tables.CONTROLS * (key["sessions"] == 40)]


def rows(key):
    """A stage's level is its place; whoever has a brain has retrieval, and so have the shuffled."""
    found = [
        row(s, m, i + 0.1 * key["subject"]) for i, s in enumerate(stages(key)) for m in PICTURES
    ]
    brains = ["brain"] * ("Takagi" not in key["system"])
    brains += ["shuffled brains"] * ("shuffled brains" in stages(key))
    return found + [row(s, m, 0) for s in brains for m in sweep_tables.BRAIN]


def write(name, keys, make):
    about = {"command": "c", "source": "s", "profile": "lite", "device": "d"}
    table = sweeps.Table(sweeps.file_of(name), about)
    table.add(
        *({"cell": key, "seconds": 1, "commit": "a", "rows": list(map(sweeps.compact, make(key)))}
          for key in keys)
    )  # fmt: skip


@pytest.fixture
def results(tmp_path, monkeypatch):
    published = paths.results("published")

    def place(name):
        return published if name == "published" else tmp_path / f"{name}.json"

    monkeypatch.setattr(paths, "results", place)


@pytest.fixture
def paper(results):
    write("paper-table", grids.paper_keys(LITE, range(2), grids.PAPER), rows)
    return sweep_tables.read("paper_table")


def test_a_line_per_cell_stage_and_metric_with_a_value_per_picture(paper):
    first = paper.iloc[0]
    assert list(paper.columns[:6]) == ["system", "sessions", "subject", "seed", "stage", "metric"]
    assert first[["system", "sessions", "subject", "seed"]].tolist() == ["MindEye2", 40, 1, 0]
    assert first["values"].shape == (20,) and first["chance"] == 0.5
    assert sweep_tables.complete(paper) == "40 of 100 cells"
    assert paper.attrs["profile"] == "lite" and paper.attrs["commit"] == "a"


def test_the_papers_rows_stand_in_its_order_and_under_its_names(paper):
    found = sweep_tables.paper_rows(paper)
    order = found[["system", "sessions"]].drop_duplicates()
    table_1 = metrics.published()
    table_1 = table_1[table_1["source"].str.contains("Table 1")].drop_duplicates(
        ["system", "sessions"]
    )
    assert order["system"].tolist() == [*table_1["system"], *sweep_tables.CONTROLS]
    assert order["sessions"].tolist()[:4] == [40, 40, 40, 1]
    assert found["subject"].unique().tolist() == ["mean", 1, 2, 5, 7]
    whose = found[found["metric"] == "brain_to_image"]["system"].unique()
    assert whose.tolist() == [
        "MindEye2, refined", "MindEye1", "Ozcelik & VanRullen 2023", "shuffled brains",
    ]  # fmt: skip
    together = found[found["subject"] == "mean"]
    assert (together["people"] == 4).all() and (together["seeds"] == 2).all()
    assert (found["n"] == 20).all() and (found["chance"] == 0.5).all()
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()


def test_the_mean_is_that_of_the_people(paper):
    found = sweep_tables.estimates(paper, by=["system", "sessions"])
    found = sweep_tables.select(found, system="MindEye1", metric="SSIM").set_index("subject")
    people = found.loc[[1, 2, 5, 7], "value"]
    assert found.loc["mean", "value"] == pytest.approx(people.mean())
    assert (np.diff(people) > 0).all(), "levels rise with the person's number"


def test_differences_are_paired_and_take_what_both_have(paper):
    first, second = ({"stage": s, "system": "MindEye2", "sessions": 40} for s in stages_of_two())
    found = sweep_tables.differences(paper, first, second)
    assert found["metric"].unique().tolist() == list(PICTURES)
    assert found["value"].between(0.9, 1.1).all() and (found["low"] > 0.9).all()
    fewer = paper[~((paper["stage"] == "unrefined") & (paper["seed"] == 1))]
    assert (sweep_tables.differences(fewer, first, second)["seeds"] == 1).all()


def stages_of_two():
    return "unrefined", "refined"


def test_a_group_with_several_lines_for_a_model_is_refused(paper):
    with pytest.raises(ValueError, match="subject 1, seed 0 has several lines"):
        sweep_tables.estimates(paper, by=["system"])
    with pytest.raises(ValueError, match="no column 'frob': choose from system"):
        sweep_tables.estimates(paper, by=["frob"])
    with pytest.raises(ValueError, match="no column 'frob'"):
        sweep_tables.select(paper, frob=1)


def test_a_table_without_a_file_is_empty_and_has_its_columns(results):
    for name in ("paper_table", "data_amount", "unclip_ceiling"):
        frame = sweep_tables.read(name)
        assert len(frame) == 0 and "values" in frame and frame.attrs["done"] == 0
        assert len(sweep_tables.estimates(frame)) == 0
    assert len(sweep_tables.paper_rows()) == 0
    assert sweep_tables.complete(sweep_tables.read("data-amount")) == "0 of 80 cells"


def test_half_a_table_has_its_rows(results):
    keys = grids.in_order(grids.paper_keys(LITE, range(1), grids.PAPER))
    write("paper-table", keys[:3], rows)
    found = sweep_tables.paper_rows()
    assert found["system"].nunique() == 5 + 5 and set(found["subject"]) == {1}
    assert sweep_tables.complete(found) == "3 of 100 cells"


def test_ablations_say_hours_and_people(results):
    sweep = grids.SWEEPS["data-amount"]
    write("data-amount", sweep.keys(LITE, range(3), (1,)), lambda key: [row("brain", "SSIM", 0)])
    frame = sweep_tables.read("data_amount")
    assert frame["hours"].unique().tolist() == pytest.approx([1 / 6, 1 / 2, 1, 2, 4, 10, 20, 40])
    assert frame["start"].unique().tolist() == [(2, 3, 4, 5, 6, 7, 8), None]
    found = sweep_tables.estimates(frame)
    assert len(found) == 16 and set(found["subject"]) == {1} and (found["seeds"] == 3).all()
    scratch = sweep_tables.select(found, start=None, minutes=None)
    assert scratch["hours"].tolist() == [1, 2, 4, 10, 20, 40]
    assert set(scratch["start_people"]) == {0}


def test_sweeps_without_people_have_estimates_too(results):
    keys = grids.ceiling_keys(LITE, range(3), ())
    write("unclip-ceiling", keys, lambda key: [row("true image tokens", "SSIM", 0)])
    found = sweep_tables.estimates(sweep_tables.read("unclip_ceiling"))
    assert found["encoder"].tolist() == ["mini-bigG", "mini-L"]
    assert (found["seeds"] == 3).all()
