"""Ridge maps are what their formula says, and two older systems paint from nothing but them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindeye2_lite import baselines, encoders, nsd, retrieval, ridge_maps, scenes, unclip
from mindeye2_lite.config import Config

LITE = Config.lite()
SYSTEMS = (baselines.takagi_nishimoto, baselines.ozcelik_vanrullen)
FEW = {"limit": 2, "steps": 4, "progress": False, "device": "cpu"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- ridge ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [40, 9], ids=["more trials than voxels", "fewer"])
def test_a_map_is_the_closed_form_for_its_penalty(trials):
    voxels, targets = 3 + 2 * normal(trials, 12), normal(trials, 2, 3, seed=1)
    found = ridge_maps.fit(voxels, targets, torch.arange(trials), alphas=(7.0,))
    x = ((voxels - voxels.mean(0)) / voxels.std(0)).double()
    y = targets.flatten(1).double()
    weight = torch.linalg.solve(x.T @ x + 7 * torch.eye(12), x.T @ (y - y.mean(0)))
    torch.testing.assert_close(found.weight.double(), weight, rtol=1e-4, atol=1e-5)
    assert found(voxels).shape == targets.shape
    torch.testing.assert_close(
        found(voxels).flatten(1).double(), x @ weight + y.mean(0), rtol=1e-4, atol=1e-5
    )


def test_the_penalty_is_small_where_voxels_tell_and_large_where_they_do_not():
    voxels, groups = normal(200, 10), torch.arange(200)
    told = ridge_maps.fit(voxels, voxels @ normal(10, 4, seed=1), groups)
    noise = ridge_maps.fit(voxels, normal(200, 4, seed=2), groups)
    assert told.alpha == ridge_maps.ALPHAS[0] and noise.alpha >= 1e3


def test_repeats_of_a_picture_do_not_give_one_another_away():
    """Voxels tell which picture it is, and nothing about other pictures."""
    picture = torch.arange(30).repeat_interleave(6)
    voxels = torch.eye(30)[picture] + 0.01 * normal(180, 30)
    targets = normal(30, 4, seed=1)[picture]
    held_out = ridge_maps.fit(voxels, targets, picture)
    apart = ridge_maps.fit(voxels, targets, torch.randperm(180))
    assert apart.alpha < 100 < held_out.alpha


def test_a_silent_voxel_says_nothing():
    voxels = normal(50, 6)
    voxels[:, 2] = 4
    found = ridge_maps.fit(voxels, normal(50, 3, seed=1), torch.arange(50))
    assert found.weight.isfinite().all() and found.weight[2].abs().max() < 1e-6


def test_ridge_refuses_what_cannot_be_fitted():
    voxels, targets = normal(20, 6), normal(20, 3)
    with pytest.raises(ValueError, match="^3 pictures are too few for 5 folds$"):
        ridge_maps.fit(voxels, targets, torch.arange(20) % 3)
    with pytest.raises(ValueError, match="^20 rows of voxels, 19 of targets, 20 pictures: "):
        ridge_maps.fit(voxels, targets[1:], torch.arange(20))
    with pytest.raises(ValueError, match="^this map takes 6 voxels, got 5: "):
        ridge_maps.fit(voxels, targets, torch.arange(20))(voxels[:, 1:])


# -- pieces ---------------------------------------------------------------------------------------


def test_each_paper_takes_its_share_of_the_steps():
    taken = [(50, baselines.TAKAGI_STRENGTH), (50, baselines.OZCELIK_STRENGTH), (20, 0.85)]
    assert [len(baselines.last(*steps)) for steps in taken] == [40, 37, 17]
    assert torch.equal(baselines.last(10, 1.0), unclip.timesteps(10))


def test_guidance_is_the_papers_where_the_config_has_the_released_one():
    assert baselines.scaled(7.5, Config.paper()) == 7.5
    assert baselines.scaled(7.5, LITE) == 3.0


def test_repeats_are_averaged_however_many_there_are():
    trials = SimpleNamespace(
        voxels=torch.tensor([[1.0], [2.0], [4.0], [9.0]]), image_id=torch.tensor([7, 3, 7, 7])
    )
    found = baselines.averaged(nsd.Trials(**vars(trials), **dict.fromkeys(REST, torch.zeros(4))))
    torch.testing.assert_close(found, torch.tensor([[2.0], [14 / 3]]))


REST = ("repeat", "session", "behavior")


def test_predictions_get_the_spread_of_their_targets():
    targets = 5 + 3 * normal(300, 4)
    found = baselines.as_spread(0.1 * normal(90, 4, seed=1), targets)
    torch.testing.assert_close(found.mean(0), targets.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.std(0), targets.std(0), rtol=1e-2, atol=1e-3)


def test_early_regions_are_v1_to_v4_and_higher_ones_ventral_where_the_file_has_them():
    masks = {name: np.arange(6) == i for i, name in enumerate(("V1", "V2", "V3", "V4"))}
    masks |= {"higher_vis": np.arange(6) > 3}
    early, higher = baselines.early_and_higher(SimpleSubject(masks))
    assert early.tolist() == [True] * 4 + [False] * 2 and higher.tolist() == (~early).tolist()
    _, ventral = baselines.early_and_higher(SimpleSubject(masks | {"ventral": np.arange(6) == 5}))
    assert ventral.tolist() == [False] * 5 + [True]
    with pytest.raises(ValueError, match="^subject 1 has regions V1: V1, V2, V3, V4 and ventral"):
        baselines.early_and_higher(SimpleSubject({"V1": masks["V1"]}))


class SimpleSubject(nsd.Subject):
    """Somebody with regions and nothing else."""

    rois = None

    def __init__(self, rois):
        self.rois, self.subject = rois, 1


def test_dual_guidance_mixes_two_looks_and_leaves_the_network_as_it_was():
    unet = unclip.load_unet("mini-vd")
    tokens, noisy, before = normal(1, 20, 96), normal(1, 4, 16, 16), dict(unet.attn_processors)

    def look(tokens):
        with torch.no_grad():
            return unclip.conditioned(unet, (64, 64, 0, 0))(noisy, torch.tensor([400]), tokens)

    with baselines.dual_guidance(unet, 1.0, 17):
        only_first = look(tokens)
    with baselines.dual_guidance(unet, 0.6, 17):
        mixed = look(tokens)
    assert unet.attn_processors == before
    torch.testing.assert_close(only_first, look(tokens[:, :17]))
    assert not torch.allclose(mixed, only_first, atol=1e-3)
    assert not torch.allclose(mixed, look(tokens), atol=1e-3)


def test_variation_keeps_a_picture_that_is_hardly_noised_and_else_follows_the_tokens():
    decoder = unclip.load("mini-vd")
    drawn = scenes.render(scenes.sample(2, seed=6))
    picture, other = (torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255).split(1)
    tokens = encoders.image_encoder("mini-L")(other)
    how = {"num_inference_steps": 10, "guidance_scale": 1.0, "progress": False}

    def distances(strength):
        generator = torch.Generator().manual_seed(0)
        made = baselines.vary(
            decoder, tokens, picture, generator=generator, strength=strength, **how
        )
        return [float((made - one).abs().mean()) for one in (picture, other)]

    kept, followed = distances(0.1), distances(1.0)
    assert kept[0] < kept[1] / 2 and followed[1] < followed[0] / 2


# -- the systems ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(small_root):
    return {system: system(small_root, 1, LITE, **FEW) for system in SYSTEMS}


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


def test_pictures_are_of_the_first_test_images_in_ascending_id(made, person):
    for system, out in made.items():
        assert torch.equal(out.image_ids, person.test().image_ids[:2]), system
        for pictures in (out.pictures, out.low_level):
            assert pictures.shape == (2, 3, 64, 64) and pictures.dtype == torch.float32
            assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.std() > 0.01
        assert not torch.equal(out.pictures, out.low_level)
    takagi, ozcelik = made.values()
    assert takagi.retrieval_tokens is None and takagi.image_tokens is None
    assert ozcelik.retrieval_tokens.shape == ozcelik.image_tokens.shape == (2, 17, 96)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_seed_gives_the_same_pictures_and_test_pictures_play_no_part(
    system, made, small_root, person, monkeypatch
):
    """Test pictures are black and have no captions here: only retrieval's gallery notices."""
    hidden, read, said = person.test().image_ids, nsd.Images.__getitem__, nsd.Subject.captions

    def blacked(self, ids):
        return read(self, ids) * ~torch.isin(ids, hidden)[:, None, None, None]

    def captions(self, image_id):
        assert image_id not in hidden
        return said(self, image_id)

    monkeypatch.setattr(nsd.Images, "__getitem__", blacked)
    monkeypatch.setattr(nsd.Subject, "captions", captions)
    again, first = system(small_root, 1, LITE, **FEW), made[system]
    assert torch.equal(again.pictures, first.pictures)
    assert torch.equal(again.low_level, first.low_level)
    if first.retrieval_tokens is not None:
        assert torch.equal(again.retrieval_tokens, first.retrieval_tokens)
        assert not torch.equal(again.image_tokens, first.image_tokens)


@pytest.mark.parametrize("system", SYSTEMS)
def test_another_seed_gives_another_picture_of_the_same_low_level_one(system, made, small_root):
    other = system(small_root, 1, LITE, **FEW, seed=1)
    assert torch.equal(other.low_level, made[system].low_level)
    assert not torch.equal(other.pictures, made[system].pictures)


def test_less_data_are_the_first_sessions(made, small_root):
    one = baselines.ozcelik_vanrullen(small_root, 1, LITE, **FEW, sessions=1)
    assert torch.equal(one.image_ids, made[baselines.ozcelik_vanrullen].image_ids)
    assert not torch.equal(one.low_level, made[baselines.ozcelik_vanrullen].low_level)


def test_vision_tokens_find_pictures_better_than_chance(small_root):
    how = FEW | {"limit": None, "steps": 2}
    out = baselines.ozcelik_vanrullen(small_root, 1, LITE, **how)
    for score in retrieval.retrieval(out.retrieval_tokens, out.image_tokens).scores().values():
        assert score.value > 3 * score.chance, score


def test_a_network_that_is_not_here_is_named_in_one_line(small_root):
    full_size = replace(LITE, encoder="ViT-bigG-14")
    line = "^decoder 'versatile-diffusion' is not available here: choose one of mini-sdxl, "
    with pytest.raises(ValueError, match=line):
        baselines.ozcelik_vanrullen(small_root, 1, full_size, **FEW)
    missing = replace(LITE, refiner="nowhere/at-all")
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        baselines.takagi_nishimoto(small_root, 1, missing, **FEW)
