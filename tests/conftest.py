"""A small cohort that several test files read, and the order in which two processes run all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# `make test` gives two processes whole files in this order (pytest-xdist's loadscope). From an
# empty cache the first pretrains for minutes; meanwhile the second has what needs no model: the
# tests and some notebooks. Then one of them fine-tunes on all sessions (04) and the other on one
# (07), so that neither waits for the other. The long come before the short: both end together.
PRETRAINS = "06_shared_subject_pretraining"
NEED_ITS_MODEL = (
    "04_diffusion_prior",
    "07_one_hour_finetuning",
    "10_metrics",
    "09_caption_refinement",
    "08_unclip_decoding",
    "05_low_level",
    "13_real_nsd",
    "14_your_own_data",
    "03_contrastive_retrieval",
)
LAST = "01_nsd_loading"


def once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills once, whichever of pytest-xdist's processes comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            beside = folder.with_name(f"{name}.part")
            make(beside)
            beside.rename(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def nothing_of_the_user(tmp_path_factory):
    """An empty cache folder and no settings: what notebooks left behind has no say in a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("DATA", "ASSETS", "DOWNLOAD"):
            patch.delenv(f"MINDEYE2_LITE_{name}", raising=False)
        yield


@pytest.fixture(scope="session")
def small_raw(tmp_path_factory):
    """The raw NSD tree: one person, four sessions, 730 scenes. Do not write into it: copy it."""
    from mindeye2_lite import synthetic

    def make(folder):
        synthetic.write_cohort(folder, scale=0.1, subjects=(1,), progress=False)

    return once(tmp_path_factory, "small-raw", make)


@pytest.fixture(scope="session")
def small_root(small_raw, tmp_path_factory):
    """The training layout of the same cohort, as `nsd.Subject` reads it."""
    from mindeye2_lite import nsd

    return once(
        tmp_path_factory,
        "small-root",
        lambda folder: nsd.prepare(small_raw, folder, progress=False),
    )


def turn(path: Path) -> int:
    """Files of the same number keep their order."""
    if path.stem in (PRETRAINS, LAST):
        return 0 if path.stem == PRETRAINS else 99
    if path.stem in NEED_ITS_MODEL:
        return 3 + NEED_ITS_MODEL.index(path.stem)
    return 2 if path.suffix == ".ipynb" else 1


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: turn(item.path))
