"""What the cohort's people would measure before pictures that they were never shown.

A person's voxels are drawn from the cohort's seed. Drawn again, they answer any picture: the new
ones stand among the thousand that the person was shown, which set the scales (means, deviations) of
all. Of the shown pictures this gives what the files were written from, and of them and the new
ones together the same to about a percent, as a few more pictures move the scales a little (tested).

    found = responses(root, 1, pictures)
    found.new                     (n, V) without noise
    found.measured(seed=0)        trials: three noisy repeats, z-scored as the files are
    found.noise_free()            trials: the same voxels, if nothing but the picture moved them

V1 to hV4 see the pixels, and so do mid-level statistics in higher cortex. The rest of higher cortex
is told *attributes* (kind, color, ground, ...), which a photograph has not got: where nothing is
told, it is told the cohort's average scene. A kind that the cohort has not got has no code of its
own, only the seven features of `voxel_model.TAXONOMY`, if they are given. V = voxels of nsdgeneral.
Synthetic cohort only. Read with notebook 12.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mindeye2_lite import layout_writing, nsd, nsd_raw, paths, synthetic, voxel_model
from mindeye2_lite.layout import COLUMNS

FILLERS = 67  # training pictures in a session, which scale it: nine tenths of its 75, as in NSD
BLOCK = 256  # pictures at once

Signal = Float[np.ndarray, "pictures voxels"]


@dataclass(frozen=True)
class Responses:
    """Noise-free responses of one person, in deviations over all of these pictures together."""

    subject: int
    where: voxel_model.Anatomy
    ncsnr: Float[np.ndarray, " voxels"]
    shown_ids: Int[np.ndarray, " shown"]  # numbers of what the person was shown, test first
    test: int  # so many of them are of the test
    shown: Float[np.ndarray, "shown voxels"]
    new: Signal

    def measured(self, *, repeats: int = 3, seed: int = 0) -> nsd.Trials:
        """The new pictures shown `repeats` times, in as many new sessions.

        Each session shows every new picture once, at random among FILLERS training pictures of the
        person; noise and drift are `voxel_model.measure`'s, and z-scores are by the session's
        training pictures alone. The new picture i has image_id i.
        """
        rng, n = np.random.default_rng([seed, 9, self.subject]), len(self.new)
        count = min(FILLERS, len(self.shown) - self.test)
        orders = [rng.permutation(n + count) for _ in range(repeats)]
        fillers = [self.test + rng.permutation(len(self.shown) - self.test)[:count] for _ in orders]
        sessions = [
            np.concatenate([self.new, self.shown[rows]])[order]
            for rows, order in zip(fillers, orders, strict=True)
        ]
        signal, lengths = np.concatenate(sessions), [n + count] * repeats
        betas = voxel_model.measure(signal, self.ncsnr, lengths, self.where, rng)
        betas = np.rint(betas * nsd_raw.SCALE) / nsd_raw.SCALE  # files hold whole numbers
        scaled = [
            layout_writing.normalized(part, order >= n)[0][order.argsort()[:n]]
            for part, order in zip(np.split(betas, repeats), orders, strict=True)
        ]
        return _trials(np.concatenate(scaled), np.arange(n), repeats)

    def noise_free(self, image_ids: Int[Tensor, " images"] | None = None) -> nsd.Trials:
        """New pictures (None), or shown ones by number, as voxels that nothing else moves.

        On the scale of the files, where a trial's deviation is that of signal and noise together:
        so it is the noise alone that is missing. KeyError names a picture that was not shown.
        """
        clean, ids = self.new, np.arange(len(self.new))
        if image_ids is not None:
            place, ids = {int(i): row for row, i in enumerate(self.shown_ids)}, image_ids.numpy()
            clean = self.shown[[place[int(i)] for i in ids]]
        return _trials(clean * self.ncsnr / np.sqrt(1 + self.ncsnr**2), ids, 1)


def responses(
    root: str | Path,
    subject: int,
    pictures: Float[Tensor, "pictures 3 64 64"] | None = None,
    attributes: Mapping[str, np.ndarray] | None = None,
    taxonomy: Float[np.ndarray, "pictures 7"] | None = None,
) -> Responses:
    """A person's responses to new pictures in [0, 1] and to all they were shown, without noise.

    `attributes` of the new pictures are as `scenes.attributes` gives them, a kind of -1 being one
    that the cohort has not got; None tells higher cortex nothing about any of them. `taxonomy` are
    features of kinds that are -1. Without pictures only those shown. FileNotFoundError for a
    folder that is no synthetic cohort.
    """
    root, told = Path(root), synthetic.true_attributes(root)
    about = json.loads((root / "provenance.json").read_text(encoding="utf-8"))
    plan, seed = synthetic.design(about["seed"], about["scale"]), about["seed"]
    images, ids = nsd.Subject(root, subject).images, plan.shown[subject - 1]
    pictures = torch.empty(0, 3, 64, 64) if pictures is None else pictures
    maps, middle = _seen(torch.cat([images[torch.from_numpy(ids)], pictures]))
    columns, names = _columns(told, ids, attributes, taxonomy, len(pictures))
    seen = voxel_model.Features(maps, columns, names, _axes(images, root)(middle))
    rng = np.random.default_rng([seed, 2, subject])  # as synthetic._measured goes on with it
    where = voxel_model.anatomy(subject, rng)
    signal = voxel_model.responses(seen, where, rng)
    snr = voxel_model.ncsnr(subject, where, rng)
    shown, new = signal[: len(ids)], signal[len(ids) :]
    return Responses(subject, where, snr, ids, plan.num_shared, shown, new)


def agreement(root: str | Path, found: Responses) -> tuple[float, float]:
    """Do the responses fit the files? Median over voxels of r with the test, and the r expected.

    Test voxels are averaged over their three repeats; a perfect prediction then reaches
    s / √(s² + 1/3), s being ncsnr.
    """
    test = nsd.Subject(root, found.subject).test()
    clean = found.noise_free(test.image_ids).voxels.numpy()
    told = test.repeats().mean(1).numpy()
    a, b = ((x - x.mean(0)) / x.std(0) for x in (clean, told))
    expected = found.ncsnr / np.sqrt(found.ncsnr**2 + 1 / 3)
    return float(np.median((a * b).mean(0))), float(np.median(expected))


def _seen(pictures: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Maps and mid-level statistics, from whole numbers, as pictures were when drawn."""
    whole = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    parts = [voxel_model._maps(whole[i : i + BLOCK]) for i in range(0, len(whole), BLOCK)]
    maps, middle = (np.concatenate(part) for part in zip(*parts, strict=True))
    return maps, middle


def _axes(images: nsd.Images, root: Path):
    """What brings mid-level statistics onto the cohort's principal axes; the axes are kept."""
    made = hashlib.sha256((root / "provenance.json").read_bytes()).hexdigest()[:12]
    path = paths.cache() / "responses" / f"axes-{made}.npz"
    if not path.exists():
        blocks = torch.arange(len(images)).split(BLOCK)
        middle = np.concatenate([_seen(images[ids])[1] for ids in blocks])
        centered = middle - (mean := middle.mean(0))  # from here as voxel_model._principal
        _, vectors = np.linalg.eigh((centered.T @ centered / len(middle)).astype(np.float64))
        axes = vectors[:, ::-1][:, : voxel_model.MIDDLE_DIMENSIONS].astype(np.float32)
        axes /= (centered @ axes).std(0)
        with paths.write_beside(path) as beside, beside.open("wb") as file:
            np.savez(file, mean=mean, axes=axes)
    with np.load(path, allow_pickle=False) as kept:
        mean, axes = kept["mean"], kept["axes"]
    return lambda middle: ((middle - mean) @ axes).astype(np.float32)


def _columns(
    cohort: dict, ids: np.ndarray, attributes: Mapping | None, taxonomy: np.ndarray | None, n: int
) -> tuple[np.ndarray, list[str]]:
    """Attribute columns of shown and new pictures, in deviations over the cohort's scenes."""
    columns, names = voxel_model._attribute_columns(cohort)
    new = np.zeros((n, len(names)), np.float32)  # the average scene
    if attributes is not None:
        everything = {k: np.concatenate([v, attributes[k]]) for k, v in cohort.items()}
        together, _ = voxel_model._attribute_columns(everything)
        old, new = together[: len(columns)], together[len(columns) :]
        # both are the same codes on two scales
        gain = columns.std(0) / np.maximum(old.std(0), 1e-6)
        new = (new - old.mean(0)) * gain + columns.mean(0)
    if taxonomy is not None:
        unseen, table = attributes["kind"] < 0, np.array(list(voxel_model.TAXONOMY.values()))
        known, first = table[cohort["kind"]], names.count("kind") - table.shape[1]
        features = (taxonomy - known.mean(0)) / known.std(0)
        new[unseen, first : names.count("kind")] = features[unseen]
    return np.concatenate([columns[ids], new.astype(np.float32)]), names


def _trials(voxels: np.ndarray, ids: np.ndarray, repeats: int) -> nsd.Trials:
    return nsd.Trials(
        torch.from_numpy(voxels.astype(np.float32)),
        torch.from_numpy(np.tile(ids, repeats).astype(np.int64)),
        torch.arange(repeats).repeat_interleave(len(ids)),
        torch.arange(1, repeats + 1).repeat_interleave(len(ids)),
        torch.zeros(len(ids) * repeats, len(COLUMNS), dtype=torch.float64),
    )
