"""Batches read what they need of targets on disk, and nothing else of them is ever in memory."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mindeye2_lite import encoders, feed
from mindeye2_lite.feed import Feed
from mindeye2_lite.nsd import Trials
from mindeye2_lite.step_memory import Living

CPU = torch.device("cpu")
IMAGES, BATCH = 400, 8
SHAPES = {"tokens": (16, 32), "latents": (4, 8, 8), "aux": (4, 8), "aux_augmented": (4, 8)}


def made(rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(rows, *s, generator=generator).half() for k, s in SHAPES.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Targets written in four parts, as `encoders.targets` writes them."""
    path = tmp_path_factory.mktemp("targets") / "targets.safetensors"
    parts = (made(IMAGES // 4, seed) for seed in range(4))
    encoders._save_rows(parts, torch.arange(IMAGES), path)
    return path


def trials(seed: int) -> Trials:
    image_id = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(seed))[:50]
    zero = torch.zeros_like(image_id)
    return Trials(torch.randn(50, 20), image_id, zero, zero, torch.zeros(50, 17).double())


def build(targets: encoders.Targets) -> Feed:
    return Feed({1: trials(1), 2: trials(2)}, targets, BATCH, 0, CPU)


def test_targets_on_disk_are_float16(file):
    with safe_open(file, "pt") as opened:
        kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}
    assert kinds == dict.fromkeys(SHAPES, "F16") | {"image_ids": "I64"}
    kept = load_file(file)
    for name in SHAPES:
        assert torch.equal(kept[name], torch.cat([made(IMAGES // 4, s)[name] for s in range(4)]))


def test_a_feed_never_holds_more_of_its_targets_than_a_batch(file):
    targets = encoders.Targets(**load_file(file))
    row = 6 * sum(getattr(targets, name)[0].numel() for name in SHAPES)  # float16 and float32
    with Living() as living:
        made = build(targets)
        batches = [made(step, mixed=True) for step in range(3)]
        parts = made.parts(3, mixed=True, cut=2)
    for name in SHAPES:
        assert made.targets[name].data_ptr() == getattr(targets, name).data_ptr(), "no copy"
    # Three batches and one that is also cut up into parts, and their voxels and numbers.
    assert living.peak < 5 * BATCH * row + 20_000 < IMAGES * row / 8
    assert all(x.dtype == torch.float32 for b in (*batches, *parts) for x in b.targets.values())


def test_batches_of_mapped_targets_are_those_of_float32_ones_to_the_bit(file):
    mapped = encoders.Targets(**load_file(file))
    whole = {k: v if k == "image_ids" else v.float() for k, v in vars(mapped).items()}
    ours, theirs = build(mapped), build(encoders.Targets(**whole))
    for step in range(3):
        a, b = (one(step, mixed=False).targets for one in (ours, theirs))
        assert a.keys() == b.keys() == SHAPES.keys()
        assert all(torch.equal(a[name], b[name]) for name in SHAPES)


def test_nothing_of_a_file_of_targets_is_read_before_it_is_asked_for(file, tmp_path):
    """What is written into the file afterwards is seen: the tensors are the file."""
    path = tmp_path / "mapped.safetensors"
    path.write_bytes(file.read_bytes())
    targets = encoders.Targets(**load_file(path))
    with path.open("r+b") as opened:
        start = 8 + struct.unpack("<Q", opened.read(8))[0]
        opened.seek(start)
        opened.write(bytes(path.stat().st_size - start))
    assert not any(getattr(targets, name).any() for name in SHAPES)


@pytest.mark.parametrize(("free", "moves"), [(10_000_000, False), (100_000_000, True)])
def test_only_what_is_small_beside_the_free_memory_goes_to_the_gpu(free, moves, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    values = [torch.zeros(1_000_000, dtype=torch.float16), torch.zeros(500_000)]  # 4 MB
    assert feed._fits_near(values, torch.device("cuda")) is moves
