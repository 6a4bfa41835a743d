"""Twelve letters that change when a sweep's numbers could: the code, the weights, the data.

    source(config, root)         of everything that grids.py imports, directly or not
    Watch(config, root).check()  is it still the same?

Of the code its meaning is taken: comments, docstrings and layout may change. Modules that grids.py
reaches but that have no say in a score are named in NO_SAY, those that only real data or real
networks come through in FULL_SIZE; a new module is measured unless it is put there.
"""

import ast
import hashlib
import json
from pathlib import Path

from mindeye2_lite import paths
from mindeye2_lite.config import Config

START = "grids"
NO_SAY = set(
    """
    asset_table assets benchmarks book brain_correlation captions_metrics claims cli
    converter_training doctor executors experiments full_size glmsingle inspection inspection_files
    intervals measuring nsd_compare nsd_match out_of_distribution own_checks own_data own_events
    own_files own_pictures own_split paths permutation plan replay responses small_points sources
    stages stand_ins step_memory stranger surfaces sweep_tables sweeps tar_records teaching
    text_towers training_miniatures verdict viz viz_data viz_results ways_of_reading ways_of_scoring
    """.split()
)
FULL_SIZE = {"paper_judges", "released_networks", "sdxl", "unclip_names", "unclip_released"}


def source(config: Config, root: str | Path) -> str:
    """A hash over the measured modules, the shipped weights and the data in `root`."""
    digest = hashlib.sha256()
    for path in sorted(measured(config)):
        digest.update(f"{path.stem} {meaning(path.read_text(encoding='utf-8'))}".encode())
    digest.update((paths.PACKAGE / "weights" / "manifest.json").read_bytes())
    digest.update(_data(Path(root)))
    return digest.hexdigest()[:12]


def measured(config: Config) -> set[Path]:
    """The modules whose code can change a score of this config."""
    left_out = NO_SAY | (FULL_SIZE if config.data == "synthetic" else set())
    there = {path.stem: path for path in paths.PACKAGE.glob("*.py")}
    found, ahead = set(), {START}
    while ahead:
        name = ahead.pop()
        found.add(name)
        ahead |= (imported(there[name]) & there.keys()) - left_out - found
    return {there[name] for name in found}


def imported(path: Path) -> set[str]:
    """Modules of the package that a module imports, also inside functions."""
    package, found = paths.PACKAGE.name, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[2] for name in node.names if package in name.name}
        elif isinstance(node, ast.ImportFrom):
            whole = ".".join([package] * node.level + [node.module or ""] * bool(node.module))
            first, _, inside = whole.partition(".")
            if first == package:
                found |= {inside} if inside else {name.name for name in node.names}
    return found


def meaning(code: str) -> str:
    """The code's syntax tree without docstrings, the same for every version of Python."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            del body[0]
    return repr(_form(tree))


def _is_text(node: ast.AST) -> bool:
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _form(node: object) -> object:
    """Nested lists; what is absent is left out, as versions differ in what they leave absent."""
    if isinstance(node, ast.AST):
        fields = [(name, _form(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, *(field for field in fields if field[1] not in (None, []))]
    return [_form(item) for item in node] if isinstance(node, list) else node


def _data(root: Path) -> bytes:
    """What made a synthetic cohort; of real data names, sizes, first and last 64 KiB of files."""
    if (made := root / "provenance.json").exists():
        return json.dumps(json.loads(made.read_text()), sort_keys=True).encode()
    digest = hashlib.sha256()
    for path in sorted(root.glob("*.hdf5")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(2**16))
            file.seek(max(0, path.stat().st_size - 2**16))
            digest.update(file.read())
    return digest.digest()


class Watch:
    """The source at the start of a run, and whether it is still that."""

    def __init__(self, config: Config, root: str | Path):
        self.config, self.root = config, root
        self.source, self.seen = source(config, root), self._looks()

    def check(self) -> None:
        """ValueError in one line if the code that measures means something else by now."""
        if self._looks() == self.seen:
            return
        if source(self.config, self.root) != self.source:
            raise ValueError(
                "the code that measures was changed while it ran: the cells so far are kept, "
                "but measure all of them again with --fresh"
            )
        self.seen = self._looks()

    def _looks(self) -> list[tuple[str, int, int]]:
        """Of all modules, measured or not: cheap to look at."""
        files = [*paths.PACKAGE.glob("*.py"), paths.PACKAGE / "weights" / "manifest.json"]
        stats = ((path.stem, path.stat()) for path in sorted(files))
        return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]
