"""Captions come from tokens through a converter and a stock GIT."""

from pathlib import Path

import pytest
import torch

from mindeye2_lite import captions, encoders


def test_the_full_size_converter_has_the_released_shapes():
    with torch.device("meta"):
        state = captions.Converter().state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "linear1.weight": (257, 256),
        "linear1.bias": (257,),
        "linear2.weight": (1024, 1664),
        "linear2.bias": (1024,),
    }


def test_every_caption_is_made_of_known_words_and_none_of_the_marks():
    tokens = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(0))
    sentences = captions.caption(captions.load("mini-git"), tokens)
    known = encoders.tokenizer().get_vocab()
    assert len(sentences) == 3
    assert all(word in known and word[0] != "[" for s in sentences for word in s.split())


def test_generating_one_by_one_gives_what_generating_together_gives():
    tokens = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(1))
    captioner = captions.load("mini-git")
    together = captions.caption(captioner, tokens)
    assert together == captions.caption(captioner, tokens, batch=1)


# -- GIT-large ------------------------------------------------------------------------------------


def test_the_full_size_git_reads_257_tokens_of_1024_at_every_step():
    with torch.device("meta"):
        git = captions.build_git("git-large-coco").eval()
        converted = captions.Converter()(torch.empty(2, 256, 1664))
    assert converted.shape == (2, 257, 1024)
    for words in (1, 20):
        ids = torch.empty(2, words, dtype=torch.long, device="meta")
        out = git(input_ids=ids, pixel_values=converted[:, None], use_cache=False)
        assert out.logits.shape == (2, 257 + words, 30522)


def test_the_full_size_git_has_the_released_count():
    from transformers import GitForCausalLM

    with torch.device("meta"):
        git = GitForCausalLM(captions.git_large_config())
    assert sum(p.numel() for p in git.parameters()) == 394_196_026
    assert type(git).__module__.startswith("transformers."), "stock, not modified"


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A folder of assets, and nothing in the Hub's cache."""
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path))
    monkeypatch.delenv("MINDEYE2_LITE_DOWNLOAD", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    captions.load.cache_clear()
    yield tmp_path
    captions.load.cache_clear()


def write_git_large(folder: Path):
    """GIT's classes, small, under the released names: model, tokenizer and converter."""
    from transformers import BertTokenizer, GitConfig, GitForCausalLM

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "sits", "on", "grass"]
    (folder / "git-large-coco").mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "git-large-coco")
    eye = {
        "hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    ids = {"vocab_size": 10, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = GitConfig(vision_config=eye, num_attention_heads=2, **sizes, **ids)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        git, converter = GitForCausalLM(config).eval(), captions.Converter((4, 5), (8, 12))
        torch.nn.init.normal_(git.output.weight)
        git.output.bias.data[:4] = -8.0  # so that it rather says words than marks
    git.save_pretrained(folder / "git-large-coco")
    torch.save({"model_state_dict": converter.state_dict()}, folder / "bigG_to_L_epoch8.pth")
    return git, converter


def test_the_released_captioner_says_what_git_says_of_the_same_tokens(assets):
    git, converter = write_git_large(assets)
    captioner = captions.load("git-large-coco")
    tokens = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
    found = captions.caption(captioner, tokens)
    # greedy decoding by hand, from the start mark, twenty ids in all, through the whole GIT
    git.git.image_encoder = captions.PassThrough()
    ids = torch.full((3, 1), 2)
    for _ in range(19):
        seen = {"pixel_values": converter(tokens)[:, None], "use_cache": False}
        logits = git(input_ids=ids, **seen).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    words = ["a", "dog", "cat", "sits", "on", "grass"]  # ids from 4, after the marks
    for sentence, said in zip(found, ids.tolist(), strict=True):
        end = said.index(3) if 3 in said else len(said)
        assert sentence == " ".join(words[i - 4] for i in said[:end] if i > 3)
    assert any(found), "at least one of them says something"
    assert captioner.max_length == captions.LONGEST == 20


def test_tokens_of_half_precision_are_captioned_as_those_of_full(assets):
    write_git_large(assets)
    captioner = captions.load("git-large-coco")
    half = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2)).half()
    assert captions.caption(captioner, half) == captions.caption(captioner, half.float())


@pytest.mark.parametrize("gone", ["bigG_to_L_epoch8.pth", "git-large-coco"])
def test_a_missing_part_of_the_captioner_costs_one_line(assets, gone):
    write_git_large(assets)
    (assets / gone).rename(assets / "elsewhere")
    with pytest.raises(FileNotFoundError, match=gone) as error:
        captions.load("git-large-coco")
    assert "\n" not in str(error.value) and str(assets) in str(error.value)
