"""A stub of a sweep whose second cell takes a minute, from the command line: to be interrupted.

python sweep_worker.py FOLDER     its results and traces lie there
"""

import signal
import sys
from pathlib import Path

import pytest
from test_sweeps import slow, stubs

from mindeye2_lite import cli

if __name__ == "__main__":
    # what a shell starts with & inherits that interrupts are ignored, and so would this program
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        stubs(Path(sys.argv[1]), patch)(slow)
        sys.exit(cli.main(["sweep", "fake-sweep", "--executor", "serial"]))
