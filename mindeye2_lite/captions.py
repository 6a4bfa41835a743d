"""From image tokens to a sentence: a linear converter, then GIT driven by tokens.

    image_tokens   (batch, 16, 128)    bigG tokens, as the prior predicts them; 256 x 1664
    converted      (batch, 17, 96)     tokens of the smaller CLIP that GIT looks at; 257 x 1024
    captions       one string each

GIT is the stock transformers class. Its image encoder is replaced by a module that passes its
input through, so that tokens can be given in place of pixels. Read with notebook 09.
"""

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite.encoders import CLIPS, CONTEXT, _known, frozen, load_weights, tokenizer

PAD, START = 0, 1


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
    """An untrained `GitForCausalLM` of the miniature's size, driven by tokens."""
    from transformers import GitConfig, GitForCausalLM

    words, eye = tokenizer().get_vocab_size(), CLIPS["mini-L"]["vision_cfg"]
    config = GitConfig(
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
    return drive_by_tokens(GitForCausalLM(config))


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

    @property
    def device(self) -> torch.device:
        return self.converter.linear1.weight.device


def build(name: str = "mini-git") -> nn.ModuleDict:
    """The untrained pair, under the names that the weights file has."""
    pair = {"converter": Converter((16, 17), (128, 96)), "git": build_git(name)}
    return nn.ModuleDict(pair)


@functools.cache
def load(name: str = "mini-git", device: str = "cpu") -> Captioner:
    """The captioner of that name."""
    _known("captioner", name, ["mini-git"])
    pair = build(name)
    pair.load_state_dict(load_weights(name))
    frozen(pair, device)
    return Captioner(pair["converter"], pair["git"], name)


@torch.no_grad()
def caption(
    captioner: Captioner,
    image_tokens: Float[Tensor, "n tokens dim"],
    *,
    max_length: int = CONTEXT,
    batch: int = 128,
    progress: bool = False,
) -> list[str]:
    """One sentence per picture, greedily, from its image tokens. Official: 20 words at most."""
    sentences = []
    for tokens in tqdm(image_tokens.split(batch), "captions", disable=not progress, mininterval=1):
        converted = captioner.converter(tokens.to(captioner.device))
        start = torch.full((len(tokens), 1), START, device=captioner.device)
        ids = captioner.git.generate(
            pixel_values=converted[:, None],
            input_ids=start,
            max_length=max_length,
            do_sample=False,
            use_cache=False,
        )
        sentences += tokenizer().decode_batch(ids.tolist())
    return sentences
