"""What the frozen networks see, hand out and refuse; what is kept on disk, and when it is not."""

import hashlib

import pytest
import torch
from torch import Tensor

from mindeye2_lite import encoders, paths, scenes
from mindeye2_lite.config import Config

LITE = Config.lite()
SHIPPED = sorted(encoders.manifest())


@pytest.fixture(scope="module")
def clip():
    """An untrained CLIP of the miniature's size: what is computed does not hang on weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return encoders.frozen(encoders.build_clip("mini-bigG"))


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def inside(clip, module, run) -> Tensor:
    """The output of a module inside open_clip while `run()` runs."""
    caught = []
    hook = module.register_forward_hook(lambda _, __, out: caught.append(out))
    run()
    hook.remove()
    return caught[0]


def normalized(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoders.CLIP_MEAN, encoders.CLIP_STD))
    return (pixels - mean) / std


# -- image tokens ---------------------------------------------------------------------------------


def test_image_tokens_are_open_clips_patches_after_the_last_norm_in_the_washed_out_range(
    clip, pictures
):
    washed = normalized((pictures + 1) / 2)
    after_norm = inside(clip, clip.visual.ln_post, lambda: clip.encode_image(washed))
    tokens = encoders.ImageEncoder(clip.visual)(pictures)
    assert tokens.shape == (3, LITE.tokens, LITE.dim)
    torch.testing.assert_close(tokens, after_norm[:, 1:])


def test_black_is_seen_as_gray(clip):
    pixels = encoders.ImageEncoder(clip.visual).preprocess(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(pixels, normalized(torch.full((1, 3, 64, 64), 0.5)))


def test_the_class_token_comes_first_where_it_is_asked_for(clip, pictures):
    washed = normalized((pictures + 1) / 2)
    pooled = clip.encode_image(washed)
    pooled = pooled[0] if isinstance(pooled, tuple) else pooled
    tokens = encoders.ImageEncoder(clip.visual, class_token=True)(pictures)
    assert tokens.shape == (3, LITE.tokens + 1, LITE.dim)
    torch.testing.assert_close(tokens[:, 0] @ clip.visual.proj, pooled)
    torch.testing.assert_close(tokens[:, 1:], encoders.ImageEncoder(clip.visual)(pictures))


def test_pictures_of_another_size_are_made_to_fit(clip):
    assert encoders.ImageEncoder(clip.visual)(torch.rand(2, 3, 96, 96)).shape == (2, 16, 128)


# -- words ----------------------------------------------------------------------------------------

PROMPTS = ["a red car on a street", "", "a big striped cat in the snow at night"]


def test_text_tokens_are_of_the_last_layer_but_one_without_the_final_norm(clip):
    ids = encoders.word_ids(PROMPTS)
    before_last = clip.transformer.resblocks[-2]
    expected = inside(clip, before_last, lambda: clip.encode_text(ids))
    tokens, _ = encoders.TextEncoder(clip)(PROMPTS)
    assert tokens.shape == (3, encoders.CONTEXT, 128)
    torch.testing.assert_close(tokens, expected)
    assert not torch.allclose(tokens, clip.ln_final(tokens))


def test_the_pooled_text_has_passed_the_final_norm_and_the_projection(clip):
    _, pooled = encoders.TextEncoder(clip)(PROMPTS)
    torch.testing.assert_close(pooled, clip.encode_text(encoders.word_ids(PROMPTS)))


def test_captions_survive_the_tokenizer():
    told = [text for scene in scenes.sample(50, seed=3) for text in scenes.captions(scene)]
    ids = encoders.word_ids(told)
    assert ids.shape == (250, encoders.CONTEXT) and not (ids == 2).any(), "no unknown word"
    assert encoders.tokenizer().decode_batch(ids.tolist()) == told


def test_the_end_has_the_highest_id_and_stands_once_in_every_sentence():
    words = encoders.tokenizer()
    end = words.token_to_id("[end]")
    assert end == words.get_vocab_size() - 1 == max(words.get_vocab().values())
    ids = encoders.word_ids(PROMPTS)
    assert ((ids == end).sum(dim=1) == 1).all() and (ids[:, 0] == 1).all()
    after = ids.argmax(dim=1)  # where CLIP pools
    assert all((row[at + 1 :] == 0).all() for row, at in zip(ids, after, strict=True))


def test_a_word_that_no_caption_uses_is_unknown_and_not_an_error():
    assert encoders.word_ids(["a quantum car"])[0, 2] == 2


# -- VAE, teacher, judges -------------------------------------------------------------------------


def test_latents_have_the_promised_size_and_about_unit_variance():
    drawn = torch.from_numpy(scenes.render(scenes.sample(16, seed=4))).permute(0, 3, 1, 2) / 255
    vae = encoders.vae()
    latents = vae.encode(drawn)
    assert latents.shape == (16, 4, LITE.latent_size, LITE.latent_size)
    assert 0.7 < latents.std() < 1.4
    assert (vae.decode(latents) - drawn).abs().mean() < 0.05
    sampled = vae.encode(drawn, torch.Generator().manual_seed(0))
    assert not torch.equal(sampled, latents), "a generator asks for a sample, none for the mode"


def test_every_judge_and_the_teacher_look_at_pictures_of_any_size():
    pictures = torch.rand(2, 3, 96, 96)
    assert list(encoders.judges()) == ["Alex(2)", "Alex(5)", "Incep", "CLIP", "Eff", "SwAV"]
    assert all(judge(pictures).shape[0] == 2 for judge in encoders.judges().values())
    assert encoders.teacher()(torch.rand(2, 3, 64, 64)).shape == (2, 16, LITE.aux_dim)


def test_two_judges_of_one_network_let_it_look_once_and_changed_pictures_are_looked_at_again(
    monkeypatch,
):
    looks, real = [], encoders.Cnn.maps

    def counted(network: encoders.Cnn, images: Tensor) -> list[Tensor]:
        looks.append(images.shape)
        return real(network, images)

    monkeypatch.setattr(encoders.Cnn, "maps", counted)
    judges, pictures = encoders.judges(), torch.rand(2, 3, 80, 80)
    first = judges["Alex(2)"](pictures).clone()
    judges["Alex(5)"](pictures)
    assert looks == [(2, 3, 64, 64)]
    pictures[:] = 0.5
    assert not torch.equal(judges["Alex(2)"](pictures), first)
    fresh = encoders.judges()["Alex(2)"](torch.full((2, 3, 80, 80), 0.5))
    assert torch.equal(judges["Alex(2)"](pictures), fresh)
    with torch.inference_mode():
        kept = torch.rand(2, 3, 80, 80)
        before = judges["Alex(2)"](kept).clone()
        kept[:] = 0.5
        assert not torch.equal(judges["Alex(2)"](kept), before)


def test_no_judges_are_none():
    assert encoders.judges("none") == {}


@pytest.mark.parametrize("load", [encoders.vae, encoders.teacher, encoders.judges])
def test_a_network_that_is_not_shipped_is_refused_in_one_line(load):
    with pytest.raises(ValueError, match="'paper-frob' is not available here") as error:
        load("paper-frob")
    assert "\n" not in str(error.value)


# -- targets --------------------------------------------------------------------------------------


class Pictures:
    """Twenty random pictures by id, as `nsd.Images` would give them."""

    def __init__(self, seed: int = 0):
        self.all = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(seed))

    def __getitem__(self, ids: Tensor) -> Tensor:
        return self.all[ids]


@pytest.fixture
def computed(tmp_path, monkeypatch):
    """An empty cache folder, and a list that grows whenever targets are really computed."""
    calls, compute = [], encoders._targets_of

    def counted(*arguments):
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(encoders, "_targets_of", counted)
    return calls


def targets(pictures=None, ids=(7, 3, 3, 11)) -> encoders.Targets:
    return encoders.targets(pictures or Pictures(), torch.tensor(ids), LITE, progress=False)


def test_targets_are_computed_once_and_then_read_from_disk(computed):
    first, again = targets(), targets()
    assert len(computed) == 1
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
    assert first.image_ids.tolist() == [3, 7, 11]
    assert first.tokens.shape == (3, 16, 128) and first.latents.shape == (3, 4, 16, 16)
    assert [p.suffix for p in paths.targets().iterdir()] == [".safetensors"]


def test_targets_are_those_of_their_pictures(computed):
    made = targets()
    expected = encoders.image_encoder()(Pictures().all[[3, 7, 11]])
    torch.testing.assert_close(made.tokens, expected, rtol=2e-3, atol=2e-3)  # kept as float16


def test_other_pictures_other_ids_and_other_weights_make_new_targets(computed, monkeypatch):
    targets()
    targets(Pictures(seed=1))
    targets(ids=(7, 3))
    assert len(computed) == 3
    changed = encoders.manifest()
    changed["mini-vae"]["sha256"] = "0" * 64
    monkeypatch.setattr(encoders, "manifest", lambda: changed)
    monkeypatch.setattr(encoders, "vae", lambda name, device: encoders.frozen(encoders.build_vae()))
    targets()
    assert len(computed) == 4


def test_rows_are_found_by_image_id_and_a_missing_one_is_named(computed):
    made = targets()
    assert made.index(torch.tensor([11, 3, 11])).tolist() == [2, 0, 2]
    for missing in (5, 12, 0):
        with pytest.raises(KeyError, match=f"image {missing} has no targets: 3 are kept"):
            made.index(torch.tensor([3, missing]))


def test_the_augmented_view_is_another_one_but_always_the_same(pictures):
    before = torch.random.get_rng_state()
    views = encoders.augment(pictures)
    assert torch.equal(views, encoders.augment(pictures)) and not torch.equal(views, pictures)
    assert torch.equal(before, torch.random.get_rng_state()), "borrows no global randomness"


# -- what is shipped ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_the_ones_of_the_manifest(name):
    content = paths.weights(name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == encoders.manifest()[name]["sha256"]
    assert len(content) == encoders.manifest()[name]["bytes"]


def test_every_weights_file_is_in_the_manifest_with_the_command_that_makes_it():
    assert SHIPPED == sorted(path.stem for path in paths.weights("x").parent.glob("*.safetensors"))
    for name, entry in encoders.manifest().items():
        for part, made in entry["made"].items():
            assert made["command"] == f"mindeye2-lite miniatures {part}", name


def test_all_weights_together_are_at_most_thirty_megabytes():
    assert sum(paths.weights(name).stat().st_size for name in SHIPPED) <= 30_000_000
