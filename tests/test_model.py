"""The whole model has the released names and sizes, and the released numbers come out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

GOLDEN = Path(__file__).parent / "golden"
VOXELS = dict(enumerate((15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386), start=1))
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


def released_keys() -> dict[str, tuple[int, dict[str, tuple[int, ...]]]]:
    """Name of a released model -> its number of parameters and the shape of every weight."""
    models = {}
    for line in (GOLDEN / "released_keys.txt").read_text().splitlines():
        *first, last = line.split()
        if first[0] == "#":
            shapes = {}
            models[first[1]] = int(last), shapes
        else:
            shapes[first[0]] = tuple(map(int, last.split("x")))
    return models


def golden_weights() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


def shapes_of(model: MindEye2) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "config", "subjects"),
    [
        ("paper_subject_1", Config.paper(), [1]),
        ("paper_subjects_2_to_8", Config.paper(), range(2, 9)),
        ("colab_subjects_2_to_8", Config.colab(), range(2, 9)),
    ],
)
def test_full_size_models_have_the_released_names_shapes_and_counts(name, config, subjects):
    count, shapes = released_keys()[name]
    with torch.device("meta"):
        model = MindEye2.from_config(config, {s: VOXELS[s] for s in subjects})
    assert list(shapes_of(model).items()) == list(shapes.items())
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_small_released_model_has_its_names_and_count_with_and_without_low_level_head():
    for name, drop in (("small", ()), ("small_no_low_level", ("backbone.b", "ridge.linears.1."))):
        count, shapes = released_keys()[name]
        weights = {
            k: v
            for k, v in golden_weights().items()
            if not k.startswith(drop or "-") or k.startswith("backbone.backbone_linear")
        }
        model = MindEye2.from_released(weights)
        assert shapes_of(model) == shapes
        assert sum(p.numel() for p in model.parameters()) == count


def test_the_released_numbers_come_out_for_every_subject():
    values = load_file(GOLDEN / "values.safetensors")
    model = MindEye2.from_released(GOLDEN / "weights.safetensors", subjects=(3, 5)).eval()
    voxels = {3: values["voxels.0"].squeeze(1), 5: values["voxels.1"].squeeze(1)}
    assert model.subjects == (3, 5)
    for i, subject in enumerate(model.subjects):
        out, rows = model(voxels[subject], subject=subject), slice(3 * i, 3 * i + 3)
        close = {"atol": 5e-5, "rtol": 1e-4}
        torch.testing.assert_close(out.tokens, values["backbone"][rows], **close)
        torch.testing.assert_close(out.retrieval, values["clip_voxels"][rows], **close)
        torch.testing.assert_close(out.low_level, values["blur_latent"][rows], **close)
        torch.testing.assert_close(out.low_level_features, values["blur_aux"][rows], **close)


def test_released_weights_load_strictly_and_export_unchanged(tmp_path):
    released = golden_weights()
    path = MindEye2.from_released(released, subjects=(2, 7)).save(tmp_path / "model.safetensors")
    exported = load_file(path)
    assert exported.keys() == released.keys()
    assert all(torch.equal(exported[key], released[key].float()) for key in released)
    assert MindEye2.from_released(path).subjects == (2, 7)


def test_a_pth_file_of_tensors_loads_and_one_of_objects_is_refused_in_one_line(tmp_path):
    torch.save({"epoch": 149, "model_state_dict": golden_weights()}, tmp_path / "last.pth")
    assert MindEye2.from_released(tmp_path / "last.pth").subjects == (0, 1)
    torch.save(
        {"model_state_dict": golden_weights(), "optimizer": Config()}, tmp_path / "objects.pth"
    )
    with pytest.raises(ValueError, match="^cannot read objects.pth as weights alone[^\n]*$"):
        MindEye2.from_released(tmp_path / "objects.pth")


def test_weights_that_do_not_fit_are_named_in_one_line():
    weights = golden_weights()
    del weights["backbone.clip_proj.5.bias"]
    with pytest.raises(ValueError, match=r"^1 weights do not fit[^\n]*clip_proj.5.bias[^\n]*$"):
        MindEye2.from_released(weights)
    with pytest.raises(ValueError, match="^these are not the weights of a MindEye2[^\n]*$"):
        MindEye2.from_released({"something": torch.zeros(3)})
    with pytest.raises(ValueError, match="^the weights hold 2 ridge maps [^\n]*$"):
        MindEye2.from_released(golden_weights(), subjects=(1,))


def test_weights_without_ridge_maps_give_a_model_that_knows_nobody_yet():
    shared = {k: v for k, v in golden_weights().items() if not k.startswith("ridge")}
    model = MindEye2.from_released(shared)
    assert model.subjects == ()
    tuned = MindEye2.fine_tune_from(model, subject=1, num_voxels=25)
    assert tuned(torch.randn(2, 25), subject=1).tokens.shape == (2, 4, 16)


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
    assert model.prior.net.causal_transformer.layers[0][0].heads == 4
