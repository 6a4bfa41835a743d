"""Mirror ../notebooks into book/notebooks, executed, so that `jupyter-book build book/` finds them.

Sphinx reads only files below its source folder. A symlink would do on Linux but not on Windows. The
mirror is git-ignored and belongs to this extension: strangers in it are removed. A notebook with a
fresh executed copy lends its outputs; any other is run first, by the function that `mindeye2-lite
book` uses, so that the two commands cannot differ.
"""

from pathlib import Path

import nbformat
from sphinx.errors import ExtensionError

from mindeye2_lite import book


def gather(root: Path, mirror: Path) -> None:
    """Make `mirror` hold the notebooks with outputs, and their drawings, and nothing else."""
    mirror.mkdir(exist_ok=True)
    wanted = {
        mirror / source.name: nbformat.writes(book.with_outputs(source)).encode()
        for source in book.sources(root)
    }
    folder = root / "notebooks"
    for path in [*folder.rglob("*.svg"), *folder.rglob("*.png")]:
        wanted[mirror / path.relative_to(folder)] = path.read_bytes()
    for path, content in wanted.items():
        if not path.exists() or path.read_bytes() != content:  # an untouched page is not read again
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in mirror.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


def setup(app):
    """Run before Sphinx lists its pages."""
    root = Path(app.srcdir).parent
    try:
        book.execute_all(root)
    except (OSError, ValueError) as error:
        raise ExtensionError(str(error)) from error
    gather(root, Path(app.srcdir) / "notebooks")
    return {"parallel_read_safe": True}
