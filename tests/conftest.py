"""A small cohort that several test files read, and the order in which two processes run all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package
from filelock import FileLock
from jaxtyping import install_import_hook

# While tests run, every call into the package is checked against its annotations. jaxtyping knows
# shapes, and takes a third of the time of all tests where it wraps every function: so it has the
# modules that speak of shapes, and beartype alone the others.
PACKAGE = Path(__file__).parents[1] / "mindeye2_lite"
SHAPED = [path for path in PACKAGE.glob("*.py") if "from jaxtyping import" in path.read_text()]
install_import_hook([f"{PACKAGE.name}.{path.stem}" for path in SHAPED], "beartype.beartype")
beartype_package(PACKAGE.name, conf=BeartypeConf(claw_is_pep526=False))

# `make test` gives two processes whole files in this order (pytest-xdist's loadscope); three on two
# cores took longer. From an empty cache the first pretrains; meanwhile the second has what needs no
# model: the tests and some notebooks. The rest is in `book.turn`; the short come last.
LAST = "01_nsd_loading"
SHORT = ("test_nsd_fuzz", "test_own_fuzz", "test_nsd_raw", "test_cli")  # so that both end together


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


@pytest.fixture(scope="session")
def nsd_forms(tmp_path_factory):
    """All eight people, three sessions at most, as `released` and in three forms of NSD.

    `hdf5/raw`, `nsd-hdf5/raw`, `nii.gz/raw` are the trees, `FORM/out` what `nsd.prepare` makes of
    them. Do not write into them: copy.
    """
    return once(tmp_path_factory, "nsd-forms", write_nsd_forms)


def write_nsd_forms(folder: Path) -> None:
    """Of the designs one is MATLAB 5 and two are 7.3. The scenes are drawn once."""
    from mindeye2_lite import nsd, scenes, synthetic

    pictures = synthetic._pictures(scenes.sample(544, 0), 1)
    designs = {"hdf5": "mat5", "nsd-hdf5": "mat7.3", "nii.gz": "mat7.3"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_pictures", lambda *_: pictures)
        synthetic.write_released(folder / "released", scale=0.07)
        for form, design in designs.items():
            synthetic.write_cohort(
                folder / form / "raw",
                scale=0.07,
                progress=False,
                sessions_as=form,
                design_as=design,
            )
            nsd.prepare(folder / form / "raw", folder / form / "out", progress=False)


def turn(path: Path) -> int:
    """Files of the same number keep their order."""
    from mindeye2_lite import book

    if path.stem in (LAST, *SHORT):
        return 98 + (path.stem in SHORT)
    if path.suffix == ".ipynb":
        return 2 * book.turn(path.stem)
    return 1


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: turn(item.path))
