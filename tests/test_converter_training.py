"""A converter between two encoders' tokens can be trained, kept, and read by the captioner."""

import pytest
import torch
from safetensors.torch import load_file

from mindeye2_lite import captions, converter_training, encoders, released_networks
from mindeye2_lite.captions import Converter
from mindeye2_lite.converter_training import pairs, train_converter


def examples(steps: int, batch: int = 32, seed: int = 0):
    """Tokens (6, 8) and what a true converter makes of them, (7, 5)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        true = Converter((6, 7), (8, 5)).requires_grad_(False)
    for _ in range(steps):
        tokens = torch.randn(batch, 6, 8, generator=generator)
        yield tokens, true(tokens)


def test_it_finds_the_map_that_made_the_examples():
    converter, curve = train_converter(examples(600), 600, max_lr=3e-2, progress=False)
    (tokens, wanted), *_ = examples(1, seed=5)
    error = (converter(tokens) - wanted).pow(2).mean() / wanted.var()
    assert error < 0.01 < curve[0] / wanted.var()
    assert {k: tuple(v.shape) for k, v in converter.state_dict().items()} == {
        "linear1.weight": (7, 6),
        "linear1.bias": (7,),
        "linear2.weight": (5, 8),
        "linear2.bias": (5,),
    }


def test_the_same_seed_trains_the_same_converter():
    curves = [train_converter(examples(5), 5, seed=s, progress=False)[1] for s in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]


def test_an_epoch_shows_every_picture_once_in_another_order():
    images, ids = torch.arange(10.0)[:, None, None, None], torch.arange(10)
    seen = [x.flatten().tolist() for x, _ in pairs(images, ids, lambda x: x, lambda x: -x, epochs=2,
                                                   batch=5)]  # fmt: skip
    assert [len(batch) for batch in seen] == [5] * 4
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_too_few_pictures_for_the_steps_are_noticed():
    with pytest.raises(ValueError, match="3 batches for 5 steps"):
        train_converter(examples(3), 5, progress=False)


@pytest.fixture(scope="module")
def git():
    """A small random GIT with its image encoder in place."""
    from transformers import GitConfig, GitForCausalLM

    eye = {
        "hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GitForCausalLM(GitConfig(vision_config=eye, num_attention_heads=2, **sizes)).eval()


def test_gits_eye_gives_what_its_decoder_would_read(git):
    pictures = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    read = []
    hook = git.git.visual_projection.register_forward_hook(lambda _, args, __: read.append(args[0]))
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoders.CLIP_MEAN, encoders.CLIP_STD))
    git(input_ids=torch.tensor([[101], [101]]), pixel_values=(pictures - mean) / std)
    hook.remove()
    tokens = converter_training.GitEye(git.git.image_encoder)(pictures)
    assert tokens.shape == (2, 5, 12)
    torch.testing.assert_close(tokens, read[0])


def test_one_call_leads_from_pictures_to_a_file_that_the_captioner_reads(
    git, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path / "assets"))
    git.save_pretrained(tmp_path / "assets" / "git-large-coco")
    look = encoders.image_encoder("mini-bigG")
    monkeypatch.setattr(encoders, "image_encoder", lambda name, device: look)
    images = torch.rand(70, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    out, few = tmp_path / "own.safetensors", torch.arange(64)
    options = {"epochs": 3, "batch": 16, "progress": False}
    curve = converter_training.train_released(images, out, few, **options)
    assert len(curve) == 12 and curve[-1] < curve[0]
    kept = load_file(out)
    read = captions.load_converter(out).state_dict()
    assert all(torch.equal(read[k], v) for k, v in kept.items()) and len(kept) == 4
    assert kept["linear1.weight"].shape == (5, 16) and kept["linear2.weight"].shape == (12, 128)


def test_the_released_converter_is_read_from_under_its_key(tmp_path):
    made = Converter((6, 7), (8, 5))
    torch.save({"epoch": 8, "model_state_dict": made.state_dict()}, tmp_path / "bigG_to_L.pth")
    read = captions.load_converter(tmp_path / "bigG_to_L.pth")
    tokens = torch.rand(2, 6, 8)
    assert torch.equal(read(tokens), made(tokens))


def test_another_file_is_no_converter(tmp_path):
    torch.save({"model_state_dict": {"weight": torch.ones(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth is not a converter: it has no matrix linear1"):
        captions.load_converter(tmp_path / "other.pth")
    assert released_networks.FILES["bigG_to_L"] == "bigG_to_L_epoch8.pth"
