"""Models are made from a config and a seed, fine-tuned from others, kept and opened again."""

import copy
from dataclasses import replace

import pytest
import torch

from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2
from mindeye2_lite.ridge import SharedSubjectRidge

TINY = replace(
    Config.lite(),
    hidden=16,
    tokens=4,
    dim=16,
    latent_size=8,
    aux_dim=8,
    prior_depth=2,
    prior_dim_head=8,
)


def test_fine_tuning_starts_from_everything_shared_and_the_first_bias():
    pretrained = MindEye2.from_config(TINY, {2: 20, 3: 30}, seed=5)
    tuned = MindEye2.fine_tune_from(pretrained, subject=1, num_voxels=25, seed=1)
    assert tuned.subjects == (1,)
    assert torch.equal(tuned.ridge.linears[0].bias, pretrained.ridge.linears[0].bias)
    before, after = pretrained.state_dict(), tuned.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in after if not k.startswith("ridge"))
    with torch.no_grad():
        tuned.backbone.backbone_linear.bias.add_(1)
    assert not torch.equal(
        tuned.backbone.backbone_linear.bias, pretrained.backbone.backbone_linear.bias
    )


def test_fine_tuning_copies_no_ridge_map_and_gives_what_copying_all_would(monkeypatch):
    pretrained = MindEye2.from_config(TINY, {2: 20, 3: 30}, seed=5).eval()
    expected = copy.deepcopy(pretrained)
    expected.ridge = MindEye2.fine_tune_from(pretrained, 1, 25, seed=1).ridge
    nobody = MindEye2.from_config(TINY, {}, seed=5)

    def refuse(self, memo):
        raise AssertionError("a ridge map was copied")

    monkeypatch.setattr(SharedSubjectRidge, "__deepcopy__", refuse, raising=False)
    tuned = MindEye2.fine_tune_from(pretrained, 1, 25, seed=1)
    assert pretrained.subjects == (2, 3) and tuned.subjects == (1,)
    assert [name for name, _ in tuned.named_modules()] == [n for n, _ in expected.named_modules()]
    pairs = zip(tuned.named_parameters(), expected.named_parameters(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    frozen = [[p.requires_grad for p in m.parameters()] for m in (tuned, expected)]
    assert frozen[0] == frozen[1] and not tuned.backbone.training
    assert MindEye2.fine_tune_from(nobody, 1, 25).subjects == (1,)


def test_first_weights_follow_from_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second, other = (MindEye2.from_config(TINY, {1: 20}, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    same = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(first.ridge.linears[0].weight, other.ridge.linears[0].weight)


@pytest.mark.parametrize("kind", ["released", "residual"])
def test_what_is_saved_comes_back_the_same(tmp_path, kind):
    model = MindEye2.from_config(replace(TINY, backbone=kind), {2: 20, 3: 30}).eval()
    again = MindEye2.from_released(model.save(tmp_path / "m.safetensors")).eval()
    voxels = torch.randn(3, 30)
    assert again.backbone.kind == kind
    for a, b in zip(model(voxels, 3), again(voxels, 3), strict=True):
        assert torch.equal(a, b)
    freqs = [n for n, _ in again.named_parameters() if "freqs" in n]
    assert len(freqs) == 1


def test_sizes_follow_the_config():
    model = MindEye2.from_config(Config.lite(), {1: 983})
    out = model(torch.randn(2, 983), subject=1)
    assert out.tokens.shape == out.retrieval.shape == (2, 16, 128)
    assert out.low_level.shape == (2, 4, 16, 16)
    assert out.low_level_features.shape == (2, 16, 64)
    assert model.prior.net.causal_transformer.layers[0][0].heads == 2
