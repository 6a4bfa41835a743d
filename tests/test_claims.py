"""A claim holds, fails or stays open as the intervals of its differences say."""

import numpy as np
import pandas as pd
import pytest

from mindeye2_lite import claims, sweep_tables


def cells(good: float, bad: float, people=(1, 2, 5, 7), seeds=range(3), n: int = 40):
    """A frame of the paper's table in which MindEye2 scores `good` and everybody else `bad`."""
    rng, lines = np.random.default_rng(0), []
    for system, _, sessions, stage, brain in [(r[1], *r[:1], *r[2:]) for r in sweep_tables.ROWS]:
        for subject in people:
            for seed in seeds:
                mean = good if (system, sessions) == ("MindEye2", 40) else bad
                for metric in (*claims.EIGHT, *(claims.BRAIN if brain else ())):
                    better = "lower" if metric in claims.DISTANCE else "higher"
                    sign = -1 if better == "lower" else 1
                    lines.append(
                        {
                            "system": system,
                            "sessions": sessions,
                            "subject": subject,
                            "seed": seed,
                            "stage": brain if metric in claims.BRAIN else stage,
                            "metric": metric,
                            "chance": 0.5,
                            "better": better,
                            "values": sign * rng.normal(mean, 0.1, n),
                        }
                    )
    return pd.DataFrame(lines)


def read(good: float, bad: float):
    def table(name: str) -> pd.DataFrame:
        if name == "paper_table":
            return cells(good, bad)
        return sweep_tables.read(name)

    return table


@pytest.mark.parametrize(
    ("expected", "low", "high", "better", "said"),
    [
        ("better", 0.1, 0.2, "higher", "holds"),
        ("better", -0.2, -0.1, "higher", "opposite"),
        ("better", -0.2, -0.1, "lower", "holds"),
        ("worse", -0.2, -0.1, "higher", "holds"),
        ("worse", 0.1, 0.2, "higher", "opposite"),
        ("better", -0.1, 0.2, "higher", "undecided"),
        ("hardly matters", -0.1, 0.2, "higher", "no difference seen"),
        ("hardly matters", 0.1, 0.2, "higher", "differs"),
        ("asked", -0.2, -0.1, "lower", "differs"),
        ("better", float("nan"), 0.2, "higher", "not measured"),
    ],
)
def test_the_interval_of_the_difference_is_the_judge(expected, low, high, better, said):
    assert claims.verdict(expected, low, high, better) == said


def test_without_results_every_claim_stands_beside_the_papers_figures_and_is_not_run_yet(
    monkeypatch, tmp_path
):
    there = claims.paths.results
    monkeypatch.setattr(
        claims.paths, "results",
        lambda name: there(name) if name == "published" else tmp_path / f"{name}.json",
    )  # fmt: skip
    lines = claims.summary()
    assert set(lines["verdict"]) == {"not run yet"} and lines["difference"].isna().all()
    assert set(lines["claim"]) == set(range(1, len(claims.CLAIMS) + 1))
    first = lines.iloc[0]
    assert (first["published first"], first["published second"]) == (0.322, 0.319)
    assert len(claims.overview(lines)) == len(claims.CLAIMS)


def test_every_side_that_is_quoted_has_one_published_row_per_score():
    rows = claims.published()
    sides = [
        side
        for claim in claims.CLAIMS
        for compared in claim.comparisons
        for side in (compared.first, compared.second)
        if side.quoted is not None
    ]
    assert len(sides) > 20
    for side in sides:
        found = claims._quoted(rows, side.quoted)
        assert found, side
        match = rows
        for column, value in side.quoted.items():
            match = match[(match[column] == value).fillna(False)]
        assert match["metric"].is_unique, side


def test_where_mindeye2_is_better_the_claim_holds_and_where_it_is_worse_it_is_the_opposite():
    for good, bad, said in ((0.9, 0.5, "holds"), (0.5, 0.9, "opposite")):
        lines = claims.summary(read(good, bad))
        first = lines[lines["claim"] == 1]
        assert set(first["verdict"]) == {said}
        assert set(first["people"]) == {4} and set(first["seeds"]) == {3}
        sign = np.where(first["metric"].isin(claims.DISTANCE), -1, 1)
        apart = first["difference"].to_numpy(float) * sign
        np.testing.assert_allclose(apart, good - bad, atol=0.05)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["holds", "holds", "not measured"], "holds"),
        (["no difference seen"], "holds"),
        (["holds", "holds", "undecided"], "mostly holds"),
        (["holds", "holds", "opposite"], "mixed"),
        (["holds", "undecided"], "mixed"),
        (["opposite", "differs", "holds"], "opposite"),
        (["not run yet", "not measured"], "not run yet"),
    ],
)
def test_a_claims_direction_is_that_of_most_of_its_scores(verdicts, said):
    assert claims.direction(verdicts) == said


def test_a_guess_why_stands_only_where_the_direction_does_not_hold():
    won, lost = (claims.overview(claims.summary(read(*way))) for way in ((0.9, 0.5), (0.5, 0.9)))
    assert won.loc[1, "direction"] == "holds" and won.loc[1, "why"] == ""
    assert lost.loc[1, "direction"] == "opposite" and lost.loc[1, "why"]
    assert all(claim.why for claim in claims.CLAIMS if claim.source != "ours")
