"""Sentences become vectors whose cosine says how alike they are; what is absent is told."""

import sys
from types import ModuleType

import pytest
import torch

from mindeye2_lite import captions_metrics, encoders, scenes, text_towers

PAPER = list(text_towers.REPOSITORIES)


@pytest.fixture
def assets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    text_towers.tower.cache_clear()
    yield tmp_path
    text_towers.tower.cache_clear()


@pytest.mark.parametrize("name", ["mini-bigG", "mini-L"])
def test_a_miniature_tower_gives_the_pooled_vector_of_clip_with_length_one(name):
    sentences = ["a red cat on the sand", "a big boat"]
    found = text_towers.tower(name)(sentences)
    clip = encoders.load_clip(name)
    with torch.no_grad():
        expected = clip.encode_text(encoders.word_ids(sentences), normalize=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_batch_more_or_less_changes_nothing(monkeypatch):
    sentences = [scenes.captions(s)[1] for s in scenes.sample(9, seed=1)]
    whole = text_towers.tower("mini-L")(sentences)
    monkeypatch.setattr(text_towers, "BATCH", 2)
    torch.testing.assert_close(text_towers.tower("mini-L")(sentences), whole, atol=1e-6, rtol=0)


def test_captions_of_the_same_scene_are_more_alike_than_those_of_others():
    captions = [scenes.captions(s)[:2] for s in scenes.sample(30, seed=4)]
    first, second = (list(column) for column in zip(*captions, strict=True))
    found = captions_metrics.compare(first, second, text_towers.towers("mini-words"))
    for name in ("mini-bigG", "mini-L"):
        assert found[name].low > found[name].chance + 0.2, found[name]
        pairs = text_towers.similarity(first, second, name)
        assert found[name].value == pytest.approx(float(pairs.mean()), abs=1e-5)


def test_the_paper_s_clip_is_read_from_its_folder_and_its_projection_is_used(assets):
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = encoders.tokenizer()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    end = words.get_vocab_size() - 1
    text = small | {"vocab_size": end + 1, "num_attention_heads": 2, "eos_token_id": end}
    eye = small | {"image_size": 8, "patch_size": 4, "num_attention_heads": 2}
    config = CLIPConfig(text_config=text, vision_config=eye, projection_dim=12)
    torch.manual_seed(0)
    clip, folder = CLIPModel(config).eval(), assets / "openai" / "clip-vit-base-patch32"
    clip.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[pad]").save_pretrained(folder)

    sentences = ["a red cat", "a big boat on the water"]
    found = text_towers.tower("clip-vit-base-patch32")(sentences)
    ids = encoders.word_ids(sentences)
    with torch.no_grad():
        pooled = clip.text_model(ids, attention_mask=(ids > 0).long()).pooler_output
        expected = torch.nn.functional.normalize(clip.text_projection(pooled), dim=1)
    assert found.shape == (2, 12)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_sentences_go_through_sentence_transformers(assets, monkeypatch):
    library = ModuleType("sentence_transformers")

    class SentenceTransformer:
        def __init__(self, source, device=None, local_files_only=False):
            assert (source, device, local_files_only) == (
                text_towers.REPOSITORIES[PAPER[0]],
                "cpu",
                True,
            )

        def encode(self, sentences, convert_to_tensor, show_progress_bar):
            assert convert_to_tensor and not show_progress_bar
            return torch.tensor([[3.0, 4.0 * len(s)] for s in sentences])

    library.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    found = text_towers.tower(PAPER[0])(["a", "bb"])
    torch.testing.assert_close(found[0], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("name", PAPER[1:])
def test_a_tower_that_is_not_on_this_machine_is_told_in_one_line(assets, name):
    told = f"^openai/{name}: cannot be loaded[^\n]*{assets}[^\n]*MINDEYE2_LITE_DOWNLOAD=1$"
    with pytest.raises(FileNotFoundError, match=told):
        text_towers.tower(name)


def test_what_cannot_be_is_refused_in_one_line(assets, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"^[^\n]*pip install 'mindeye2-lite\[paper\]'$"):
        text_towers.towers("paper-words")
    with pytest.raises(
        ValueError, match="^text tower 'large' is unknown: choose one of mini-bigG[^\n]*$"
    ):
        text_towers.tower("large")
    with pytest.raises(ValueError, match="^text towers 'all' are unknown[^\n]*$"):
        text_towers.towers("all")
    with pytest.raises(ValueError, match="^2 captions and 1 references[^\n]*$"):
        text_towers.similarity(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="^no sentences to embed[^\n]*$"):
        text_towers.tower("mini-L")([])
