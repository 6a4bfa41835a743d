"""Figures of results draw what they are given, and say of how many it is."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_claims import cells, read

from mindeye2_lite import claims, sweep_tables, viz_results


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def rows():
    return sweep_tables.paper_rows(cells(0.9, 0.5, seeds=range(2)).assign(chance=0.5))


def words(figure) -> str:
    figure.canvas.draw()
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


def test_the_main_table_has_a_row_per_system_in_the_papers_order(rows):
    figure = viz_results.main_table(rows)
    said = words(figure)
    assert "PixCorr" in said and "MindEye1" in said
    axes = [ax for ax in figure.axes if ax.get_title() or ax.get_title(loc="left")]
    assert len(axes) == 10
    labels = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert len(labels) == rows.drop_duplicates(["system", "sessions"]).shape[0]


def test_the_curve_over_hours_has_a_line_per_start():
    lines = [
        {"hours": hours, "start_people": people, "metric": "CLIP", "value": 0.5 + 0.01 * hours,
         "low": 0.5, "high": 1.0, "chance": 0.5, "better": "higher", "n": 100, "people": 1,
         "seeds": 5}
        for people in (7, 0)
        for hours in (1 / 6, 1.0, 40.0)
    ]  # fmt: skip
    figure = viz_results.data_curve(pd.DataFrame(lines))
    curves = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 3]
    assert len(curves) == 2 and figure.axes[0].get_xscale() == "log"


def test_the_claims_have_a_tile_per_verdict_also_where_nothing_has_been_run():
    lines = claims.summary(read(0.9, 0.5))
    said = words(viz_results.claims_figure(lines))
    assert "CLIP" in said
    assert np.isin(["holds", "not run yet"], lines["verdict"]).all()
