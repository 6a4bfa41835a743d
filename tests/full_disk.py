"""A disk that is full, for tests of what is left behind on one."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """As on a full disk: writing more than `size` bytes to a file fails, in whatever language.

    Inside, Python keeps no bytecode, neither here nor in processes that start here: of a module
    that is imported for the first time it would leave a file cut short, which breaks every later
    import of it.
    """
    before, environ = resource.getrlimit(resource.RLIMIT_FSIZE), os.environ.get(NO_BYTECODE)
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    os.environ[NO_BYTECODE] = "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = kept
        os.environ.pop(NO_BYTECODE)
        os.environ.update({} if environ is None else {NO_BYTECODE: environ})
