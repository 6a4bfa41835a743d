"""What is in a training layout: trials, splits, what is missing, and how good the voxels are.

`inspect` reads whatever there is and says of the rest why it is not known: released files keep no
statistics, own data often have no repeats and no captions. Nothing is taken on trust: the splits
are compared, the betas read to the last one, in slabs of voxels that take half a gigabyte.

    report = inspect(root, 1)
    print(report)                    the report in words
    report.problems                  [] where training and scores can be trusted
    viz_data.data_report(**report.figure())

S = sessions, V = voxels. Read with notebook 01.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mindeye2_lite import inspection_files, nsd
from mindeye2_lite.layout import (
    COLUMNS,
    GLOBAL_TRIAL,
    IMAGE,
    SESSION,
    betas_file,
    entry,
    open_hdf5,
    reading,
    subjects,
    there,
)

SLAB = 2**27  # bytes of betas that are read at once
PART = 2**23  # of these, computed at once
KNOWN = ("nsd_general", "V1", "V2", "V3", "V4", "ventral", "lateral", "parietal", "higher_vis")

Quartiles = list  # [lower quartile, median, upper quartile]


@dataclass(frozen=True)
class Report:
    """What is known of one person's data; `unknown` says why a value is None.

    Quartiles are [lower, median, upper] over voxels. All but `maps` are plain numbers, strings,
    lists and dictionaries: `as_dict()` can be written as JSON.
    """

    subject: int
    path: str
    kind: str  # what made the layout, in words
    recipe: dict  # the choices it was made with, where it keeps them
    voxels: int
    betas: int  # rows of the file
    sessions: int
    trials: list  # per session: {"session", "train", "test"}
    splits: dict  # trials of train, new_test and test
    repeats: dict  # showings -> images
    overlap: list  # images both in training and in test: must be none
    published: dict | None  # what -> [here, NSD]
    missing: dict  # NaNs, constant voxels, trials doubled, without record, without answer
    ncsnr: dict  # "file" and "repeats": quartiles or None
    ceiling: dict | None  # showings -> quartiles of the noise ceiling in percent
    reliability: Quartiles | None  # correlation of two showings
    regions: dict  # name -> {"voxels", "ncsnr", "ceiling": {showings: ...}, "reliability"}
    drift: dict | None  # "mean" and "gain": quartiles per session
    behavior: list | None  # per session: {"session", "trials", "answered", "hits", ...}
    images: dict | None  # {"file", "gigabytes", "number", "pixels"}
    captions: float | None  # share of the images seen that have one
    unknown: dict  # what -> why
    maps: Mapping[str, np.ndarray] = field(repr=False, compare=False)  # (V,); position (V, 3)

    @property
    def problems(self) -> list[str]:
        """What makes training or scores wrong, a line each; empty where all is well."""
        found = []
        if self.overlap:
            found.append(
                f"SPLIT OVERLAP: {len(self.overlap)} images are both in training and in test "
                f"({', '.join(map(str, self.overlap[:5]))}{' ...' * (len(self.overlap) > 5)}): "
                "scores on them are worth nothing"
            )
        if self.missing["NaN betas"]:
            found.append(
                f"NOT A NUMBER: {self.missing['NaN betas']} betas in {self.missing['NaN voxels']} "
                "voxels are NaN or infinite: no model can be trained on them"
            )
        if self.missing["trials without image"]:
            found.append(
                f"NO PICTURE: {self.missing['trials without image']} trials are of images that "
                f"{self.images['file']} does not have"
            )
        if self.missing["doubled trials"]:
            found.append(
                f"DOUBLED: {self.missing['doubled trials']} trials have more than one record"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """All of it but the maps, for a JSON file."""
        names = [name for name in self.__dataclass_fields__ if name != "maps"]
        return {name: getattr(self, name) for name in names} | {"problems": self.problems}

    def figure(self) -> dict[str, Any]:
        """What `viz_data.data_report` draws."""
        parts = {"trials": self.trials, "repeats": self.repeats, "drift": self.drift}
        absent = {k: why for k, why in self.unknown.items() if k != "published counts"}
        parts |= {"behavior": self.behavior, "unknown": absent}
        regions = {n: r["ceiling"] for n, r in self.regions.items() if r["ceiling"]}
        if "position" in self.maps and self.reliability is not None:
            where = {name: self.maps[name] for name in ("position", "shape")}
            parts |= {"reliability": self.maps["reliability"], **where}
        return parts | {"ceilings": regions or self.ceiling and {"all voxels": self.ceiling}}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def people(path: str | Path) -> list[int]:
    """Whose data lie at `path`: a layout's root, or one person's betas file in it.

    FileNotFoundError or ValueError in one line where nothing is there, or a raw NSD tree.
    """
    path = there(Path(path))
    root = _root(path)
    if found := subjects(root):
        return [_of_name(path)] if path.is_file() else found
    if any((root / name).exists() for name in ("nsddata", "nsddata_betas")):
        raise ValueError(
            f"{path} is a raw NSD tree: run mindeye2-lite prepare {path} OUT, then inspect OUT"
        )
    raise FileNotFoundError(
        f"{path} has no betas_all_subjNN_fp32_renorm.hdf5: give the folder that "
        "mindeye2-lite prepare wrote, or that of the released files"
    )


def inspect(path: str | Path, subject: int | None = None, progress: bool = False) -> Report:
    """Everything that the files below `path` say of one person (None: the first there).

    Reads every beta once; memory stays below a gigabyte. Units: percent for ceilings, deviations
    of single trials for drift. Errors: FileNotFoundError, ValueError in one line for a raw NSD
    tree, files that are cut short or of different masks; what is only absent is named in
    `unknown`.
    """
    found, root = people(path), _root(Path(path))
    subject = found[0] if subject is None else subject
    if subject not in subjects(root):
        raise FileNotFoundError(f"no subject {subject} in {root}: there are {subjects(root)}")
    return _report(root, subject, progress)


def _root(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _of_name(path: Path) -> int:
    digits = path.name.removeprefix("betas_all_subj")[:2]
    if not digits.isdecimal():
        raise ValueError(f"{path} is no betas_all_subjNN_fp32_renorm.hdf5: give its folder")
    return int(digits)


def _report(root: Path, subject: int, progress: bool) -> Report:
    unknown: dict[str, str] = {}
    records = inspection_files.records(root, subject, unknown)
    table = np.concatenate([records["train"], records["new_test"]])
    table = table[np.argsort(table[:, GLOBAL_TRIAL], kind="stable")]
    splits = {name: len(rows) for name, rows in records.items()}
    file = inspection_files.about_file(root, subject, table)
    measured, missing = _measured(betas_file(root, subject), table, unknown, progress)
    given = file.pop("given")
    images = inspection_files.images(root, unknown)
    maps = measured | given | inspection_files.places(root, subject, file["voxels"], unknown)
    best = maps.get("ncsnr", maps.get("ncsnr from repeats"))
    if best is None:
        unknown["noise ceiling"] = f"no ncsnr in the file, and {unknown['reliability']}"
    return Report(
        subject=subject,
        path=str(root),
        **file,
        trials=_per_session(records),
        splits=splits,
        repeats=_repeats(table),
        overlap=_overlap(records),
        published=inspection_files.published(root, subject, file, splits, unknown),
        missing=missing | _missing_of(table, images),
        ncsnr={
            "file": quartiles(maps.get("ncsnr")),
            "repeats": quartiles(maps.get("ncsnr from repeats")),
        },
        ceiling=_ceiling(best),
        reliability=quartiles(maps.get("reliability")),
        regions=_regions(inspection_files.rois(root, subject, file["voxels"], unknown), maps, best),
        drift=_drift(root, subject, unknown),
        behavior=_behavior(table, unknown),
        images=images,
        captions=inspection_files.captions(root, table, unknown),
        unknown=unknown,
        maps=maps,
    )


# -- trials and splits -----------------------------------------------------------------------------


def _per_session(records: Mapping[str, np.ndarray]) -> list[dict[str, int]]:
    train, test = (records[name][:, SESSION].astype(int) for name in ("train", "new_test"))
    return [
        {"session": int(s), "train": int((train == s).sum()), "test": int((test == s).sum())}
        for s in np.union1d(train, test)
    ]


def _repeats(table: np.ndarray) -> dict[int, int]:
    """How many images were shown once, twice, ...: {showings: images}."""
    _, showings = np.unique(table[:, IMAGE], return_counts=True)
    counts, images = np.unique(showings, return_counts=True)
    return dict(zip(counts.tolist(), images.tolist(), strict=True))


def _overlap(records: Mapping[str, np.ndarray]) -> list[int]:
    tests = [rows[:, IMAGE] for name, rows in records.items() if name != "train"]
    both = np.intersect1d(records["train"][:, IMAGE], np.concatenate(tests))
    return both.astype(int).tolist()


def _missing_of(table: np.ndarray, images: Mapping | None) -> dict[str, int]:
    trials, image = table[:, GLOBAL_TRIAL], table[:, IMAGE]
    number = images["number"] if images else np.inf
    return {
        "doubled trials": len(trials) - len(np.unique(trials)),
        "trials without image": int(((image < 0) | (image >= number)).sum()) if images else 0,
        "trials without answer": int((table[:, COLUMNS.index("ISCORRECT")] < 0).sum()),
    }


# -- betas, in slabs of voxels ---------------------------------------------------------------------


def _measured(
    path: Path, table: np.ndarray, unknown: dict, progress: bool = False
) -> tuple[dict, dict]:
    """Maps of ncsnr from repeats and reliability, (V,), and counts of what is missing."""
    repeated = bool(pd.Series(table[:, IMAGE]).duplicated().any())
    parts = [_of_part(betas, table, repeated) for betas in _parts(path, progress)]
    maps = {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}
    bad, constant = maps.pop("NaN betas"), maps.pop("constant")
    for name in ("reliability", "ncsnr from repeats"):
        if not np.isfinite(maps.get(name, np.nan)).any():
            maps.pop(name, None)
            unknown[name] = f"{'too few images were' if repeated else 'no image was'} shown twice"
    missing = {
        "NaN betas": int(bad.sum()),
        "NaN voxels": int((bad > 0).sum()),
        "constant voxels": int(constant.all(0).sum()),
        "constant voxels by session": constant.sum(1).tolist(),
    }
    return maps, missing


def _parts(path: Path, progress: bool = False) -> Iterator[np.ndarray]:
    """All betas as (trials, some voxels): read in large slabs, handed on in small parts."""
    with open_hdf5(path) as file, reading(path):
        betas = file["betas"]
        rows, voxels = betas.shape
        wide, narrow = (max(1, size // (4 * rows)) for size in (SLAB, PART))
        with tqdm(total=voxels, desc="voxels", disable=not progress) as bar:
            for first in range(0, voxels, wide):
                slab = betas[:, first : first + wide]
                for start in range(0, slab.shape[1], narrow):
                    yield slab[:, start : start + narrow]
                    bar.update(min(narrow, slab.shape[1] - start))


def _of_part(betas: np.ndarray, table: np.ndarray, repeated: bool) -> dict[str, np.ndarray]:
    rows, session = (table[:, column].astype(np.int64) for column in (GLOBAL_TRIAL, SESSION))
    voxels = betas[rows]
    with np.errstate(all="ignore"):  # NaN where a voxel has them, or never varies
        constant = [np.ptp(voxels[session == s], axis=0) == 0 for s in np.unique(session)]
        found = {"NaN betas": (~np.isfinite(betas)).sum(0), "constant": np.stack(constant)}
        if repeated:
            trials = _as_trials(voxels, table)
            found["ncsnr from repeats"] = nsd.estimate_ncsnr(trials)
            found["reliability"] = nsd.reliability(trials)
    return found


def _as_trials(voxels: np.ndarray, table: np.ndarray) -> nsd.Trials:
    image_id, session = (table[:, column].astype(np.int64) for column in (IMAGE, SESSION))
    repeat = pd.Series(image_id).groupby(image_id).cumcount().to_numpy(np.int64)
    rest = (torch.tensor(array) for array in (image_id, repeat, session, table))
    return nsd.Trials(torch.from_numpy(voxels), *rest)


def quartiles(values: np.ndarray | None) -> Quartiles | None:
    """[lower quartile, median, upper quartile] of what is finite; None where nothing is."""
    known = np.empty(0) if values is None else values[np.isfinite(values)]
    return np.percentile(known, (25, 50, 75)).tolist() if len(known) else None


def _ceiling(ncsnr: np.ndarray | None) -> dict[int, Quartiles] | None:
    """Quartiles of the noise ceiling in percent at one and three showings: Allen et al. 2022."""
    if quartiles(ncsnr) is None:
        return None
    return {n: quartiles(nsd.noise_ceiling(ncsnr, n)) for n in (1, 3)}


def _regions(
    rois: Mapping[str, np.ndarray], maps: Mapping[str, np.ndarray], best: np.ndarray | None
) -> dict[str, dict]:
    def of(values: np.ndarray | None, mask: np.ndarray) -> np.ndarray | None:
        return None if values is None else values[mask]

    return {
        name: {
            "voxels": int(mask.sum()),
            "ncsnr": quartiles(of(best, mask)),
            "ceiling": _ceiling(of(best, mask)),
            "reliability": quartiles(of(maps.get("reliability"), mask)),
        }
        for name, mask in sorted(rois.items(), key=_known_first)
    }


def _known_first(region: tuple[str, np.ndarray]) -> tuple[int, str]:
    name = region[0]
    return (KNOWN.index(name) if name in KNOWN else len(KNOWN)), name


def _drift(root: Path, subject: int, unknown: dict) -> dict[str, list[Quartiles]] | None:
    """Quartiles over voxels per session, of what `nsd.session_drift` measures."""
    path = betas_file(root, subject)
    with open_hdf5(path) as file, reading(path):
        if "session_mean" not in file:
            unknown["session drift"] = f"{path.name} has no session_mean"
            return None
        mean, std = (entry(file, f"session_{what}")[:].astype(float) for what in ("mean", "std"))
    if len(mean) < 2:
        unknown["session drift"] = "there is one session"
        return None
    moves = {"mean": (mean - mean.mean(0)) / std.mean(0), "gain": std / np.median(std, axis=0)}
    return {what: [quartiles(row) for row in values] for what, values in moves.items()}


def _behavior(table: np.ndarray, unknown: dict) -> list[dict] | None:
    if not (table[:, COLUMNS.index("ISCORRECT")] >= 0).any():
        unknown["behavior"] = "no trial has an answer"
        return None
    summary = nsd.behavior_summary(_as_trials(np.empty((len(table), 0), np.float32), table))
    rows = summary.reset_index().to_dict("records")
    return [{k: None if pd.isna(v) else v for k, v in row.items()} for row in rows]


# -- in words --------------------------------------------------------------------------------------


def _lines(report: Report) -> Iterator[str]:
    yield f"subject {report.subject} in {report.path}"
    yield from (f"  ! {problem}" for problem in report.problems)
    for name, value in _facts(report):
        yield f"  {name:16s}{value}"
    if report.regions:
        yield from _region_lines(report.regions)
    yield from (f"  not known: {what}: {why}" for what, why in report.unknown.items())


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "layout", report.kind
    if report.recipe:
        made = {k: str(v) for k, v in sorted(report.recipe.items())}  # of checksums the beginning
        yield "made with", ", ".join(f"{k} {v if len(v) < 40 else v[:8]}" for k, v in made.items())
    lengths = sorted({s["train"] + s["test"] for s in report.trials})
    each = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    yield "sessions", f"{report.sessions} of {each} trials"
    train, test = report.splits["train"], report.splits["new_test"]
    old = f" ({report.splits['test']} in the old split)" if "test" in report.splits else ""
    yield "trials", f"{train + test}: {train} training, {test} test{old}"
    shown = ", ".join(f"{images} shown {n} x" for n, images in report.repeats.items())
    yield "images", f"{sum(report.repeats.values())} seen: {shown}"
    if "split overlap" not in report.unknown:
        yield "split overlap", f"{len(report.overlap)} images" if report.overlap else "none"
    for what, (here, there_) in (report.published or {}).items():
        yield (
            "beside NSD's",
            f"{what}: {here} of {there_}{'' if here == there_ else '  <- differs'}",
        )
    yield "missing", _missing_words(report)
    yield "voxels", str(report.voxels)
    yield from _quality(report)
    yield from _rest(report)


def _missing_words(report: Report) -> str:
    m = report.missing
    words = [f"{m['NaN betas']} NaN" if m["NaN betas"] else "no NaN"]
    if m["constant voxels"]:
        words.append(f"{m['constant voxels']} voxels never vary")
    if constant := [n for n in m["constant voxels by session"] if n]:
        words.append(f"constant voxels in {len(constant)} sessions, at most {max(constant)}")
    else:
        words.append("no constant voxel in any session")
    unrecorded = report.betas - sum(report.splits[name] for name in ("train", "new_test"))
    words += [f"{unrecorded} betas without a record"] * (unrecorded > 0)
    words += [f"{m['trials without answer']} trials without an answer"]
    return ", ".join(words)


def _quality(report: Report) -> Iterator[tuple[str, str]]:
    for source, values in report.ncsnr.items():
        if values:
            yield f"ncsnr, {source}", f"{_spread(values)} (median, quartiles over voxels)"
    for n, values in (report.ceiling or {}).items():
        yield "noise ceiling", f"{_spread(values, 1)} % at {n} showing{'s' * (n > 1)}"
    if report.reliability:
        yield "reliability", f"r = {_spread(report.reliability)} between two showings"
    for what, sessions in (report.drift or {}).items():
        middle = [values[1] for values in sessions]
        sign, unit = ("+", "deviations") if what == "mean" else ("", "of the median session")
        ends = f"{min(middle):{sign}.2f} to {max(middle):{sign}.2f}"
        yield f"drift, {what}", f"{ends} {unit}, session medians"


def _rest(report: Report) -> Iterator[tuple[str, str]]:
    for what in ("hits", "false alarms") if report.behavior else ():
        known = [row[what] for row in report.behavior if row[what] is not None]
        if known:
            yield what, f"{np.median(known):.0%} ({min(known):.0%} to {max(known):.0%} by session)"
    if report.images:
        i = report.images
        yield (
            "images file",
            f"{i['file']}: {i['number']} of {i['pixels']} pixels, {i['gigabytes']:.2f} GB",
        )
    if report.captions is not None:
        yield "captions", f"for {report.captions:.0%} of the images seen"


def _region_lines(regions: Mapping[str, Mapping]) -> Iterator[str]:
    yield f"  {'region':16s}voxels   ncsnr   ceiling at 1 and 3 (%)   reliability   (medians)"
    for name, row in regions.items():
        cells = [f"{row['ncsnr'][1]:.2f}" if row["ncsnr"] else "-"]
        cells += [
            " and ".join(f"{v[1]:.0f}" for v in row["ceiling"].values()) if row["ceiling"] else "-"
        ]
        cells += [f"{row['reliability'][1]:.2f}" if row["reliability"] else "-"]
        yield f"  {name:16s}{row['voxels']:6d}{cells[0]:>8s}{cells[1]:>25s}{cells[2]:>14s}"


def _spread(values: Quartiles, digits: int = 2) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"
