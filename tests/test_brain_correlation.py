"""The encoder of the paper has its sizes, and r across voxels is what a plain loop gives."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torchvision.transforms.functional import to_pil_image

from mindeye2_lite import brain_correlation, nsd
from mindeye2_lite.brain_correlation import GNet, Readout, compressed, per_region


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


@pytest.fixture(scope="module")
def encoder(person):
    return brain_correlation.fit(person)


# --- GNet


def test_gnet_has_the_file_s_names_and_the_spec_s_shapes():
    with torch.device("meta"):
        gnet = GNet(15724)
        fine, coarse = gnet.enc(torch.zeros(2, 3, 227, 227))
        voxels = Readout(15724)(fine, coarse)
    assert fine.shape == (2, 256, 25, 25) and coarse.shape == (2, 256, 13, 13)
    assert voxels.shape == (2, 15724)
    shapes = {key: tuple(value.shape) for key, value in gnet.fwrf.state_dict().items()}
    assert shapes == {
        "rf0": (15724, 25, 25), "rf1": (15724, 13, 13), "w": (15724, 512), "b": (15724,),
    }  # fmt: skip
    trunk = {key: tuple(value.shape) for key, value in gnet.enc.state_dict().items()}
    assert trunk["mu"] == (3, 227, 227)
    assert trunk["pre.conv1.0.weight"] == (64, 3, 11, 11)
    assert trunk["pre.conv2.0.weight"] == (192, 64, 5, 5)
    assert trunk["enc.bn1.running_mean"] == (192,)
    layers = {key: trunk[f"enc.{key}.weight"][:2] for key in ("conv3", "conv4a.conv1")}
    layers |= {key: trunk[f"enc.{key}.conv1.weight"][:2] for key in ("conv4b", "conv6a", "conv6b")}
    assert layers == {
        "conv3": (128, 192), "conv4a.conv1": (256, 128), "conv4b": (256, 256),
        "conv6a": (256, 256), "conv6b": (64, 256),
    }  # fmt: skip


def test_maps_hold_what_voxels_see_of_each_layer():
    torch.manual_seed(0)
    stages = brain_correlation.Stages().eval()
    seen = {}
    for name in ("conv4a", "conv4b", "conv5a", "conv5b", "conv6a", "conv6b"):
        hook = getattr(stages, name).register_forward_hook
        hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        fine, coarse = stages(torch.randn(1, 192, 27, 27))
    torch.testing.assert_close(fine[:, 128:192], seen["conv4a"][:, :64])
    torch.testing.assert_close(fine[:, 192:], seen["conv4b"][:, :64])
    for i, name in enumerate(("conv5a", "conv5b", "conv6a", "conv6b")):
        torch.testing.assert_close(coarse[:, 64 * i : 64 * (i + 1)], seen[name][:, :64])


def test_pooling_is_what_it_is_by_hand():
    def g(u):
        return np.log(1 + abs(u)) * np.tanh(u)

    readout = Readout(1, sides=(2, 1), channels=(1, 1))
    with torch.no_grad():
        readout.rf0[:] = torch.log(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))  # tenths
        readout.w[:], readout.b[:] = torch.tensor([[2.0, -1.0]]), 0.5
    fine, coarse = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]]), torch.tensor([[[[1.5]]]])
    pooled = 0.1 * g(1) + 0.2 * g(-2) + 0.3 * g(0) + 0.4 * g(3)
    expected = 2 * g(pooled) - g(g(1.5)) + 0.5
    assert readout(fine, coarse).item() == pytest.approx(expected, rel=1e-6)
    assert compressed(torch.tensor(-2.0)).item() == pytest.approx(-g(2), rel=1e-6)


def test_neither_blocks_of_voxels_nor_batches_change_a_prediction(monkeypatch):
    torch.manual_seed(1)
    gnet = GNet(5).eval()
    for parameter in (gnet.fwrf.rf0, gnet.fwrf.rf1, gnet.fwrf.w):
        torch.nn.init.normal_(parameter)
    pictures = torch.rand(3, 3, 40, 40)
    whole = gnet(pictures)
    monkeypatch.setattr(brain_correlation, "AT_ONCE", 2)
    assert whole.shape == (3, 5) and whole.std(0).min() > 0
    torch.testing.assert_close(gnet(pictures, batch=2), whole, atol=1e-5, rtol=1e-5)


def test_pictures_reach_gnet_as_pillow_makes_them():
    picture = torch.rand(1, 3, 50, 60)
    small = to_pil_image(picture[0]).resize((227, 227), 1)  # 1: LANCZOS
    expected = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    torch.testing.assert_close(brain_correlation.preprocess(picture)[0], expected)


def write_gnet(path, voxels):
    torch.manual_seed(2)
    source = GNet(voxels, mu=(3, 1, 1))
    torch.nn.init.normal_(source.fwrf.w)
    best = {"enc": source.enc.state_dict(), "fwrfs": {1: source.fwrf.state_dict()}}
    mask = {1: np.ones(voxels, bool)}  # numpy in it, as torch's own safe loader refuses
    torch.save({"best_params": best, "voxel_mask": mask, "input_mean": np.zeros(3)}, path)
    return source.eval()


def test_a_file_of_the_released_form_is_read_without_its_code(tmp_path):
    source = write_gnet(tmp_path / "gnet.pt", voxels=7)
    found = brain_correlation.gnet(1, tmp_path / "gnet.pt")
    pictures = torch.rand(2, 3, 30, 30)
    torch.testing.assert_close(found(pictures), source(pictures))
    with pytest.raises(ValueError, match=r"^[^\n]* has no encoder of subject 2, only of \[1\]$"):
        brain_correlation.gnet(2, tmp_path / "gnet.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="^[^\n]*it is another file$"):
        brain_correlation.gnet(1, tmp_path / "other.pt")


def test_an_absent_gnet_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"^no file \S*gnet_multisubject.pt: get it [^\n]*$"
    ):
        brain_correlation.gnet(1)


# --- scores


def some_voxels(images=12, voxels=40):
    rng = np.random.default_rng(0)
    measured = torch.from_numpy(rng.normal(size=(images, voxels)))
    predicted = measured + torch.from_numpy(rng.normal(size=(images, voxels)))
    regions = {"V1": np.arange(voxels) < 9, "V2": np.arange(voxels) % 3 == 1}
    return predicted, measured, regions


def test_per_region_is_scipy_s_r_in_a_plain_loop():
    predicted, measured, regions = some_voxels()
    for name, found in per_region(predicted, measured, regions).items():
        mask = regions[name]
        r = [[pearsonr(p[mask], m[mask])[0] for p in predicted.numpy()] for m in measured.numpy()]
        np.testing.assert_allclose(found.per_image, np.diag(r), rtol=1e-9)
        wrong = np.array(r)[~np.eye(len(r), dtype=bool)].mean()
        assert found.value == pytest.approx(np.diag(r).mean())
        assert found.chance == pytest.approx(wrong) and found.n == 12
        assert found.low < found.value < found.high


def test_perfect_predictions_score_one_and_shuffled_ones_nothing():
    _, measured, regions = some_voxels(images=60)
    # r does not ask for units
    perfect = per_region(3 * measured + 2, measured, regions)
    assert all(score.value == pytest.approx(1) for score in perfect.values())
    shuffled = per_region(measured.roll(1, dims=0), measured, regions)
    for score in shuffled.values():
        assert abs(score.value) < 0.1 and abs(score.chance) < 0.1


def test_voxels_that_do_not_fit_are_refused_in_one_line():
    predicted, measured, regions = some_voxels()
    cases = (
        ((predicted[:, :-1], measured, regions), r"predicted voxels are \(12, 39\)"),
        ((predicted, measured, {"V1": np.ones(39, bool)}), "region V1 marks 39 of 39 voxels"),
        ((predicted, measured, {"V1": np.arange(40) == 3}), "region V1 marks 1 of 40 voxels"),
        ((predicted * float("nan"), measured, regions), "predicted voxels hold values"),
    )
    for arguments, told in cases:
        with pytest.raises(ValueError, match=f"^{told}[^\n]*$"):
            per_region(*arguments)


# --- an encoder of one person's trials


def test_a_fitted_encoder_predicts_held_out_trials_above_chance(person, encoder):
    ids = person.test().image_ids
    seen = person.images[ids.numpy()]
    found = brain_correlation.brain_correlation(seen, person, encoder)
    assert tuple(found) == brain_correlation.REGIONS
    for name in ("nsd_general", "V1", "higher_vis"):
        assert found[name].low > found[name].chance + 0.02, found[name]
    assert found["nsd_general"].n == len(ids)
    wrong = brain_correlation.brain_correlation(seen.roll(1, dims=0), person, encoder)
    assert wrong["nsd_general"].value < found["nsd_general"].value - 0.1


def test_the_truth_is_the_mean_of_the_repeats_of_the_images_that_are_named(person, encoder):
    ids = person.test().image_ids
    some = ids[[4, 0, 2]]
    pictures = person.images[some.numpy()]
    found = brain_correlation.brain_correlation(pictures, person, encoder, image_ids=some)
    measured = person.test().repeats().mean(1)[[4, 0, 2]]
    whole = {"nsd_general": person.rois["nsd_general"]}
    expected = per_region(encoder(pictures), measured, whole)["nsd_general"]
    np.testing.assert_allclose(found["nsd_general"].per_image, expected.per_image)
    with pytest.raises(ValueError, match="^3 pictures for [^\n]*test images of subject 1[^\n]*$"):
        brain_correlation.brain_correlation(pictures, person, encoder)
    strangers = torch.full_like(some, -1)
    with pytest.raises(ValueError, match="^3 pictures for 3 images[^\n]*$"):
        brain_correlation.brain_correlation(pictures, person, encoder, image_ids=strangers)


def test_a_fitted_encoder_is_scikit_learn_s_ridge_and_takes_pictures_of_any_size(person, encoder):
    from sklearn.linear_model import Ridge

    trials = person.train()
    ids = trials.image_id.unique()
    x = brain_correlation.maps(person.images[ids.numpy()])
    z = ((x - encoder.mean) / encoder.scale).double().numpy()
    voxel, often = 5, np.array([(trials.image_id == i).sum().item() for i in ids])
    y = [trials.voxels[trials.image_id == i, voxel].mean().item() for i in ids]
    ridge = Ridge(encoder.penalties[voxel]).fit(z, y, sample_weight=often)
    expected = ridge.predict(z[:20])
    found = encoder(person.images[ids[:20].numpy()])[:, voxel].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    large = torch.nn.functional.interpolate(person.images[[0, 1]], 128)
    assert encoder(large).shape == (2, person.num_voxels)
