"""How to train the converter between two CLIPs: from bigG's tokens to those that GIT looks at.

    image_tokens   (batch, 256, 1664)   of bigG, in the washed-out range that the prior predicts
    wanted         (batch, 257, 1024)   of GIT's own image encoder, on the picture as it is

MSE between the two, over pictures without any brain. The released converter came without its
recipe; whether it was fitted to GIT's encoder or to OpenAI's CLIP-L is not known. The recipe, its
settings and the target are ours. GIT's encoder is what the converter replaces, so it is the target.

    train_released(nsd.Images("coco_images_224_float16.hdf5"), "my_converter.safetensors")
    captions.load_released("my_converter.safetensors")
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import encoders, paths
from mindeye2_lite.captions import GIT_LARGE, Converter

Encode = Callable[[Tensor], Tensor]  # pictures (batch, 3, side, side) in [0, 1] -> tokens
Pair = tuple[Tensor, Tensor]  # image tokens, wanted tokens


def pairs(
    images, image_ids: Int[Tensor, " n"], look: Encode, wanted: Encode, *, epochs: int = 8,
    batch: int = 64, seed: int = 0, device: str = "cpu",
) -> Iterator[Pair]:  # fmt: skip
    """Both encoders' tokens of the same pictures, in a new order at every epoch.

    `images` gives pictures in [0, 1] for a tensor of ids. A last batch that is not full is left
    out, unless it is the only one.
    """
    generator = torch.Generator().manual_seed(seed)
    each = min(batch, len(image_ids))
    for _ in range(epochs):
        order = image_ids[torch.randperm(len(image_ids), generator=generator)]
        for ids in order[: len(order) // each * each].split(each):
            pictures = images[ids].to(device)
            yield look(pictures), wanted(pictures)


def train_converter(
    examples: Iterator[Pair],
    steps: int,
    *,
    converter: Converter | None = None,
    max_lr: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Converter, list[float]]:
    """Fit a converter by AdamW on the mean squared error; also the error at every step.

    The learning rate rises over the first twentieth of the steps and falls to zero along a cosine.
    Sizes are those of the first example. ValueError if there are fewer examples than `steps`.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: train for at least one")
    curve: list[float] = []
    bar = tqdm(range(steps), "converter", disable=not progress, mininterval=1)
    for step, (tokens, wanted) in zip(bar, examples, strict=False):
        if step == 0:
            converter = converter or _fresh(tokens, wanted, seed)
            converter.to(tokens.device).train().requires_grad_(True)
            optimizer = torch.optim.AdamW(converter.parameters(), lr=max_lr, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr, total_steps=max(steps, 2), pct_start=0.05
            )
        loss = F.mse_loss(converter(tokens.float()), wanted.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
    if len(curve) < steps:
        raise ValueError(f"{len(curve)} batches for {steps} steps: give more pictures or epochs")
    return converter.eval().requires_grad_(False), curve


def _fresh(tokens: Tensor, wanted: Tensor, seed: int) -> Converter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Converter(*zip(tokens.shape[1:], wanted.shape[1:], strict=True))


def train_released(
    images,
    out: str | Path,
    image_ids: Int[Tensor, " n"] | None = None,
    *,
    epochs: int = 8,
    batch: int = 64,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> list[float]:
    """From pictures to a converter file for `captions.load_released`, with the real encoders.

    All pictures of `images` unless `image_ids` names some: leave out those that you test on. Both
    encoders run at every step, as their tokens of many pictures would fill a disk (1.4 MB each).
    Not run by us at full size. Returns the error at every step.
    """
    image_ids = torch.arange(len(images)) if image_ids is None else image_ids
    look, wanted = encoders.image_encoder("ViT-bigG-14", device), git_eye(device=device)
    options = {"epochs": epochs, "batch": batch, "seed": seed}
    examples = pairs(images, image_ids, look, wanted, device=device, **options)
    steps = epochs * max(1, len(image_ids) // batch)
    converter, curve = train_converter(examples, steps, seed=seed, progress=progress)
    save(converter, out)
    return curve


def save(converter: Converter, out: str | Path) -> None:
    """The weights under the released names, as safetensors."""
    from safetensors.torch import save_file

    with paths.write_beside(Path(out)) as beside:
        save_file({k: v.cpu().contiguous() for k, v in converter.state_dict().items()}, beside)


class GitEye(nn.Module):
    """GIT's image encoder: images in [0, 1] to the tokens that its text decoder reads.

    All tokens, the class token first, after the encoder's last LayerNorm; pixels in CLIP's range.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.size = encoder.config.image_size
        for part, values in (("mean", encoders.CLIP_MEAN), ("std", encoders.CLIP_STD)):
            self.register_buffer(part, torch.tensor(values)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        if images.shape[-1] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.encoder((images - self.mean) / self.std).last_hidden_state


def git_eye(git: str | Path = GIT_LARGE, device: str = "cpu") -> GitEye:
    """The frozen image encoder of GIT-large, from a folder or repository of transformers."""
    from transformers import GitForCausalLM

    from mindeye2_lite import released_networks

    large = released_networks.from_hub(GitForCausalLM.from_pretrained, str(git))
    return encoders.frozen(GitEye(large.git.image_encoder), device)
