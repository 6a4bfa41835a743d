"""From image tokens to a sentence: a linear converter, then GIT driven by tokens.

    image_tokens   (batch, 16, 128)    bigG tokens, as the prior predicts them; 256 x 1664
    converted      (batch, 17, 96)     tokens of the smaller CLIP that GIT looks at; 257 x 1024
    captions       one string each

GIT is the stock transformers class. Its image encoder is replaced by a module that passes its
input through, so that tokens can be given in place of pixels. Read with notebook 09.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite.encoders import CLIPS, CONTEXT, _known, frozen, load_weights, tokenizer

PAD, START = 0, 1
LONGEST = 20  # ids in a released caption, the start included
GIT_LARGE = "git-large-coco"


class Converter(nn.Module):
    """Two linear maps, over the token axis and then over the channels. Released: `bigG_to_L`."""

    def __init__(self, tokens: tuple[int, int] = (256, 257), dims: tuple[int, int] = (1664, 1024)):
        super().__init__()
        self.linear1 = nn.Linear(*tokens)
        self.linear2 = nn.Linear(*dims)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens_out dim_out"]:
        return self.linear2(self.linear1(tokens.transpose(1, 2)).transpose(1, 2))


class PassThrough(nn.Module):
    """Stands where GIT's image encoder stood: tokens (batch, 1, tokens, dim) go straight on."""

    def forward(self, tokens: Tensor, **_) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=tokens[:, 0])


def build_git(name: str = "mini-git") -> nn.Module:
    """An untrained `GitForCausalLM` of the size of "mini-git" or "git-large-coco", by tokens."""
    from transformers import GitForCausalLM

    config = git_large_config() if name == GIT_LARGE else _mini_config()
    return drive_by_tokens(GitForCausalLM(config))


def git_large_config():
    """The `GitConfig` of microsoft/git-large-coco: CLIP ViT-L/14 and six layers of 768."""
    from transformers import GitConfig

    eye = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    return GitConfig(vision_config=eye)  # words and text layers are the defaults


def _mini_config():
    from transformers import GitConfig

    words, eye = tokenizer().get_vocab_size(), CLIPS["mini-L"]["vision_cfg"]
    return GitConfig(
        vision_config={
            "hidden_size": eye["width"],
            "image_size": eye["image_size"],
            "patch_size": eye["patch_size"],
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "intermediate_size": eye["width"],
        },
        vocab_size=words,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=words - 1,
    )


def drive_by_tokens(git: nn.Module) -> nn.Module:
    """Replace the image encoder, so that `pixel_values` takes tokens (batch, 1, tokens, dim)."""
    git.git.image_encoder = PassThrough()
    return git


@dataclass(frozen=True)
class Captioner:
    """The converter and GIT."""

    converter: Converter
    git: nn.Module
    name: str = "mini-git"
    words: Callable[[list[list[int]]], list[str]] | None = None  # ids to text; ours where None
    max_length: int = CONTEXT  # ids, the start included

    @property
    def device(self) -> torch.device:
        return self.converter.linear1.weight.device


def build(name: str = "mini-git") -> nn.ModuleDict:
    """The untrained pair, under the names that the weights file has."""
    pair = {"converter": Converter((16, 17), (128, 96)), "git": build_git(name)}
    return nn.ModuleDict(pair)


@functools.cache
def load(name: str = "mini-git", device: str = "cpu") -> Captioner:
    """The captioner of that name: "mini-git", or "git-large-coco" behind the released converter."""
    _known("captioner", name, ["mini-git", GIT_LARGE])
    if name == GIT_LARGE:
        return load_released(device=device)
    pair = build(name)
    pair.load_state_dict(load_weights(name))
    frozen(pair, device)
    return Captioner(pair["converter"], pair["git"], name)


def load_released(
    converter: str | Path | None = None, git: str | Path = GIT_LARGE, device: str = "cpu"
) -> Captioner:
    """GIT-large behind a converter: the released file's, or one that `train_converter` wrote.

    `git` is a folder or repository of transformers. FileNotFoundError in one line where a file is
    not on this machine. Not run by us: we have neither of the two files.
    """
    from transformers import AutoTokenizer, GitForCausalLM

    from mindeye2_lite import released_networks

    file = Path(converter) if converter else released_networks.asset("bigG_to_L")
    converting = load_converter(file)
    large = released_networks.from_hub(GitForCausalLM.from_pretrained, str(git))
    words = released_networks.from_hub(AutoTokenizer.from_pretrained, str(git))
    decode = functools.partial(words.batch_decode, skip_special_tokens=True)
    frozen(converting, device)
    return Captioner(converting, frozen(drive_by_tokens(large), device), GIT_LARGE, decode, LONGEST)


def load_converter(path: str | Path) -> Converter:
    """A converter from the released `bigG_to_L_epoch8.pth` or a safetensors file, any sizes."""
    from mindeye2_lite.released_networks import fill, read_state

    state = read_state(Path(path), inside="model_state_dict")
    shapes = [tuple(state[f"linear{i}.weight"].shape[::-1]) for i in (1, 2) if _has(state, i, path)]
    return fill(Converter(*shapes), state, path)


def _has(state: dict[str, Tensor], layer: int, path: str | Path) -> bool:
    if (weight := state.get(f"linear{layer}.weight")) is not None and weight.ndim == 2:
        return True
    raise ValueError(f"{path} is not a converter: it has no matrix linear{layer}.weight")


@torch.no_grad()
def caption(
    captioner: Captioner,
    image_tokens: Float[Tensor, "n tokens dim"],
    *,
    max_length: int | None = None,
    batch: int = 128,
    progress: bool = False,
) -> list[str]:
    """One sentence per picture, greedily, from its image tokens.

    `max_length` counts ids with the start; None means the captioner's own, 20 for GIT-large. Tokens
    may be of half precision: they are computed with in the converter's.
    """
    sentences, words = [], captioner.words or tokenizer().decode_batch
    first, like = captioner.git.config.bos_token_id, captioner.converter.linear1.weight
    for tokens in tqdm(image_tokens.split(batch), "captions", disable=not progress, mininterval=1):
        converted = captioner.converter(tokens.to(like))
        start = torch.full((len(tokens), 1), first, device=captioner.device)
        ids = captioner.git.generate(
            pixel_values=converted[:, None],
            input_ids=start,
            max_length=max_length or captioner.max_length,
            do_sample=False,
            use_cache=False,
        )
        sentences += words(ids.tolist())
    return sentences
