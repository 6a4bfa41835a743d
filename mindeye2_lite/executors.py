"""Who does independent pieces of work: this process, others on this machine, or a Dask cluster.

    with workers("dask://10.0.0.1:8786") as run:
        for result in run(function, tasks): ...      in whatever order they are done

"local" (a process per core, four at most) and "local:3", "serial" (this process),
"dask://HOST:PORT" (the workers of a running Dask scheduler, for instance of dask-jobqueue under
Slurm; they must see the same folders). A function and its tasks must be picklable; the first
error ends all.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

PATIENCE = 10  # seconds that a Dask scheduler has to answer
MOST = 4  # processes that "local" starts: each holds a session of a full-size person
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def workers(executor: str = "serial") -> Iterator[Run]:
    """Yield `run(function, tasks)`, an iterator of results as they come.

    ValueError in one line for an unknown executor, a scheduler that does not answer, where Dask
    is not installed, and where a process that works is killed or the scheduler goes away. An error
    in a task arrives as itself.
    """
    if executor == "serial":
        yield map
    elif executor.partition(":")[0] == "local":
        yield partial(_processes, _count(executor))
    elif executor.startswith("dask://"):
        with _client(_address(executor)) as client:
            yield partial(_cluster, client)
    else:
        raise ValueError(
            f"executor {executor!r} is unknown: choose serial, local, local:N or dask://HOST:PORT"
        )


def _count(executor: str) -> int:
    number = executor.partition(":")[2] or str(min(os.cpu_count() or 1, MOST))
    if not (number.isdecimal() and int(number) > 0):
        raise ValueError(f"executor {executor!r}: give a number of processes, as in local:4")
    return int(number)


def _address(executor: str) -> str:
    place = executor.removeprefix("dask://")
    if not re.fullmatch(r"([^:/\s]+|\[[\da-fA-F:]+\]):\d+", place):
        raise ValueError(f"executor {executor!r}: give host and port, as in dask://10.0.0.1:8786")
    return f"tcp://{place}"


def _processes(count: int, function: Callable, tasks: Iterable) -> Iterator[Any]:
    tasks = list(tasks)
    if min(count, len(tasks)) < 2:
        yield from map(function, tasks)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(count, return_as="generator_unordered")
    try:
        yield from parallel(delayed(function)(task) for task in tasks)
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of {count} processes was killed, often for want of memory: take fewer (local:N)"
        ) from error


def _client(address: str):
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            "executor dask:// needs Dask: python -m pip install 'mindeye2-lite[dask]'"
        ) from error
    try:
        return Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: is it running?") from error


def _cluster(client, function: Callable, tasks: Iterable) -> Iterator[Any]:
    from distributed import KilledWorker, as_completed

    futures = client.map(function, list(tasks), pure=False, retries=1)
    try:
        for future in as_completed(futures, loop=client.loop):
            yield future.result()
    except KilledWorker as error:
        raise ValueError(
            "Dask workers were killed at the same task, often for want of memory: give them more"
        ) from error
    except CancelledError as error:
        raise ValueError("the Dask scheduler has gone away: start it and run this again") from error
    finally:
        client.cancel(futures)
