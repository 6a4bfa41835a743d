"""The figure of a report says what is known, names what is not, and cuts off no text."""

import functools

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from mindeye2_lite import viz, viz_data  # noqa: E402

NOTE = "synthetic cohort, subject 1"


def around(middle, width=0.2):
    return [middle - width, middle, middle + width]


def everything(sessions=40, regions=12):
    ceiling = {1: around(10, 5), 3: around(25, 10)}
    position = np.argwhere(np.ones((14, 9, 11)))
    return {
        "trials": [{"session": s + 1, "train": 675, "test": 75} for s in range(sessions)],
        "repeats": {1: 10, 2: 200, 3: 9000},
        "ceilings": {f"a region {n}": ceiling for n in range(regions)},
        "drift": {"mean": [around(0)] * sessions, "gain": [around(1)] * sessions},
        "behavior": [
            {"session": s + 1, "hits": 0.6, "false alarms": None if s % 2 else 0.2}
            for s in range(sessions)
        ],
        "reliability": np.linspace(-0.1, 0.6, len(position)),
        "position": position,
        "shape": (20, 20, 20),
        "unknown": {"published counts": "only NSD, with its 73,000 images, has them"},
    }


LITTLE = {
    "trials": [{"session": 1, "train": 72, "test": 18}],
    "repeats": {1: 90},
    "unknown": {f"thing {n}": "the reason for which it is not known" for n in range(8)},
}
CASES = {"everything": everything(), "two sessions": everything(2, 3), "little": LITTLE}


@functools.cache
def made(case):
    """A figure that several tests look at: do not change it."""
    viz.use_style()
    return viz_data.data_report(**CASES[case], note=NOTE)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_cut_off_and_the_note_is_clear_of_the_panels(case):
    figure = made(case)
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 > -0.02 and drawn.x1 < width + 0.02, "text over the sides"
    assert drawn.y0 > -0.02 and drawn.y1 < height + 0.02, "text over the top or bottom"
    (note,) = [t for t in figure.findobj(matplotlib.text.Text) if NOTE in t.get_text()]
    assert not any(note.get_window_extent().overlaps(ax.get_tightbbox()) for ax in figure.axes)
    assert width <= 7.7


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


def test_titles_state_the_numbers():
    said = titles(made("everything"))
    assert said == [
        "27,000 trials for training, 3,000 for test",
        "9,210 images, most shown 3 times",
        "ceiling 10% at one showing, 25% at three",
        "hits 60%, false alarms 20% (median session)",
        "half of the voxels' means stay within ±0.20",
        "the gain of sessions goes from 1.00 to 1.00",
    ]


def test_what_is_not_known_has_no_panel_and_is_named_below():
    figure = made("little")
    assert titles(figure) == [
        "72 trials for training, 18 for test",
        "90 images, each shown once",
    ]
    (small,) = [t for t in figure.findobj(matplotlib.text.Text) if NOTE in t.get_text()]
    assert "thing 7" in small.get_text().replace("\n", " ")


def test_an_odd_panel_has_no_empty_one_beside_it():
    three = {name: everything()[name] for name in ("trials", "repeats", "ceilings")}
    figure = viz_data.data_report(**three)
    assert [ax.axison for ax in figure.axes] == [True, True, True, False]


def test_slices_show_each_voxel_where_it_lies():
    parts, figure = CASES["everything"], made("everything")
    slices = [ax for ax in figure.axes if ax.get_xlabel().startswith("z = ")]
    assert len(slices) == viz_data.SLICES
    z = int(slices[2].get_xlabel()[4:])
    image = slices[2].images[1].get_array()
    here = parts["position"][:, 2] == z
    assert sorted(image.compressed()) == pytest.approx(sorted(parts["reliability"][here]))


def test_colors_are_those_of_all_figures():
    figure = made("everything")
    assert viz_data.THREE == viz.STAGE["backbone"] and viz_data.ONE == viz.STAGE["ridge"]
    assert figure.axes[0].patches[0].get_facecolor()[:3] == viz.to_rgb(viz_data.THREE)
