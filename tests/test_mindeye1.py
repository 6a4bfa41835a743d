"""MindEye1 learns one person's voxels and shows the candidate that its projector likes best."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mindeye2_lite import encoders, mindeye1, nsd, pipeline, retrieval, unclip, variants
from mindeye2_lite.config import Config

TINY = replace(
    Config.lite(), hidden=64, max_steps=60, max_lr=3e-3, prior_depth=1, batch=16,
    prior_dim_head=32,
)  # fmt: skip
SMALLER = variants.smaller_clip(TINY)
FEW = {"limit": 2, "candidates": 2, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


@pytest.fixture(scope="module")
def made(small_root):
    return mindeye1.mindeye1(small_root, 1, TINY, **FEW)


def test_pictures_are_of_the_first_test_images_in_ascending_id(made, person):
    assert torch.equal(made.image_ids, person.test().image_ids[:2])
    for pictures in (made.pictures, made.low_level):
        assert pictures.shape == (2, 3, 64, 64) and pictures.dtype == torch.float32
        assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.std() > 0.01
    assert made.retrieval_tokens.shape == made.image_tokens.shape == (2, 17, 96)
    encoder = encoders.image_encoder("mini-L")
    assert torch.equal(made.image_tokens, encoder(person.images[made.image_ids]))


def test_the_same_seed_gives_the_same_pictures_and_test_pictures_play_no_part(
    made, small_root, person, monkeypatch
):
    """Test pictures are black here: only retrieval's gallery notices."""
    hidden, read = person.test().image_ids, nsd.Images.__getitem__
    monkeypatch.setattr(
        nsd.Images, "__getitem__",
        lambda self, ids: read(self, ids) * ~torch.isin(ids, hidden)[:, None, None, None],
    )  # fmt: skip
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(pipeline.paths.cache() / "elsewhere"))
    before = torch.get_rng_state()
    again = mindeye1.mindeye1(small_root, 1, TINY, **FEW)
    assert torch.equal(torch.get_rng_state(), before), "nobody else's randomness is touched"
    for name in ("pictures", "low_level", "retrieval_tokens"):
        assert torch.equal(getattr(again, name), getattr(made, name)), name
    assert not torch.equal(again.image_tokens, made.image_tokens)


def test_another_seed_is_another_training(made, small_root):
    other = mindeye1.mindeye1(small_root, 1, TINY, **FEW, seed=1)
    assert not torch.equal(other.low_level, made.low_level)
    assert not torch.equal(other.pictures, made.pictures)


def test_a_short_training_tells_its_own_pictures_apart(person):
    """Ten test pictures are too few to see so little training: those trained on must do."""
    trials = person.train()
    model = mindeye1.fit(person, trials, replace(SMALLER, max_steps=120), progress=False)
    ids, rows = np.unique(trials.image_id.numpy(), return_index=True)
    voxels, seen = trials.voxels[rows[:60]], person.images[torch.from_numpy(ids[:60])]
    with torch.no_grad():
        _, brain = model.high(voxels)
        latents = model.low(voxels)
    alike = retrieval.similarities(brain, encoders.image_encoder("mini-L")(seen)).numpy()
    won = (alike < np.diag(alike)[:, None]).sum() / (60 * 59)
    assert won > 0.7, "chance is a half"
    true, fresh = encoders.vae().encode(seen), mindeye1.LowLevel(1, person.num_voxels, SMALLER)
    with torch.no_grad():
        begun = fresh.eval()(voxels)
    assert (latents - true).abs().mean() < 0.9 * (begun - true).abs().mean()


def test_both_networks_are_trained_and_only_they(person):
    few = replace(SMALLER, max_steps=4)
    model = mindeye1.fit(person, person.train(), few, progress=False)
    assert not model.high.training and not model.low.training
    fresh = mindeye1.HighLevel(1, person.num_voxels, SMALLER)
    names = [name for name, _ in fresh.named_parameters()]
    assert sum(name.startswith("first.blocks") for name in names) == 4 * 4  # four residual blocks
    assert any(name.startswith("projector") for name in names)


def test_the_nearest_candidate_of_each_image_is_chosen():
    wanted = torch.eye(6)[:2].reshape(2, 2, 3)
    tokens = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(0))
    tokens[1], tokens[5] = 9 * wanted[0], 2 * wanted[1]
    assert mindeye1.nearest(tokens, wanted).tolist() == [1, 5]


def test_the_chosen_draft_is_painted_again_from_its_own_noise():
    decoder, encoder = unclip.load("mini-vd"), encoders.image_encoder("mini-L")
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    tokens = encoder(pictures)

    def shown(**how):
        generator = torch.Generator().manual_seed(0)
        return mindeye1.best_of(
            decoder, tokens, pictures, tokens, encoder, generator=generator, guidance_scale=1.4,
            candidates=3, num_inference_steps=8, progress=False, **how,
        )  # fmt: skip

    drafts, painted = shown(draft_every=1), shown(draft_every=2)
    assert drafts.shape == painted.shape == (2, 3, 64, 64)
    near = (encoder(drafts) - encoder(painted)).square().mean()
    far = (encoder(drafts) - encoder(painted.flip(0))).square().mean()
    assert near < far


def test_without_a_low_level_head_there_is_nothing_to_start_from(person):
    with pytest.raises(ValueError, match="^MindEye1 starts from a low-level picture"):
        config = replace(SMALLER, low_level=False)
        mindeye1.fit(person, person.train(sessions=1), config, progress=False)


def test_a_network_that_is_not_here_is_named_in_one_line(small_root):
    full_size = replace(TINY, encoder="ViT-bigG-14")
    with pytest.raises(ValueError, match="^decoder 'versatile-diffusion' is not available here: "):
        mindeye1.mindeye1(small_root, 1, full_size, **FEW)
