"""The real files: what there is, where it comes from, who needs it, and a way to get it.

    for asset in needed(Config.colab(), subjects=(1,)):
        print(asset.name, asset.gigabytes, asset.license)
    fetch(needed(Config.colab(), subjects=(1,)), accept_nsd_terms=True)

Everything goes below `paths.assets()`, which then also is a data folder that `nsd.Subject` reads.
Sizes and names were put together from what others list; what is fetched is checked against the size
and, for large files, the SHA-256 that the Hub itself states. None of it has been fetched by us. The
judges' networks are not here: torchvision and open_clip get those by themselves.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from mindeye2_lite import paths
from mindeye2_lite.config import Config
from mindeye2_lite.nsd import PUBLISHED, betas_name

RELEASED = "pscotti/mindeyev2"  # the authors' dataset on the Hugging Face Hub
TERMS = "https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"
ACCESS_FORM = "https://forms.gle/xue2bCdM9LaFNMeb7"
VOXELS, SESSIONS = (dict(enumerate(PUBLISHED[i][1], 1)) for i in (0, 1))
STAGES = ("data", "released", "training", "decoding", "captions", "refinement", "judging")
HUB_CACHE = None  # a folder of that name: where huggingface_hub itself keeps files
CHECKED = ".checked.json"  # in `paths.assets()`: what has been hashed and was right
ROUGHLY = 0.2  # by which share of the stated size a whole file may differ from ours


@dataclass(frozen=True)
class Asset:
    """One or a few files of one repository that are of use together.

    `part` is the value of the config that asks for it, `hidden` the model width it is for (None:
    any), `subject` whose it is (None: everyone's). `folder` lies below `paths.assets()`.
    """

    files: tuple[str, ...]
    gigabytes: float
    stage: str
    use: str
    part: str
    license: str = "NSD terms"
    repository: str = RELEASED
    folder: str | None = ""
    subject: int | None = None
    hidden: int | None = None
    low_level: bool = False  # only with a low-level head
    sessions: int | None = None  # only for a model of that many sessions

    @property
    def name(self) -> str:
        """Its file, or the folder of its files."""
        if len(self.files) == 1:
            return self.files[0]
        return self.folder or str(Path(self.files[0]).parent)

    @property
    def under_terms(self) -> bool:
        """Do the NSD terms have to be accepted for it? The authors ask it for all their files."""
        return self.repository == RELEASED

    @property
    def kind(self) -> str:
        """What the Hub calls such a repository."""
        return "dataset" if self.repository == RELEASED else "model"


def table() -> list[Asset]:
    """Every file that any profile, subject and stage may ask for."""
    subjects = range(1, 9)
    people = [asset for s in subjects for asset in (*_data(s), *_checkpoints(s))]
    return [*_shared_data(), *people, *_networks()]


def _shared_data() -> list[Asset]:
    pixels = 73_000 * 3 * 224 * 224 * 2  # float16
    return [
        Asset(("coco_images_224_float16.hdf5",), pixels / 1e9, "data", "pictures", "nsd"),
        Asset(("shared1000.npy",), 7.3e-5, "data", "which pictures all saw", "nsd"),
        Asset(("brain_region_masks.hdf5",), 0.0008, "data", "regions of each voxel", "nsd"),
        Asset(("evals/all_images.pt",), 0.602, "judging", "test pictures", "nsd"),
        Asset(("evals/all_captions.pt",), 0.0008, "judging", "COCO captions", "nsd"),
        Asset(
            ("evals/all_git_generated_captions.pt",), 5e-5, "judging", "GIT's captions", "nsd"
        ),
        Asset(("gnet_multisubject.pt",), 1.3, "judging", "brain correlation", "nsd"),
    ]  # fmt: skip


def _data(subject: int) -> list[Asset]:
    sessions, folder = SESSIONS[subject], f"wds/subj{subject:02d}"
    betas = 750 * sessions * VOXELS[subject] * 4 / 1e9  # float32
    tars = tuple(f"{folder}/train/{i}.tar" for i in range(sessions))
    train, test = "trials of training", "trials of the test set"
    mine = {"part": "nsd", "subject": subject}
    return [
        Asset((f"{betas_name(subject)}.hdf5",), betas, "data", "betas", **mine),
        Asset(tars, 0.0084 * sessions, "data", train, **mine),
        Asset((f"{folder}/new_test/0.tar",), 0.0366, "data", test, **mine),
    ]


def _checkpoints(subject: int) -> list[Asset]:
    """The released models; a fine-tuned one exists for subjects 1, 2, 5 and 7."""
    mine = {"part": "nsd", "subject": subject, "stage": "released"}
    found = [(f"final_multisubject_subj{subject:02d}", 10.3, "pretrained on the others", {})]
    for sessions in (1, 40):
        name = f"final_subj{subject:02d}_pretrained_{sessions}sess_24bs"
        found.append((name, 8.9, f"fine-tuned, sessions: {sessions}", {"sessions": sessions}))
    large = {"hidden": 4096, "low_level": True} | mine
    made = [_checkpoint(*f, **large) for f in found] if subject in (1, 2, 5, 7) else []
    if subject == 1:
        small, use = "multisubject_subj01_1024hid_nolow_300ep", "pretrained on the others, light"
        made.append(_checkpoint(small, 2.9, use, {}, hidden=1024, **mine))
    return made


def _checkpoint(name: str, gigabytes: float, use: str, more: dict, **rest) -> Asset:
    return Asset((f"train_logs/{name}/last.pth",), gigabytes, use=use, **more, **rest)


def _networks() -> list[Asset]:
    rail = "Open RAIL++-M"
    git = ("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json")
    words = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    head = {"stage": "training", "low_level": True}
    vae, teacher = "sd-image-variations-vae", "convnext-xl-vicregl"
    return [
        Asset(
            ("open_clip_model.safetensors",), 10.2, "training", "image tokens", "ViT-bigG-14",
            license="MIT", repository="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", folder=HUB_CACHE,
        ),
        Asset(
            ("sd_image_var_autoenc.pth",), 0.334, use="latents of the blurry picture", part=vae,
            license="CreativeML Open RAIL-M", **head,
        ),
        Asset(
            ("convnext_xlarge_alpha0.75_fullckpt.pth",), 6.6, use="the low-level teacher",
            part=teacher, license="CC BY-NC 4.0", **head,
        ),
        Asset(
            ("unclip6_epoch0_step110000.ckpt",), 18.0, "decoding", "tokens to picture",
            "sdxl-unclip", license=rail,
        ),
        Asset(
            ("bigG_to_L_epoch8.pth",), 0.0071, "captions", "bigG's tokens to CLIP L's",
            "git-large-coco", license="MIT",
        ),
        Asset(
            (*git, *words), 1.58, "captions", "tokens to caption", "git-large-coco",
            license="MIT", repository="microsoft/git-large-coco", folder="git-large-coco",
        ),
        Asset(
            ("zavychromaxl_v30.safetensors",), 6.9, "refinement", "the refining SDXL", "sdxl",
            license=f"{rail}; see civitai.com/models/119229",
        ),
    ]  # fmt: skip


def needed(
    config: Config,
    subjects: Sequence[int] = (1,),
    *,
    sessions: int | None = None,
    stages: Sequence[str] = STAGES,
) -> list[Asset]:
    """What this config asks for, for these subjects and stages; nothing where it is synthetic.

    `sessions` (1 or 40) picks among the released fine-tuned models; without it, both. ValueError
    for a subject or a stage that there is not.
    """
    if unknown := [s for s in subjects if s not in VOXELS]:
        raise ValueError(f"there is no subject {unknown[0]}: choose from 1 to 8")
    if unknown := [s for s in stages if s not in STAGES]:
        raise ValueError(f"there is no stage {unknown[0]!r}: choose from {', '.join(STAGES)}")
    parts = set(asdict(config).values())
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
    """What the Hub says of a file: bytes, and the SHA-256 of large ones."""

    size: int
    sha256: str | None


@runtime_checkable
class Hub(Protocol):
    """The two things that are wanted of the Hugging Face Hub."""

    def stated(self, repository: str, kind: str, file: str) -> Stated: ...
    def download(self, repository: str, kind: str, file: str, folder: Path | None) -> Path: ...


class HuggingFace:
    """The Hub itself. A download that was cut off goes on where it stopped."""

    def stated(self, repository: str, kind: str, file: str) -> Stated:
        """Asked anew each time. OSError in one line where there is no answer."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        said = get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind))
        return Stated(said.size, said.etag if len(said.etag or "") == 64 else None)

    def download(self, repository: str, kind: str, file: str, folder: Path | None) -> Path:
        """Into that folder, or where huggingface_hub keeps files of its own."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, file, repo_type=kind, local_dir=folder))


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
    assets, hub = list(assets), hub or HuggingFace()
    bound = [asset for asset in assets if asset.under_terms]
    if bound and not accept_nsd_terms:
        raise ValueError(
            f"{bound[0].name} and {len(bound) - 1} more come under the terms of the Natural Scenes "
            f"Dataset: read {TERMS} and fill in {ACCESS_FORM}, then add --accept-nsd-terms"
        )
    _room([asset for asset in assets if state(asset) != "here"])
    return [_fetch_one(asset, file, hub, say) for asset in assets for file in asset.files]


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
        right = hashlib.file_digest(file, "sha256").hexdigest() == stated.sha256
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
