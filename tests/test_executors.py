"""Work is done here, by other processes or by a Dask cluster, and errors arrive as themselves."""

import hashlib
import os
import signal
import sys
import time
from concurrent.futures import CancelledError

import pytest

from mindeye2_lite import executors
from mindeye2_lite.executors import workers


def square(number):
    return number**2, os.getpid()


def meet(folder):
    """Waits for a second process to come, so that two must take part."""
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return os.getpid()


def refuse(number):
    if number == 2:
        raise FileNotFoundError("betas_session02.hdf5 is missing")
    return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def done(executor, function, tasks):
    with workers(executor) as run:
        return list(run(function, tasks))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two processes of one thread; their files lie apart."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",
        silence_logs=50,
        memory_limit=None,
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as cluster:
        yield cluster


@pytest.fixture
def dask(cluster):
    return cluster.scheduler_address.replace("tcp://", "dask://")


@pytest.mark.parametrize("executor", ["serial", "local:1"])
def test_one_process_is_this_one_and_keeps_the_order(executor):
    assert done(executor, square, [3, 1, 2]) == [(n**2, os.getpid()) for n in (3, 1, 2)]


def test_two_local_processes_do_every_task_once(tmp_path):
    results = done("local:2", square, range(20))
    assert sorted(n for n, _ in results) == [n**2 for n in range(20)]
    pids = set(done("local:2", meet, [tmp_path] * 2))
    assert len(pids) == 2 and os.getpid() not in pids


def test_local_is_a_process_per_core(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert done("local", square, [2]) == [(4, os.getpid())]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert executors._count("local") == 4  # each holds a session of a full-size person


def test_two_dask_workers_do_every_task_once(dask, tmp_path):
    results = done(dask, square, range(20))
    assert sorted(n for n, _ in results) == [n**2 for n in range(20)]
    pids = set(done(dask, meet, [tmp_path] * 2))
    assert len(pids) == 2 and os.getpid() not in pids


def test_no_task_at_all_is_no_result(dask):
    assert [done(executor, square, []) for executor in ("serial", "local:2", dask)] == [[]] * 3


@pytest.mark.parametrize("executor", ["serial", "local:2", "dask"])
def test_an_error_in_a_task_arrives_as_itself(executor, request):
    executor = request.getfixturevalue("dask") if executor == "dask" else executor
    with pytest.raises(FileNotFoundError) as caught:
        done(executor, refuse, [1, 2, 3])
    assert str(caught.value) == "betas_session02.hdf5 is missing"
    assert done(executor, refuse, [1, 3, 4]) is not None


def says(match, executor, function=square):
    with pytest.raises(ValueError, match=match) as caught:
        done(executor, function, [1, 2])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("executor", ["threads", "", "locals", "dask:1", "tcp://a:1"])
def test_an_unknown_executor_is_told_those_there_are(executor):
    says("is unknown: choose serial, local, local:N or dask://HOST:PORT", executor)


@pytest.mark.parametrize("executor", ["local:0", "local:two", "local:-1", "local:1.5"])
def test_local_needs_a_number_of_processes(executor):
    says("give a number of processes, as in local:4", executor)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch, capfd):
    monkeypatch.setattr(executors, "PATIENCE", 0.5)
    says("no Dask scheduler answers at tcp://127.0.0.1:9: is it running", "dask://127.0.0.1:9")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("address", ["", "host", "127.0.0.1:port", ":8786", "a:1:2"])
def test_an_address_that_is_none_is_named(address):
    says("give host and port, as in dask://10.0.0.1:8786", f"dask://{address}")


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    says(r"python -m pip install 'mindeye2-lite\[dask\]'", "dask://127.0.0.1:9")


def test_a_local_process_that_is_killed_costs_one_line():
    says("one of 2 processes was killed, often for want of memory: take fewer", "local:2", die)
    assert len(done("local:2", square, range(3))) == 3


class Gone:
    """A client whose scheduler went away while it waited, or whose workers died at a task."""

    loop = None

    def __init__(self, error):
        self.error = error

    def map(self, *_, **__):
        return [self]

    def result(self):
        raise self.error

    def cancel(self, futures):
        pass


def test_dask_workers_and_schedulers_that_go_away_cost_one_line(monkeypatch):
    import distributed

    monkeypatch.setattr(distributed, "as_completed", lambda futures, loop: iter(futures))
    for error, match in (
        (CancelledError("task"), "the Dask scheduler has gone away"),
        (distributed.KilledWorker("task", None, 3), "Dask workers were killed at the same task"),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            list(executors._cluster(Gone(error), square, [1]))
        assert "\n" not in str(caught.value)


# -- preparation -----------------------------------------------------------------------------------


def files(folder):
    """Hashes of what lies there, but for locks."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {str(p.relative_to(folder)): p for p in paths if ".locks" not in p.parts}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def finished(cluster) -> list[int]:
    """How many tasks each worker has done."""
    from distributed import Client

    with Client(cluster.scheduler_address, set_as_default=False) as client:
        return list(client.run(lambda dask_worker: dask_worker.state.executed_count).values())


def test_two_dask_workers_prepare_the_same_bytes_as_one_process(
    cluster, dask, small_raw, small_root, tmp_path
):
    from mindeye2_lite import nsd  # here: workers that import this file need no torch

    before = finished(cluster)
    nsd.prepare(small_raw, tmp_path / "out", progress=False, executor=dask)
    worked = [now - then for now, then in zip(finished(cluster), before, strict=True)]
    assert len(worked) == 2 and min(worked) > 0 and sum(worked) >= 4
    assert files(tmp_path / "out") == files(small_root)
