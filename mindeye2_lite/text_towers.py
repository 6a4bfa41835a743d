"""Sentences to embeddings whose cosine says how alike two captions are.

| name | dim | what it is |
|---|---|---|
| mini-bigG, mini-L | 128, 96 | miniature CLIPs' text towers, for the cohort's words only |
| all-MiniLM-L6-v2 | 384 | the paper's sentence similarity, by sentence-transformers |
| clip-vit-base-patch32, clip-vit-large-patch14 | 512, 768 | the paper's CLIP-B and CLIP-L |

    embed = tower("mini-L")
    embed(["a cat", "a boat"])              (2, 96), each of length 1
    captions_metrics.compare(captions, references, towers("mini-words"))

The last three are loaded from the assets' folder or the Hub's cache, see
`released_networks.from_hub`. We have none of their weights: small random instances are tested.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mindeye2_lite import encoders, released_networks

Tower = Callable[[list[str]], Tensor]

SENTENCES = "all-MiniLM-L6-v2"
REPOSITORIES = {  # also the names of their folders among the assets
    SENTENCES: "sentence-transformers/all-MiniLM-L6-v2",
    "clip-vit-base-patch32": "openai/clip-vit-base-patch32",
    "clip-vit-large-patch14": "openai/clip-vit-large-patch14",
}
TOWERS = {  # score -> tower
    "mini-words": {"mini-bigG": "mini-bigG", "mini-L": "mini-L"},
    "paper-words": {
        "Sentence": SENTENCES,
        "CLIP-B": "clip-vit-base-patch32",
        "CLIP-L": "clip-vit-large-patch14",
    },
}
BATCH = 128


def towers(name: str = "mini-words", device: str = "cpu") -> dict[str, Tower]:
    """The text similarities of that name: "mini-words", or the paper's three, "paper-words"."""
    if name not in TOWERS:
        raise ValueError(f"text towers {name!r} are unknown: choose one of {', '.join(TOWERS)}")
    return {score: tower(one, device) for score, one in TOWERS[name].items()}


@functools.cache
def tower(name: str, device: str = "cpu") -> Tower:
    """Sentences to (sentences, dim) of length 1, by the frozen network of that name.

    ValueError for another name. FileNotFoundError in one line where its files are not on this
    machine, ModuleNotFoundError where sentence-transformers is wanted and not installed.
    """
    if name in encoders.CLIPS:
        embed = _miniature(name, device)
    elif name == SENTENCES:
        embed = _sentences(REPOSITORIES[name], device)
    elif name in REPOSITORIES:
        embed = _clip(REPOSITORIES[name], device)
    else:
        names = ", ".join([*encoders.CLIPS, *REPOSITORIES])
        raise ValueError(f"text tower {name!r} is unknown: choose one of {names}")
    return functools.partial(_in_batches, embed)


def similarity(
    captions: list[str], references: list[str], name: str = "mini-L", device: str = "cpu"
) -> Float[Tensor, " captions"]:
    """The cosine of each caption with its reference. ValueError if they do not pair up."""
    if len(captions) != len(references):
        raise ValueError(
            f"{len(captions)} captions and {len(references)} references: give as many of each"
        )
    embed = tower(name, device)
    return (embed(captions) * embed(references)).sum(1)


@torch.no_grad()
def _in_batches(embed: Tower, sentences: list[str]) -> Tensor:
    parts = [sentences[i : i + BATCH] for i in range(0, len(sentences), BATCH)]
    if not parts:
        raise ValueError("no sentences to embed: give at least one")
    return F.normalize(torch.cat([embed(part).float().cpu() for part in parts]), dim=1)


def _miniature(name: str, device: str) -> Tower:
    """The pooled, projected vector, as CLIP compares it with pictures."""
    text = encoders.text_encoder(name, device)
    return lambda sentences: text(sentences)[1]


def _sentences(repository: str, device: str) -> Tower:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{repository} needs the package sentence-transformers: "
            "pip install 'mindeye2-lite[paper]'"
        ) from error
    model = released_networks.from_hub(SentenceTransformer, repository, device=device)
    return lambda sentences: model.encode(
        sentences, convert_to_tensor=True, show_progress_bar=False
    )


def _clip(repository: str, device: str) -> Tower:
    from transformers import AutoTokenizer, CLIPModel

    clip = released_networks.from_hub(CLIPModel.from_pretrained, repository)
    words = released_networks.from_hub(AutoTokenizer.from_pretrained, repository)
    clip = encoders.frozen(clip, device)

    def embed(sentences: list[str]) -> Tensor:
        ids = words(sentences, padding=True, truncation=True, return_tensors="pt").to(device)
        kept = {key: ids[key] for key in ("input_ids", "attention_mask")}
        out = clip.get_text_features(**kept)
        return out if isinstance(out, Tensor) else out.pooler_output  # since transformers 5

    return embed
