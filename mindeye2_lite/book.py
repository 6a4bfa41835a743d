"""Run the notebooks and build the book around them, the same on every system and in every shell.

Notebooks in git carry no outputs. `_build/notebooks/` keeps executed copies; one is run again only
when its code, the package, the shipped weights and results or the pinned versions have changed.
Prose may change freely: the book takes the text from `notebooks/` and the outputs from the copies.
"""

import functools
import hashlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import nbformat

from mindeye2_lite.paths import PACKAGE, write_beside

LONGEST_CELL = 1800  # seconds; a cell that takes longer hangs
WITHHELD = {"solution", "hint"}  # tags that students' copies lack
NOT_SEEN_BY_NOTEBOOKS = {"book.py", "cli.py"}
SIDE_BY_SIDE = 2  # notebooks at a time; each kernel has its share of the cores
# From an empty cache the first pretrains for minutes, and these wait for its model. Then one
# fine-tunes on all sessions (04) and another on one (07), so that neither waits for the other.
PRETRAINS = "06_shared_subject_pretraining"
NEED_ITS_MODEL = (
    "04_diffusion_prior",
    "07_one_hour_finetuning",
    "10_metrics",
    "12_controls",
    "09_caption_refinement",
    "08_unclip_decoding",
    "05_low_level",
    "13_real_nsd",
    "14_your_own_data",
    "03_contrastive_retrieval",
)
WIDGET = "application/vnd.jupyter.widget-view+json"


def find_root(start: Path | None = None) -> Path:
    """The folder of the repository: the nearest one upward with `_config.yml` and notebooks."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents, PACKAGE.parent):
        if (folder / "_config.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise ValueError(f"{start} is not inside a clone of mindeye2-lite: there is no _config.yml")


def sources(root: Path) -> list[Path]:
    """The notebooks in reading order, which is that of their numbers."""
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


def executed(source: Path) -> Path:
    """Where the executed copy of a notebook is kept."""
    return source.parents[1] / "_build" / "notebooks" / source.name


def fingerprint(source: Path) -> str:
    """SHA-256 of all that can change a notebook's outputs: its code and what it runs on."""
    cells = nbformat.read(source, as_version=4).cells
    code = "\0".join(cell.source for cell in cells if cell.cell_type == "code")
    surroundings = _surroundings(source.parents[1])
    return hashlib.sha256((surroundings + code).encode()).hexdigest()


@functools.cache
def _surroundings(root: Path) -> str:
    """One hash of the package, its weights and results, and the pinned versions."""
    package = root / "mindeye2_lite"
    files = [
        root / "constraints.txt",
        *(path for path in package.glob("*.py") if path.name not in NOT_SEEN_BY_NOTEBOOKS),
        *package.glob("weights/*"),
        *package.glob("results/*.json"),
    ]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def is_fresh(source: Path) -> bool:
    """True if the executed copy is what running the notebook now would give."""
    copy = executed(source)
    if not copy.is_file():
        return False
    kept = nbformat.read(copy, as_version=4).metadata.get("mindeye2_lite", {})
    return kept.get("fingerprint") == fingerprint(source)


def turn(name: str) -> int:
    """The place of a notebook where two run side by side from an empty cache."""
    if name == PRETRAINS:
        return 0
    return 2 + NEED_ITS_MODEL.index(name) if name in NEED_ITS_MODEL else 1


def execute_all(root: Path) -> None:
    """Run what is not fresh, two at a time, saying how long each took.

    OSError names the first notebook that failed; those beside it are stopped, none is begun.
    """
    from joblib import Parallel, delayed

    notebooks = sources(root)
    labels = {s: f"[{i:2d}/{len(notebooks)}] {s.stem}" for i, s in enumerate(notebooks, start=1)}
    stale = sorted((s for s in notebooks if not is_fresh(s)), key=lambda s: turn(s.stem))
    for source in (s for s in notebooks if s not in stale):
        print(f"{labels[source]}: fresh", flush=True)
    how = {"n_jobs": min(SIDE_BY_SIDE, len(stale)) or 1, "pre_dispatch": SIDE_BY_SIDE}
    each = max(1, (os.cpu_count() or 1) // how["n_jobs"])
    run = Parallel(**how, return_as="generator_unordered", batch_size=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* have been cancelled")
        for failure in run(delayed(_execute)(s, labels[s], each) for s in stale):
            if failure:
                raise OSError(failure)


def _execute(source: Path, label: str, threads: int) -> str:
    """What went wrong, in one line, or nothing. In a process of its own, so it prints itself."""
    os.environ.setdefault("OMP_NUM_THREADS", str(min(threads, 8)))
    print(f"{label}: running", flush=True)
    try:
        print(f"{label}: {execute(source):.0f} s", flush=True)
    except OSError as error:
        return str(error)
    return ""


def execute(source: Path) -> float:
    """Run one notebook with papermill; its seconds. OSError names the copy that shows a failure."""
    import papermill

    os.environ["MINDEYE2_LITE_BATCH"] = "1"  # nobody is there to move a slider
    copy, start = executed(source), time.monotonic()
    copy.parent.mkdir(parents=True, exist_ok=True)
    unfinished = copy.with_suffix(".unfinished.ipynb")
    options = {
        "cwd": copy.parent,
        "execution_timeout": LONGEST_CELL,
        "extra_arguments": ["--IPKernelApp.log_level=ERROR"],  # else each kernel warns of TCP
        "progress_bar": False,
    }
    try:
        notebook = papermill.execute_notebook(
            source, unfinished, kernel_name="python3", log_output=False, **options
        )
    except Exception as error:  # papermill, nbclient and the kernel each have their own kinds
        what = getattr(error, "evalue", None) or str(error) or type(error).__name__
        line = what.strip().splitlines()[-1]
        raise OSError(f"{source.name} failed: {line} (see {unfinished})") from error
    seconds = time.monotonic() - start
    notebook.metadata["mindeye2_lite"] = {"fingerprint": fingerprint(source), "seconds": seconds}
    with write_beside(copy) as path:
        nbformat.write(notebook, path)
    unfinished.unlink()
    return seconds


def with_outputs(source: Path) -> nbformat.NotebookNode:
    """The notebook as it stands in git, with the outputs of its executed copy, for the book."""
    notebook = nbformat.read(source, as_version=4)
    outputs = {cell.id: cell for cell in nbformat.read(executed(source), as_version=4).cells}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = outputs[cell.id].execution_count
            shown = [out for out in outputs[cell.id].outputs if _shows_without_kernel(out)]
            cell.outputs = _joined(shown)
    return notebook


def _shows_without_kernel(output: nbformat.NotebookNode) -> bool:
    """Sliders and progress bars need a kernel, and a script from the network to be drawn at all."""
    return WIDGET not in output.get("data", {})


def _joined(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Neighboring pieces of one stream as one: a print a second later is no box of its own."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def build(root: Path) -> int:
    """Build `_build/html`; the exit status of jupyter-book, in which any warning is a failure."""
    start = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]  # has no -m
    command = [*start, "build", str(root / "book"), "-W", "--keep-going"]
    return subprocess.run(command, cwd=root).returncode


def student_copies(root: Path) -> list[Path]:
    """Write every notebook without its solutions to `_build/student/`; the copies' paths."""
    folder = root / "_build" / "student"
    copies = [folder / source.name for source in sources(root)]
    for source, copy in zip(sources(root), copies, strict=True):
        notebook = nbformat.read(source, as_version=4)
        notebook.cells = list(_without(notebook.cells, WITHHELD))
        with write_beside(copy) as path:
            nbformat.write(notebook, path)
    return copies


def _without(
    cells: Iterable[nbformat.NotebookNode], tags: set[str]
) -> Iterable[nbformat.NotebookNode]:
    return (cell for cell in cells if not tags & set(cell.metadata.get("tags", [])))
