"""Who does independent pieces of work: this process, others on this machine, or a Dask cluster.

    with workers("dask://10.0.0.1:8786") as run:
        for result in run(function, tasks): ...      in whatever order they are done

"local" (a process per core) and "local:3", "serial" (this process), "dask://HOST:PORT" (the
workers of a running Dask scheduler, for instance of dask-jobqueue under Slurm; they must see the
same folders). A function and its tasks must be picklable; the first error ends all.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def workers(executor: str = "serial") -> Iterator[Run]:
    """Yield `run(function, tasks)`, an iterator of results as they come.

    ValueError in one line for an unknown executor, a scheduler that does not answer, or where
    Dask is not installed.
    """
    if executor == "serial":
        yield map
    elif executor.partition(":")[0] == "local":
        yield partial(_processes, _count(executor))
    elif executor.startswith("dask://"):
        with _client("tcp://" + executor.removeprefix("dask://")) as client:
            yield partial(_cluster, client)
    else:
        raise ValueError(
            f"executor {executor!r} is unknown: choose serial, local, local:N or dask://HOST:PORT"
        )


def _count(executor: str) -> int:
    number = executor.partition(":")[2] or str(os.cpu_count() or 1)
    if not (number.isdecimal() and int(number) > 0):
        raise ValueError(f"executor {executor!r}: give a number of processes, as in local:4")
    return int(number)


def _processes(count: int, function: Callable, tasks: Iterable) -> Iterator:
    tasks = list(tasks)
    if min(count, len(tasks)) < 2:
        return map(function, tasks)
    from joblib import Parallel, delayed

    parallel = Parallel(count, return_as="generator_unordered")
    return parallel(delayed(function)(task) for task in tasks)


def _client(address: str):
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            "executor dask:// needs Dask: python -m pip install 'mindeye2-lite[dask]'"
        ) from error
    try:
        return Client(address, timeout=10, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: is it running?") from error


def _cluster(client, function: Callable, tasks: Iterable) -> Iterator:
    from distributed import as_completed

    futures = client.map(function, list(tasks), pure=False, retries=1)
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        client.cancel(futures)
