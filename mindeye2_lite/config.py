"""One dial for size. `lite` runs anywhere; `colab` and `paper` run the real thing on NSD.

A profile sets sizes, file names and names of weights, never a code path: there is no
`if profile ==` outside this file.

| | `lite` | `colab` | `paper` |
|---|---|---|---|
| image tokens | 16 x 128 (mini-bigG) | 256 x 1664 (OpenCLIP bigG) | 256 x 1664 (OpenCLIP bigG) |
| shared latent | 1024 | 1024, no low-level head | 4096 |
| hardware | two CPU cores | one 16 GB GPU | one to eight GPUs |

Price (quoted, not measured by us): the paper trained on one node of 8 x A100 80 GB; the released
README names about one day on one GPU for pretraining and one for a 40-session fine-tuning.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Every size of the pipeline. Change one with `dataclasses.replace(config, hidden=512)`."""

    profile: str = "paper"
    # data
    data: str = "nsd"  # or "synthetic": a cohort made from a seed where it is missing
    trials_per_session: int = 750
    image_size: int = 224  # pixels
    # targets
    encoder: str = "ViT-bigG-14"  # what makes the image tokens
    tokens: int = 256
    dim: int = 1664
    vae: str = "sd-image-variations-vae"
    latent_size: int = 28  # the low-level head's target is (4, latent_size, latent_size)
    teacher: str = "convnext-xl-vicregl"  # what the low-level head's auxiliary loss looks at
    aux_dim: int = 512
    # model
    hidden: int = 4096  # width of the shared latent (paper 2.1)
    backbone: str = "released"  # or "residual", the paper's words (book/differences.md)
    low_level: bool = True
    low_level_widths: tuple[int, int, int] = (32, 64, 128)  # channels of the head's upsampler
    prior_depth: int = 6
    prior_dim_head: int = 52
    # training (paper 2.5, released code)
    epochs: int = 150
    max_steps: int | None = None  # fewer epochs where `epochs` would take more steps than this
    batch: int = 24  # fine-tuning
    pretrain_batch: int = 42  # all subjects together
    max_lr: float = 3e-4
    # decoding, captions, refinement, judging
    decoder: str = "sdxl-unclip"
    captioner: str = "git-large-coco"
    refiner: str = "sdxl"
    guidance_scale: float = 5.0
    judges: str = "paper-judges"
    score_size: int | None = 256  # pixels that all pictures pass through before they are judged

    @classmethod
    def lite(cls) -> "Config":
        """A synthetic cohort and shipped miniatures: two CPU cores, no download, no agreement."""
        return cls(
            profile="lite",
            data="synthetic",
            trials_per_session=75,
            image_size=64,
            encoder="mini-bigG",
            tokens=16,
            dim=128,
            vae="mini-vae",
            latent_size=16,
            teacher="mini-vicreg",
            aux_dim=64,
            hidden=1024,  # as wide as the smaller released models
            low_level_widths=(32, 32, 32),
            prior_depth=3,
            prior_dim_head=64,
            max_steps=1000,
            max_lr=3e-3,  # ten times the paper's, for a hundred times fewer steps
            decoder="mini-unclip",
            guidance_scale=2.0,  # a choice: 5, the released scale, kept color a little less
            captioner="mini-git",
            refiner="mini-sdxl",
            judges="mini-judges",
            score_size=None,  # pictures of 64 pixels are judged as they are
        )

    @classmethod
    def colab(cls) -> "Config":
        """Real NSD on one 16 GB GPU: the released 1024-wide model without a low-level head.

        150 epochs, as everywhere. Official: that model was pretrained for 300.
        """
        return cls(profile="colab", hidden=1024, low_level=False)

    @classmethod
    def paper(cls) -> "Config":
        """Real NSD at the paper's size. Not run by us: we have neither NSD nor the weights."""
        return cls()

    @classmethod
    def of(cls, profile: str) -> "Config":
        """The profile of that name; a ValueError in one line names the three there are."""
        if profile not in PROFILES:
            raise ValueError(f"profile {profile!r} is unknown: choose one of {', '.join(PROFILES)}")
        return getattr(cls, profile)()


PROFILES = ("lite", "colab", "paper")

# Who scales a trial. Training and test are the same but for "sessions". The files keep what each
# session's own training trials say; the rest is worked out when they are read.
NORMALIZE = {
    "sessions": "each session by its own training trials; test trials of sessions that are not in "
    "use by the training trials of those that are",
    "pooled": "every trial by the training trials of the sessions in use, together",
    "all": "each session by its own training trials, whether it is in use or not (released files)",
    "global": "every trial by the training trials of all sessions, together (the paper's A.2, read "
    "literally)",
    "notebook": "each session by all of its trials, test trials included (dataset_creation.ipynb)",
}
