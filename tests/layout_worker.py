"""A person whose reading is counted and can be held up: for this process, others and real kills.

python layout_worker.py OUT SUBJECT LOG HOLD     writes that person; waits while reading HOLD
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindeye2_lite.layout import COLUMNS, IMAGE, SESSION, SHARED
from mindeye2_lite.layout_writing import Person, write_person

SESSIONS, TRIALS, VOXELS = 5, 12, 1000


def table() -> np.ndarray:
    """Records of images shown again and again, a quarter of them shared."""
    rng = np.random.default_rng(0)
    records = np.tile(np.arange(len(COLUMNS), dtype=np.float64), (SESSIONS * TRIALS, 1))
    records[:, IMAGE] = rng.permutation(np.arange(SESSIONS * TRIALS) // 3)
    records[:, SESSION] = np.repeat(np.arange(SESSIONS), TRIALS) + 1
    records[:, 5] = np.arange(SESSIONS * TRIALS)
    records[:, SHARED] = records[:, IMAGE] < 5
    return records


def betas(subject: int, session: int) -> np.ndarray:
    rng = np.random.default_rng([subject, session])
    return rng.normal(subject, session, (TRIALS, VOXELS)).astype(np.float32)


@dataclass(frozen=True)
class Read:
    """Reads a session and says so in `log`; waits in session `hold` until LOG.go is there."""

    subject: int
    log: Path
    hold: int = 0

    def __call__(self, session: int) -> np.ndarray:
        with self.log.open("a") as file:
            file.write(f"{session} {os.getpid()}\n")
        while session == self.hold and not self.log.with_suffix(".go").exists():
            time.sleep(0.02)
        return betas(self.subject, session)


def person(subject: int, log: Path, hold: int = 0, **changes) -> Person:
    kept = {"recipe": {"mask": "nsdgeneral"}, "sources": ["a file", 1234]}
    return Person(subject, table(), Read(subject, Path(log), hold), **{**kept, **changes})


if __name__ == "__main__":
    out, subject, log, hold = sys.argv[1:]
    try:
        write_person(Path(out), person(int(subject), Path(log), int(hold)))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
