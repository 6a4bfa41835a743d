"""A small cohort that several test files read: one person, four sessions, 730 scenes."""

import pytest

TRAINS_THE_MOST = "07_one_hour_finetuning.ipynb"


@pytest.fixture(scope="session")
def small_raw(tmp_path_factory):
    """The raw NSD tree. Do not write into it: copy it first."""
    from mindeye2_lite import synthetic

    folder = tmp_path_factory.mktemp("raw")
    return synthetic.write_cohort(folder, scale=0.1, subjects=(1,), progress=False)


@pytest.fixture(scope="session")
def small_root(small_raw, tmp_path_factory):
    """The training layout of the same cohort, as `nsd.Subject` reads it."""
    from mindeye2_lite import nsd

    return nsd.prepare(small_raw, tmp_path_factory.mktemp("prepared"), progress=False)


def pytest_collection_modifyitems(items):
    """First the notebook that trains the most: from an empty cache, others wait for its models."""
    items.sort(key=lambda item: item.path.name != TRAINS_THE_MOST)
