"""The paper's claims as data, beside its own figures and ours: what holds, what does not.

A claim rests on comparisons of two systems or conditions, score by score. Of ours, the difference
is paired by person, seed and picture, and its 95% interval (`intervals.difference`) is the judge:

| what is claimed | the interval leaves zero out on that side, on the other side | holds zero |
|---|---|---|
| first is better, or worse | holds, opposite | undecided |
| hardly matters; or we only ask | differs | no difference seen |

"No difference seen" is not "no difference": few pictures see little. Of as many intervals as stand
here one in twenty leaves zero out by chance. Read with notebook 11.

    summary()       a line per comparison and score: published, ours, difference, verdict
    overview()      a line per claim: how many scores hold, how many not
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mindeye2_lite import intervals, paths, sweep_tables, variants
from mindeye2_lite.config import Config
from mindeye2_lite.metrics import DISTANCE, TWO_WAY

PIXELS = ("PixCorr", "SSIM")
JUDGED = (*TWO_WAY, *DISTANCE)
BRAIN = sweep_tables.BRAIN
EIGHT = (*PIXELS, *JUDGED)
TEN = (*EIGHT, *BRAIN)
LOWER = (*DISTANCE, "FID")  # is better
BETTER, WORSE, SAME, ASKED = "better", "worse", "hardly matters", "asked"
NOT_RUN, NOT_MEASURED = "not run yet", "not measured"
VERDICTS = ("holds", "opposite", "undecided", "no difference seen", "differs", NOT_RUN)


@dataclass(frozen=True)
class Side:
    """One of two that are compared: which of our lines, at which stage, and the paper's row.

    `where` is columns of `sweep_tables.read`'s frame; an encoder is "larger" or "smaller", which
    the profile gives a name. Retrieval is looked for at stage "brain". `quoted` is columns of
    `published()`; None where the paper prints nothing.
    """

    name: str
    where: Mapping[str, Any]
    stage: str
    quoted: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """First beside second in the results file of a sweep; `expected` of the first, in `metrics`."""

    sweep: str
    first: Side
    second: Side
    expected: str = BETTER
    metrics: tuple[str, ...] = TEN


@dataclass(frozen=True)
class Claim:
    """What the paper says, or what we ask; where it stands; the comparisons that test it.

    `why`: where the miniature differs from what was measured in the paper, in a way that can turn
    this claim's direction. An opinion, shown only where the direction does not hold.
    """

    text: str
    source: str
    comparisons: tuple[Comparison, ...] = field(repr=False)
    why: str = field(default="", repr=False)


# ---- the claims ----------------------------------------------------------------------------------


def _mindeye2(stage: str = "refined", sessions: int = 40) -> Side:
    time = f"{sessions} h"
    quoted = {"table": "Table 1", "system": f"MindEye2, {stage}", "sessions": sessions}
    where = {"system": "MindEye2", "sessions": sessions}
    return Side(f"MindEye2, {time}" if stage == "refined" else stage, where, stage, quoted)


def _older(system: str, year: str = " 2023") -> Side:
    where = {"system": system, "sessions": 40}
    return Side(system, where, "pictures", {"table": "Table 1", "system": system + year})


def _condition(name: str, quoted: tuple[str, str] | None = None, **where: Any) -> Side:
    """Of an ablation: `quoted` is the paper's table and what it is called there."""
    row = quoted and {"table": quoted[0], "condition": quoted[1]}
    return Side(name, where, "unrefined", row)


def _amount(hours: float | int, people: int, quoted: Mapping[str, Any] | None = None) -> Side:
    time = f"{hours} h" if hours >= 1 else f"{round(60 * hours)} min"
    start = "" if people else ", from scratch"
    where = {"hours": hours, "start_people": people}
    return Side(f"{time}{start}", where, "unrefined", quoted)


def _paper(*sides: Side, **how: Any) -> Comparison:
    return Comparison("paper-table", *sides, **how)


_FULL, _HOUR, _BLURRY = _mindeye2(), _mindeye2(sessions=1), _mindeye2("low-level")
_SHARP = _mindeye2("unrefined")
_TAKAGI = _older("Takagi & Nishimoto")
_AMOUNTS = (1 / 6, 1 / 2, 1, 2, 4, 10, 20, 40)
_OF_ONE = {"table": "Table 7", "subject": "1"}
_TERMS = {name: _condition(name, ("Table 5", name), terms=name) for name in variants.TERMS}
_PEOPLE = {
    n: _condition(f"{n} pretrained", ("Table 10", f"pretrained on {who}"), start_people=n)
    for n, who in ((7, "2 to 8"), (3, "2, 5, 7"), (1, "5"))
}


def _terms(first: str, second: str, metrics: tuple[str, ...]) -> Comparison:
    return Comparison("loss-terms", _TERMS[first], _TERMS[second], metrics=metrics)


def _target(name: str) -> Side:
    quoted = {"larger": "MindEye2", "smaller": "CLIP L and Versatile Diffusion"}[name]
    return _condition(f"{name} CLIP", ("Table 4", quoted), encoder=name)


def _ceiling(name: str) -> Side:
    system = {"larger": "MindEye2's unCLIP", "smaller": "Versatile Diffusion"}[name]
    quoted = {"table": "Table 9", "system": system}
    return Side(f"decoder of the {name} CLIP", {"encoder": name}, "true image tokens", quoted)


def _prompt(name: str, stage: str) -> Side:
    return Side(name, {}, stage, {"table": "Table 11", "condition": name})


CLAIMS = (
    Claim(
        "Forty hours of MindEye2 are better than MindEye1.", "Table 1",
        (_paper(_FULL, _older("MindEye1", "")),),
        why=(
            "Both paint with miniatures of one make, on scenes of twelve kinds; with a "
            "thousand training steps neither comes near what forty hours allow."
        ),
    ),
    Claim(
        "… better than Ozcelik & VanRullen.", "Table 1",
        (_paper(_FULL, _older("Ozcelik & VanRullen")),),
        why=(
            "The cohort's higher areas answer almost linearly to what their tokens hold, "
            "and a ridge map with a penalty chosen by cross-validation is nearly the right "
            "model of that. A deep one has nothing left to win, and only a thousand steps "
            "to win it in."
        ),
    ),
    Claim("… better than Takagi & Nishimoto.", "Table 1", (_paper(_FULL, _TAKAGI, metrics=EIGHT),),
        why=(
            "Both read the same voxels, and the refiner is one network."
        ),
    ),
    Claim(
        "One hour of MindEye2 matches what an older system needs forty for.", "Table 1",
        (_paper(_HOUR, _TAKAGI, metrics=EIGHT),),
        why=(
            "An hour of this cohort has a tenth of NSD's trials: 75, not 750. Forty hours "
            "of ridge regression see as many as four real hours."
        ),
    ),
    Claim("Forty hours are better than one.", "Table 1", (_paper(_FULL, _HOUR),),
        why=(
            "Few pictures see little."
        ),
    ),
    Claim("Refinement improves pixels.", "Table 1", (_paper(_FULL, _SHARP, metrics=PIXELS),),
        why=(
            "Few pictures see little."
        ),
    ),
    Claim(
        "Refinement costs some meaning.", "Table 1",
        (_paper(_FULL, _SHARP, expected=WORSE, metrics=("Incep", "CLIP", "SwAV")),),
        why=(
            "The refiner was trained on the same scenes as the judges. What it redraws "
            "looks more like one of the twelve kinds, and judges that know only these "
            "reward it; SDXL's sense of beauty has no such ally."
        ),
    ),
    Claim(
        "The low-level picture has the best pixels and the least meaning.", "Table 1",
        tuple(
            _paper(_BLURRY, other, expected=expected, metrics=metrics)
            for other in (_FULL, _SHARP)
            for expected, metrics in ((BETTER, PIXELS), (WORSE, JUDGED))
        ),
        why=(
            "A blurred scene of twelve kinds still tells judges that were trained on these "
            "scenes much of what it shows; ImageNet's networks see less in a blur."
        ),
    ),
    Claim(
        "Pretraining on others helps where there is little data, and hardly matters with all.",
        "Figures 5 to 8, Tables 6 and 7",
        (
            Comparison("data-amount", _amount(1, 7), _amount(1, 0)),
            Comparison(
                "data-amount",
                _amount(40, 7, _OF_ONE),
                _amount(40, 0, {"table": "Table 6", "system": "MindEye2, refined"}),
                SAME,
            ),
        ),
        why=(
            "People of the cohort differ in their voxels and noise, and share one way to "
            "see: more alike than real ones."
        ),
    ),
    Claim(
        "More data is better, step by step.", "Figures 5 to 8",
        tuple(
            Comparison("data-amount", _amount(more, 7), _amount(less, 7))
            for less, more in zip(_AMOUNTS, _AMOUNTS[1:], strict=False)
        ),
        why=(
            "From step to step the gain is smaller than a hundred pictures can see."
        ),
    ),
    Claim(
        "A linear first layer is better than MindEye1's MLP.", "Table 4",
        (
            Comparison(
                "input-layer",
                _condition("ridge", ("Table 4", "MindEye2"), first_layer="ridge"),
                _condition("MLP", ("Table 4", "MindEye1's MLP as first layer"), first_layer="mlp"),
            ),
        ),
        why=(
            "Ten sessions here are a tenth of NSD's trials, and a single person: sharing, "
            "which the ridge is for, has no part in it."
        ),
    ),
    Claim(
        "The larger CLIP is the better target.", "Table 4",
        (Comparison("clip-target", _target("larger"), _target("smaller")),),
        why=(
            "mini-L is not worse than mini-bigG by as much as ViT-L is than bigG: both were "
            "trained on the same scenes, and seventeen tokens of 96 numbers are easier to "
            "reach from few voxels."
        ),
    ),
    Claim(
        "Every loss term helps: the prior's needs company, and so does retrieval's.", "Table 5",
        (
            _terms("all", "prior", EIGHT),
            _terms("prior + retrieval", "prior", EIGHT),
            _terms("prior + low level", "prior", PIXELS),
            _terms("all", "retrieval", BRAIN),
        ),
        why=(
            "The miniature's tokens are few and its scenes simple, so that the prior finds "
            "its way alone."
        ),
    ),
    Claim(
        "How many people it was pretrained on hardly matters.", "Table 10",
        tuple(
            Comparison("pretraining-people", _PEOPLE[7], _PEOPLE[n], SAME) for n in (3, 1)
        ),
        why=(
            "A tenth of NSD's trials per person: one person's are few here, and seven are "
            "much more than one."
        ),
    ),
    Claim(
        "What the caption says hardly matters to refinement.", "Table 11",
        (
            Comparison(
                "prompts",
                _prompt("captions from the brain", "refined"),
                _prompt("empty prompt", "refined, empty prompt"),
                SAME, EIGHT,
            ),
        ),
        why=(
            "mini-sdxl knows few words, and was trained on captions that name all that is "
            "in the scene."
        ),
    ),
    Claim(
        "From true tokens the larger CLIP's decoder draws better.", "Table 9",
        (Comparison("unclip-ceiling", _ceiling("larger"), _ceiling("smaller"), metrics=EIGHT),),
        why=(
            "Both decoders are one small network with other inputs, trained alike; "
            "Versatile Diffusion and MindEye2's unCLIP are not."
        ),
    ),
    Claim(
        "Do blocks that work, as the paper describes them, help?", "ours",
        (
            Comparison(
                "backbone",
                _condition("working blocks", backbone="residual"),
                _condition("released", backbone="released"),
                ASKED,
            ),
        ),
    ),
    Claim(
        "Do statistics of all sessions help someone who has one?", "ours",
        (
            Comparison(
                "statistics",
                _condition("all sessions' statistics", normalize="all"),
                _condition("those in use", normalize="sessions"),
                ASKED,
            ),
        ),
    ),
)  # fmt: skip


# ---- what is published ---------------------------------------------------------------------------


def published() -> pd.DataFrame:
    """All quoted figures, `metrics.published`'s and those of conditions, one row each.

    Columns: table, about, system, condition, sessions, subject, metric, value (shares of 1),
    quoted (as printed), source.
    """
    data = json.loads(paths.results("published").read_text(encoding="utf-8"))
    rows = []
    for part in (*data["tables"], *data["further"]):
        percent = part.get("percent", data["percent"])
        about = {"table": part["source"], "about": part.get("about", "")}
        about["source"] = f"{data['quoted_from']}, {part['source']}"
        for row in part["rows"]:
            key = {"condition": ""} | {name: row[name] for name in row if name != "values"}
            for metric, quoted in row["values"].items():
                value = quoted / 100 if metric in percent else quoted
                rows.append(about | key | {"metric": metric, "value": value, "quoted": quoted})
    return pd.DataFrame(rows).astype({"sessions": "Int64"})


def _quoted(rows: pd.DataFrame, wanted: Mapping[str, Any] | None) -> dict[str, float]:
    """metric -> value of the one published row that is wanted; {} where there is none."""
    if wanted is None:
        return {}
    for column, value in wanted.items():
        rows = rows[(rows[column] == value).fillna(False)]
    return dict(zip(rows["metric"], rows["value"], strict=True))


# ---- what is ours --------------------------------------------------------------------------------

COLUMNS = ("claim", "text", "source", "sweep", "first", "second", "expected", "metric")
COLUMNS += ("published first", "published second", "paper", "ours first", "ours second")
COLUMNS += ("difference", "low", "high", "n", "people", "seeds", "verdict")


def summary(read: Callable[[str], pd.DataFrame] = sweep_tables.read) -> pd.DataFrame:
    """A line per claim (numbered from 1), comparison and score that the claim is about.

    "paper" says whether the paper's own two figures agree with the claim. Differences are first
    minus second, of all people together. What nobody has run has no numbers and the verdict "not
    run yet". `read` gives the frame of a results file.
    """
    quoted, frames, lines = published(), {}, []
    for number, claim in enumerate(CLAIMS, 1):
        about = {"claim": number, "text": claim.text, "source": claim.source}
        for compared in claim.comparisons:
            if compared.sweep not in frames:
                frames[compared.sweep] = read(compared.sweep.replace("-", "_"))
            found = _compared(frames[compared.sweep], compared)
            lines += [about | line for line in _lines(compared, quoted, found)]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def overview(lines: pd.DataFrame | None = None) -> pd.DataFrame:
    """A line per claim: its text, where it stands, and how many scores have which verdict.

    "paper" is in how many scores the paper's own figures agree, of how many it prints; "direction"
    is `direction` of ours; "why" our guess where that is not as claimed, else empty.
    """
    lines = summary() if lines is None else lines
    rows = []
    for number, part in lines.groupby("claim", sort=True):
        said = part["verdict"].value_counts()
        printed = part[part["paper"].isin(["agrees", "disagrees", "equal"])]
        agree = (printed["paper"] == "agrees").sum()
        whole = direction(part["verdict"])
        if whole != NOT_RUN and (part["expected"] == ASKED).all():
            whole = "asked"
        rows.append(
            {
                "claim": number,
                "text": part["text"].iloc[0],
                "source": part["source"].iloc[0],
                "paper": f"{agree} of {len(printed)}" if len(printed) else "–",
                "here": ", ".join(
                    f"{said[v]} {v}" if v != NOT_RUN else v
                    for v in (*VERDICTS, NOT_MEASURED)
                    if v in said
                ),
                "direction": whole,
                "why": CLAIMS[number - 1].why if whole in ("opposite", "mixed") else "",
            }
        )
    return pd.DataFrame(rows).set_index("claim")


def direction(verdicts: Iterable[str]) -> str:
    """Of a claim's verdicts: "holds", "mostly holds", "mixed", "opposite" or "not run yet".

    "mostly": in more than half of the scores that were measured, and nowhere the opposite.
    "opposite": in more than half. A claim that something hardly matters holds as far as no
    difference is seen.
    """
    said = [v for v in verdicts if v not in (NOT_RUN, NOT_MEASURED)]
    if not said:
        return NOT_RUN
    good = sum(v in ("holds", "no difference seen") for v in said)
    bad = sum(v in ("opposite", "differs") for v in said)
    if good == len(said):
        return "holds"
    if bad > len(said) / 2:
        return "opposite"
    return "mostly holds" if good > len(said) / 2 and not bad else "mixed"


def verdict(expected: str, low: float, high: float, better: str = "higher") -> str:
    """What the interval of first minus second says of a claim; see the module's table."""
    if np.isnan([low, high]).any():
        return NOT_MEASURED
    decided = low > 0 or high < 0
    if expected in (SAME, ASKED):
        return "differs" if decided else "no difference seen"
    if not decided:
        return "undecided"
    first_is_better = (low > 0) == (better == "higher")
    return "holds" if first_is_better == (expected == BETTER) else "opposite"


def _lines(
    compared: Comparison, quoted: pd.DataFrame, found: Mapping[str, Mapping] | None
) -> Iterable[dict[str, Any]]:
    first, second = (_quoted(quoted, side.quoted) for side in (compared.first, compared.second))
    names = {"sweep": compared.sweep, "first": compared.first.name, "second": compared.second.name}
    for metric in compared.metrics:
        one, other = first.get(metric, np.nan), second.get(metric, np.nan)
        line = names | {"expected": compared.expected, "metric": metric}
        line |= {"published first": one, "published second": other}
        line |= {"paper": _agreement(compared.expected, one, other, metric)}
        if found is None:
            yield line | {"verdict": NOT_RUN}
        else:
            yield line | found.get(metric, {"verdict": NOT_MEASURED})


def _agreement(expected: str, first: float, second: float, metric: str) -> str:
    """Whether two published figures agree with what is claimed of them."""
    if np.isnan(first) or np.isnan(second) or expected in (SAME, ASKED):
        return "–"
    if np.isclose(first, second):
        return "equal"
    first_is_better = (first > second) != (metric in LOWER)
    return "agrees" if first_is_better == (expected == BETTER) else "disagrees"


def _compared(frame: pd.DataFrame, compared: Comparison) -> dict[str, dict[str, Any]] | None:
    """metric -> ours first and second, difference, verdict. None where nothing has been run."""
    one, other = (_of(frame, side) for side in (compared.first, compared.second))
    key = [name for name in ("metric", "subject", "seed") if name in frame]
    pairs = one.merge(other, on=key, suffixes=("", " second"))
    if pairs.empty:
        return None
    return {metric: _judged(part, compared.expected) for metric, part in pairs.groupby("metric")}


def _of(frame: pd.DataFrame, side: Side) -> pd.DataFrame:
    where = dict(side.where)
    if "encoder" in where:
        config = Config.of(frame.attrs.get("profile") or "lite")
        named = {"larger": config, "smaller": variants.smaller_clip(config)}
        where["encoder"] = named[where["encoder"]].encoder
    lines = sweep_tables.select(frame, **where)
    stage = np.where(lines["metric"].isin(BRAIN), "brain", side.stage)
    lines = lines[(lines["stage"] == stage).to_numpy(bool)]
    return lines[[n for n in ("metric", "subject", "seed", "better", "values") if n in lines]]


def _judged(part: pd.DataFrame, expected: str) -> dict[str, Any]:
    people = part["subject"] if "subject" in part else pd.Series(1, index=part.index)
    first, second = (
        {
            int(who): np.stack(list(of.sort_values("seed")[column]))
            for who, of in part.groupby(people)
        }
        for column in ("values", "values second")
    )
    apart = intervals.difference(first, second)
    means = (np.mean([each.mean() for each in of.values()]) for of in (first, second))
    line = dict(zip(("ours first", "ours second"), means, strict=True))
    line |= {"difference": apart.value, "low": apart.low, "high": apart.high}
    line |= {"n": apart.n_images, "people": apart.n_people, "seeds": apart.n_seeds}
    return line | {"verdict": verdict(expected, apart.low, apart.high, part["better"].iloc[0])}
