"""The table of real files: names, sizes, licenses, what each is for. `assets` looks in it.

Sizes and names were put together from what others list, or computed (trials x voxels x bytes);
none of it has been fetched by us. Where a file's own address holds its SHA-256, or the beginning of
it, that is what it is checked against. Sources: the released repository's listing; torchvision's
own metadata (sizes of its judges); open_clip's (OpenAI's CLIP); facebookresearch/swav, hubconf.py.
"""

from dataclasses import dataclass
from pathlib import Path

from mindeye2_lite.layout import betas_name
from mindeye2_lite.nsd import PUBLISHED

RELEASED = "pscotti/mindeyev2"  # the authors' dataset on the Hugging Face Hub
HALF = "model.fp16.safetensors"  # as diffusers names files of half precision
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
VOXELS, SESSIONS = (dict(enumerate(PUBLISHED[i][1], 1)) for i in (0, 1))
HUB_CACHE = None  # a folder of that name: where huggingface_hub itself keeps files


@dataclass(frozen=True)
class Asset:
    """One or a few files of one repository, or one web folder, that are of use together.

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
        """What the Hub calls such a repository; "web" for a folder of any other host."""
        if "://" in self.repository:
            return "web"
        return "dataset" if self.repository == RELEASED else "model"


def table() -> list[Asset]:
    """Every file that any profile, subject and stage may ask for."""
    subjects = range(1, 9)
    people = [asset for s in subjects for asset in (*_data(s), *_checkpoints(s))]
    return [*_shared_data(), *people, *_networks(), *_refiner(), *_judges()]


def _shared_data() -> list[Asset]:
    pixels = 73_000 * 3 * 224 * 224 * 2  # float16
    return [
        Asset(("coco_images_224_float16.hdf5",), pixels / 1e9, "data", "pictures", "nsd"),
        Asset(("shared1000.npy",), 7.3e-5, "data", "which pictures all saw", "nsd"),
        Asset(("brain_region_masks.hdf5",), 0.0008, "data", "regions of each voxel", "nsd"),
        # What the released evaluation reads, and nothing here does.
        Asset(("evals/all_images.pt",), 0.602, "more", "test pictures", "nsd"),
        Asset(("evals/all_captions.pt",), 0.0008, "more", "COCO captions", "nsd"),
        Asset(("evals/all_git_generated_captions.pt",), 5e-5, "more", "GIT's captions", "nsd"),
        Asset(("gnet_multisubject.pt",), 1.3, "more", "brain correlation", "nsd"),
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
    ]  # fmt: skip


def _refiner() -> list[Asset]:
    """The checkpoint that the released code refines with, and stock text towers for its captions.

    The rest of SDXL base is not listed: it is for those who have no checkpoint (see `sdxl`).
    """
    rail = "Open RAIL++-M"
    towers = ("text_encoder", "text_encoder_2")
    return [
        Asset(
            ("zavychromaxl_v30.safetensors",), 6.9, "refinement", "the refining SDXL", "sdxl",
            license=f"{rail}; see civitai.com/models/119229",
        ),
        # No tokenizers: the words come from open_clip's own vocabulary file. In float16:
        # 123,060,480 and 694,659,840 numbers.
        Asset(
            tuple(f"{t}/{file}" for t in towers for file in ("config.json", HALF)), 1.64,
            "refinement", "words for the refining SDXL", "sdxl",
            license=rail, repository=SDXL, folder="sdxl-base",
        ),
    ]  # fmt: skip


def _judges() -> list[Asset]:
    """The networks behind six of the ten scores (paper, Table 1), each from where it is published.

    In the order of `encoders.judges`: AlexNet, InceptionV3, OpenAI's CLIP, EfficientNet-B1, SwAV's
    ResNet-50. `paper_judges` reads them.
    """
    pytorch = "https://download.pytorch.org/models"
    clip = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    mib = 2**20 / 1e9  # torchvision states sizes in units of 2^20 bytes
    none = "none stated (torchvision, trained on ImageNet)"
    return [
        _judge("alexnet-owt-7be5be79.pth", 233.087 * mib, "Alex(2), Alex(5)", none, pytorch),
        _judge("inception_v3_google-0cc3c7bd.pth", 103.903 * mib, "Incep", none, pytorch),
        _judge(  # 427.6 million numbers in float16
            "ViT-L-14.pt", 0.86, "CLIP", "MIT",
            f"https://openaipublic.azureedge.net/clip/models/{clip}",
        ),
        _judge("efficientnet_b1-c27df63c.pth", 30.136 * mib, "Eff", none, pytorch),
        _judge(  # no hash known; size: 28.4 million numbers, its projection and prototypes, too
            "swav_800ep_pretrain.pth.tar", 0.114, "SwAV", "CC BY-NC 4.0",
            "https://dl.fbaipublicfiles.com/deepcluster",
        ),
    ]  # fmt: skip


def _judge(file: str, gigabytes: float, score: str, license: str, source: str) -> Asset:
    more = {"license": license, "repository": source, "folder": "judges"}
    return Asset((file,), gigabytes, "judging", f"judge: {score}", "paper-judges", **more)
