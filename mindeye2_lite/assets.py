"""The real files: what there is, where it comes from, who needs it, and a way to get it.

    for asset in needed(Config.colab(), subjects=(1,)):
        print(asset.name, asset.gigabytes, asset.license)
    fetch(needed(Config.colab(), subjects=(1,)), accept_nsd_terms=True)

Everything goes below `paths.assets()`, which then also is a data folder that `nsd.Subject` reads.
`asset_table` lists the files. What is fetched is checked against the size that its host states, and
against the SHA-256 of large files: as the Hub states it, or as it stands in the file's own address.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable
from urllib.request import Request, urlopen

from mindeye2_lite import paths
from mindeye2_lite.asset_table import HUB_CACHE, RELEASED, SESSIONS, VOXELS, Asset, table
from mindeye2_lite.config import Config

__all__ = [
    "HUB_CACHE", "RELEASED", "SESSIONS", "VOXELS", "Asset", "Hub", "HuggingFace", "Stated", "Web",
    "fetch", "listing", "needed", "path_of", "state", "table",
]  # fmt: skip
TERMS = "https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"
ACCESS_FORM = "https://forms.gle/xue2bCdM9LaFNMeb7"
STAGES = ("data", "released", "training", "decoding", "captions", "refinement", "judging", "more")
USED = STAGES[:-2]  # not "judging" and "more", which no module here reads
BIGG, UNCLIP = "ViT-bigG-14", "sdxl-unclip"
CHECKED = ".checked.json"  # in `paths.assets()`: what has been hashed and was right
ROUGHLY = 0.2  # by which share of the stated size a whole file may differ from ours


def needed(
    config: Config,
    subjects: Sequence[int] = (1,),
    *,
    sessions: int | None = None,
    stages: Sequence[str] = USED,
) -> list[Asset]:
    """What this config asks for, for these subjects and stages; nothing where it is synthetic.

    `sessions` (1 or 40) picks among the released fine-tuned models; without it, both. OpenCLIP's
    bigG is left out where the unCLIP is chosen, too: that file holds the same image tower.
    ValueError for a subject or a stage that there is not.
    """
    if unknown := [s for s in subjects if s not in VOXELS]:
        raise ValueError(f"there is no subject {unknown[0]}: choose from 1 to 8")
    if unknown := [s for s in stages if s not in STAGES]:
        raise ValueError(f"there is no stage {unknown[0]!r}: choose from {', '.join(STAGES)}")
    parts = set(asdict(config).values())
    if "decoding" in stages and UNCLIP in parts:
        parts.discard(BIGG)
    return [
        asset
        for asset in table()
        if asset.part in parts
        and asset.stage in stages
        and asset.subject in (None, *subjects)
        and asset.hidden in (None, config.hidden)
        and (config.low_level or not asset.low_level)
        and (sessions is None or asset.sessions in (None, sessions))
    ]


class Stated(NamedTuple):
    """What its host says of a file: bytes, and the SHA-256 of large ones, or how that begins."""

    size: int
    sha256: str | None


@runtime_checkable
class Hub(Protocol):
    """The two things that are wanted of a host of files."""

    def stated(self, repository: str, kind: str, file: str) -> Stated: ...
    def download(self, repository: str, kind: str, file: str, folder: Path | None) -> Path: ...


class HuggingFace:
    """The Hub itself. A download that was cut off goes on where it stopped."""

    def stated(self, repository: str, kind: str, file: str) -> Stated:
        """Asked anew each time. OSError in one line where there is no answer."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        with _answering():
            said = get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind))
        return Stated(said.size, said.etag if len(said.etag or "") == 64 else None)

    def download(self, repository: str, kind: str, file: str, folder: Path | None) -> Path:
        """Into that folder, or where huggingface_hub keeps files of its own."""
        from huggingface_hub import hf_hub_download

        with _answering():
            return Path(hf_hub_download(repository, file, repo_type=kind, local_dir=folder))


@contextmanager
def _answering() -> Iterator[None]:
    """Whatever huggingface_hub raises, as OSError: without a network it is none of these."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(f"no answer ({str(error) or type(error).__name__})") from error


class Web:
    """Any other host: a folder and a file's name make its address. A cut download starts anew."""

    def stated(self, repository: str, kind: str, file: str) -> Stated:
        """Size by the host; hash by the address: all of it, or, as torchvision does, its start."""
        address = f"{repository}/{file}"
        with urlopen(Request(address, method="HEAD"), timeout=30) as reply:
            size = reply.headers.get("Content-Length")
        if size is None:
            raise OSError(f"{address} does not say how large it is")
        found = re.search(r"/([0-9a-f]{64})/", address) or re.search(r"-([0-9a-f]{8})\.", file)
        return Stated(int(size), found and found[1])

    def download(self, repository: str, kind: str, file: str, folder: Path | None) -> Path:
        """Into that folder, beside and then renamed."""
        from torch.hub import download_url_to_file

        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(f"{repository}/{file}", str(path), progress=False)
        return path


def path_of(asset: Asset, file: str) -> Path | None:
    """Where that file lies or would lie; None if the Hub's own cache does not have it."""
    if asset.folder is not HUB_CACHE:
        return paths.assets(asset.folder, file)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(asset.repository, file, repo_type=asset.kind)
    return Path(found) if isinstance(found, str) else None


def state(asset: Asset) -> str:
    """ "here", "missing", or "wrong": there, but far from the size that it should have."""
    places = [path_of(asset, file) for file in asset.files]
    if not all(place is not None and place.is_file() for place in places):
        return "missing"
    size = sum(place.stat().st_size for place in places) / 1e9
    # Small files are given to one digit only: for these, being there is enough.
    close = abs(size - asset.gigabytes) <= max(ROUGHLY * asset.gigabytes, 0.01)
    return "here" if close else "wrong"


def fetch(
    assets: Iterable[Asset],
    *,
    accept_nsd_terms: bool = False,
    hub: Hub | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Download what is not there yet, check every file, and return where they are.

    ValueError in one line where NSD's terms are not accepted, before anything is downloaded, and
    where a file is not the one that the Hub states; OSError where the disk is too small.
    """
    assets = list(assets)
    bound = [asset for asset in assets if asset.under_terms]
    if bound and not accept_nsd_terms:
        raise ValueError(
            f"{bound[0].name} and {len(bound) - 1} more come under the terms of the Natural Scenes "
            f"Dataset: read {TERMS} and fill in {ACCESS_FORM}, then add --accept-nsd-terms"
        )
    _room([asset for asset in assets if state(asset) != "here"])
    own = {"web": Web()}
    hubs = [hub or own.get(asset.kind) or HuggingFace() for asset in assets]
    pairs = zip(assets, hubs, strict=True)
    return [_fetch_one(asset, file, host, say) for asset, host in pairs for file in asset.files]


def _room(missing: list[Asset]) -> None:
    folder = paths.assets()
    folder.mkdir(parents=True, exist_ok=True)
    need, free = sum(a.gigabytes for a in missing), shutil.disk_usage(folder).free / 1e9
    if need > free:
        raise OSError(
            f"{need:.0f} GB to fetch, {free:.0f} GB free in {folder}: free space, set "
            "MINDEYE2_LITE_ASSETS to a folder on a larger disk, or ask for less with --stages"
        )


def _fetch_one(asset: Asset, file: str, hub: Hub, say: Callable[[str], None]) -> Path:
    where = (asset.repository, asset.kind, file)
    try:
        stated = hub.stated(*where)
        path = path_of(asset, file)
        if path is not None and path.is_file() and _matches(path, stated):
            say(f"here     {file}")
            return path
        say(f"fetching {file} ({stated.size / 1e9:.2f} GB)")
        folder = asset.folder
        path = hub.download(*where, None if folder is HUB_CACHE else paths.assets(folder))
    except OSError as error:
        why = " ".join(str(error).split())
        raise OSError(f"cannot fetch {file} of {asset.repository}: {why}") from error
    if not _matches(path, stated):
        raise ValueError(
            f"{path} is not what {asset.repository} states ({stated.size} bytes, SHA-256 "
            f"{stated.sha256}): delete it and fetch it again"
        )
    return path


def _matches(path: Path, stated: Stated) -> bool:
    """Right size, and right hash where one is stated. A file is hashed once, not at every call."""
    found = path.stat()
    if found.st_size != stated.size or stated.sha256 is None:
        return found.st_size == stated.size
    book = paths.assets(CHECKED)
    checked = json.loads(book.read_text(encoding="utf-8")) if book.is_file() else {}
    now = [found.st_size, found.st_mtime_ns, stated.sha256]
    if checked.get(str(path)) == now:
        return True
    with path.open("rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest().startswith(stated.sha256)
    if right:
        with paths.write_beside(book) as beside:
            beside.write_text(json.dumps(checked | {str(path): now}), encoding="utf-8")
    return right


def listing(assets: Sequence[Asset]) -> str:
    """A line per asset (size, state, what for, license, source) and the sum."""
    wide = max(len(asset.name) for asset in assets)
    lines = [
        f"{_size(a.gigabytes):>8}  {state(a):7}  {a.name:{wide}}  {a.use}; {a.license}; "
        f"{a.repository}"
        for a in assets
    ]
    total = sum(asset.gigabytes for asset in assets)
    return "\n".join([*lines, f"{_size(total):>8}  in all, sizes as listed by others"])


def _size(gigabytes: float) -> str:
    for unit, factor in (("GB", 1), ("MB", 1e3), ("kB", 1e6)):
        if gigabytes * factor >= 1:
            return f"{gigabytes * factor:.3g} {unit}"
    return f"{gigabytes * 1e9:.0f} B"
