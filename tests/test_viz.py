"""Figures come back as figures, keep their order, and nothing in them overlaps or is cut off."""

import ast
import functools
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from mindeye2_lite import viz  # noqa: E402

NOTE = "synthetic cohort, miniature model"


@pytest.fixture(autouse=True)
def style():
    viz.use_style()
    yield
    viz.plt.close("all")


def pictures(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def score(value: float, better: str = "higher", chance: float = 0.5) -> SimpleNamespace:
    low, high = value - 0.1, value + 0.1
    return SimpleNamespace(value=value, low=low, high=high, chance=chance, n=9, better=better)


def volume() -> tuple[np.ndarray, np.ndarray]:
    head = np.random.default_rng(0).random((8, 9, 7))
    return head, head > 0.8


def captions() -> list[str]:
    return [
        "a tall orange tower in the desert at dusk",
        "a dog",
        "a small red car on a grassy field",
    ]


def _grid() -> Figure:
    rows = {"seen": pictures(), "blurry": pictures(), "reconstruction": pictures()}
    return viz.reconstruction_grid(rows, scores=[0.5, 1, 0], captions=captions(), note=NOTE)


FIGURES = {
    "map": lambda: viz.pipeline_map("prior", note=NOTE),
    "grid": _grid,
    "row": lambda: viz.image_row(pictures(), captions(), note=NOTE),
    "strip": lambda: viz.denoising_strip(
        {"what the network sees": pictures()}, [9, 5, 0], note=NOTE
    ),
    "slices": lambda: viz.slices(*volume(), note=NOTE),
    "values in slices": lambda: viz.slices(
        volume()[0], volume()[0] * volume()[1], axis=0, label="ncsnr", note=NOTE
    ),
    "scores": lambda: viz.score_figure(
        {"a": {"CLIP": score(0.7), "Eff": score(0.6, "lower")}, "b": {"CLIP": score(0.8)}},
        note=NOTE,
    ),
    "sessions": lambda: viz.sessions_curve(
        {"pretrained": {1: [0.4, 0.5], 40: [score(0.9)]}}, chance=0.01, n=100, note=NOTE
    ),
    "curves": lambda: viz.curves(
        [{"epoch": 0, "loss": 2.0, "test": None}, {"epoch": 1, "loss": 1.0, "test": 0.5}],
        chance={"test": 0.1},
        marks={"SoftCLIP begins": 0.5},
        note=NOTE,
    ),
    "similarity": lambda: viz.similarity_matrix(torch.eye(9), note=NOTE),
    "tokens": lambda: viz.token_grid({"image tokens": torch.randn(16, 128)}, note=NOTE),
    "token map": lambda: viz.token_map(torch.arange(16.0), pictures()[0], note=NOTE),
    "histogram": lambda: viz.histogram(
        {"V1": volume()[0].ravel(), "V2": [np.nan, 0.2, 0.4]},
        xlabel="r",
        published={"V1": 0.5},
        note=NOTE,
    ),
    "bars": lambda: viz.bars(
        {"subject 1": 983, "subject 2": 892}, xlabel="voxels", digits=0, note=NOTE
    ),
}


@functools.cache
def made(name: str) -> Figure:
    """A figure that several tests look at: do not change it."""
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_carries_its_note_clear_of_the_axes_and_cuts_off_no_text(name):
    fig = made(name)
    fig.canvas.draw()
    (note,) = [t for t in fig.findobj(matplotlib.text.Text) if NOTE in t.get_text()]
    drawn, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert drawn.x0 > -0.02 and drawn.x1 < width + 0.02, "text over the sides"
    assert drawn.y0 > -0.02 and drawn.y1 < height + 0.02, "text over the top or bottom"
    if name != "map":  # whose one axis is the whole figure
        assert not any(note.get_window_extent().overlaps(ax.get_tightbbox()) for ax in fig.axes)


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_is_wider_than_the_books_column_can_show(name):
    assert made(name).get_figwidth() <= 7.7


def test_the_map_lights_the_stage_in_its_own_color_and_leaves_the_others_pale():
    faces = {
        tuple(np.round(p.get_facecolor()[:3], 3)) for p in viz.pipeline_map("prior").axes[0].patches
    }
    assert tuple(np.round(viz.to_rgb(viz.STAGE["prior"]), 3)) in faces
    assert tuple(np.round(viz.to_rgb(viz.STAGE["unclip"]), 3)) not in faces


def test_text_on_the_map_stays_inside_its_box():
    fig = viz.pipeline_map()
    fig.canvas.draw()
    ax = fig.axes[0]
    for text in ax.texts:
        box = text.get_window_extent().transformed(ax.transData.inverted())
        assert box.width < 2 * viz.HALF_WIDTH, text.get_text()


def test_a_stage_that_is_not_on_the_map_is_refused_by_name():
    with pytest.raises(ValueError, match="'unet' is not on the map: choose from data, ridge"):
        viz.pipeline_map("unet")


def test_every_stage_of_the_map_has_a_color():
    assert set(viz.MAP) <= set(viz.STAGE)
    assert {name for arrow in viz.ARROWS for name in arrow} == set(viz.MAP)


def test_the_grid_keeps_the_order_of_rows_and_puts_scores_under_the_last():
    fig = made("grid")
    labels = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()]
    assert labels == ["seen", "blurry", "reconstruction"]
    assert [ax.get_xlabel().split("\n")[0] for ax in fig.axes[-3:]] == [
        "CLIP 0.50",
        "CLIP 1.00",
        "CLIP 0.00",
    ]
    assert "orange" in fig.axes[-3].get_xlabel()


def test_score_panels_show_chance_the_interval_and_which_way_is_better():
    fig = made("scores")
    clip, eff = fig.axes[:2]
    assert (clip.get_title(loc="left"), eff.get_title(loc="left")) == ("CLIP ↑", "Eff ↓")
    assert chances(clip) == [0.5, 0.5] and chances(eff) == [0.5]
    assert len(clip.collections) == 4 and len(eff.collections) == 2


def chances(panel) -> list[float]:
    """Where the dashed lines of a panel stand, from its first row to its last."""
    dashed = [c for c in panel.collections if c.get_linestyles()[0][1] is not None]
    lines = sorted((c.get_segments()[0] for c in dashed), key=lambda line: line[0, 1])
    assert all(abs(line[1, 1] - line[0, 1]) <= 1 for line in lines), "a line through other rows"
    return [line[0, 0] for line in lines]


def test_every_system_stands_beside_its_own_chance_unless_one_is_given():
    systems = {"a": {"SSIM": score(0.8, chance=0.7)}, "b": {"SSIM": score(0.8, chance=0.75)}}
    assert chances(viz.score_figure(systems).axes[0]) == [0.7, 0.75]
    assert chances(viz.score_figure(systems, chance={"SSIM": 0.6}).axes[0]) == [0.6, 0.6]
    systems["b"]["SSIM"].chance = None
    assert chances(viz.score_figure(systems).axes[0]) == [0.7]


def test_a_single_seed_has_no_interval():
    fig = viz.sessions_curve({"pretrained": {1: [0.4, 0.5, 0.6], 40: [0.9]}})
    assert len(fig.axes[0].collections) == 1
    low, high = fig.axes[0].collections[0].get_segments()[0][:, 1]
    half = 4.303 * 0.1 / np.sqrt(3)  # Student's t with two degrees of freedom
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)


def test_the_interval_of_a_share_ends_at_zero_and_that_of_a_correlation_does_not():
    def low(seeds):
        (bar,) = viz.sessions_curve({"scratch": {1: seeds, 2: [0.5]}}).axes[0].collections
        return bar.get_segments()[0][0, 1]

    assert low([0.08, 0.0, 0.03]) == 0
    assert low([0.08, -0.01, 0.03]) < 0


def test_the_mean_of_the_seeds_hides_none_of_them():
    fig = viz.sessions_curve({"a": {1: [0.5, 0.5], 40: [0.9]}, "b": {1: [0.5, 0.5], 40: [0.9]}})
    fig.canvas.draw()
    ax = fig.axes[0]
    spots = [  # (x in points, radius in points) of every mark at one session
        (ax.transData.transform((x, y))[0] * 72 / fig.dpi, line.get_markersize() / 2)
        for line in ax.lines
        for x, y in line.get_xydata()[:1]
        if x < 2
    ]
    assert len(spots) == 4
    spots.sort()
    assert all(b - a > r + s for (a, r), (b, s) in zip(spots, spots[1:], strict=False))


def test_captions_of_neighbors_in_a_grid_do_not_touch():
    words = "a tall yellow windmill near a warm meadow and woods"  # wide letters
    fig = viz.reconstruction_grid({"seen": pictures(8)}, captions=[words] * 8)
    fig.canvas.draw()
    boxes = [ax.xaxis.label.get_window_extent() for ax in fig.axes]
    assert all(a.x1 + 3 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize(("lowest", "highest"), [(-1, 1), (-0.75, 0.6), (-0.6, 0.75), (0, 1)])
def test_numbers_below_a_similarity_histogram_stand_apart(lowest, highest):
    fig = viz.similarity_matrix(torch.linspace(lowest, highest, 81).reshape(9, 9))
    fig.canvas.draw()
    right = fig.axes[1]
    inside = [t for t in right.get_xticklabels() if lowest <= t.get_position()[0] <= highest]
    boxes = [text.get_window_extent() for text in inside]
    assert len(boxes) >= 3
    assert all(a.x1 + 4 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_a_curve_skips_the_epochs_that_were_not_scored():
    fig = viz.curves([{"epoch": e, "score": 0.1 * e if e % 2 == 0 else None} for e in range(5)])
    assert fig.axes[0].lines[0].get_xdata().tolist() == [0, 2, 4]


def test_tokens_that_fill_no_square_are_refused():
    with pytest.raises(ValueError, match="15 tokens"):
        viz.token_map(torch.arange(15.0))


@pytest.mark.parametrize("module", ["viz", "teaching"])
def test_viz_and_teaching_import_nothing_of_the_package(module):
    source = Path(viz.__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and not (node.module or "").startswith("mindeye2_lite")
        if isinstance(node, ast.Import):
            assert not any(a.name.startswith("mindeye2_lite") for a in node.names)
