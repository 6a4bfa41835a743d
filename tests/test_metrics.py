"""The scores are the paper's, read 1 for a perfect reconstruction and chance for a stranger's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from mindeye2_lite import encoders, metrics, paths, pixels

GOLDEN = load_file(Path(__file__).parent / "golden" / "metrics.safetensors")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def pictures(generator) -> torch.Tensor:
    coarse = torch.rand(12, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=48, mode="bicubic").clamp(0, 1)


def judges() -> dict:
    """Stand-ins that see the picture's own pixels: a perfect reconstruction is beyond doubt."""
    names = (*metrics.TWO_WAY, *metrics.DISTANCE)
    return {name: lambda x: torch.nn.functional.avg_pool2d(x, 4) for name in names}


def test_pixcorr_agrees_with_the_reference():
    # the reference sums 541,875 squares in float32, which moves the sixth digit
    ours = metrics.pixcorr(GOLDEN["pixcorr.a"], GOLDEN["pixcorr.b"])
    assert ours == pytest.approx(float(GOLDEN["pixcorr.value"]), abs=6e-6)


def test_pixcorr_is_numpys_corrcoef_in_float64():
    a, b = (metrics.resize(GOLDEN[f"pixcorr.{x}"], 425).flatten(1).double() for x in "ab")
    exact = [np.corrcoef(p, q)[0, 1] for p, q in zip(a, b, strict=True)]
    ours = metrics.pixcorr_per_image(GOLDEN["pixcorr.a"], GOLDEN["pixcorr.b"])
    np.testing.assert_allclose(ours, exact, atol=1e-12)


def test_a_picture_of_one_color_counts_nothing_instead_of_spoiling_the_mean(pictures):
    flat = torch.full_like(pictures, 0.5)
    assert metrics.pixcorr(flat, pictures, 64) == 0


def test_ssim_is_scikit_images_on_gray_pictures(pictures, generator):
    noisy = (pictures + 0.1 * torch.rand(pictures.shape, generator=generator)).clamp(0, 1)
    a, b = (
        rgb2gray(metrics.resize(x[:1], 96)[0].permute(1, 2, 0).numpy()) for x in (noisy, pictures)
    )
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(a, b, data_range=1.0, **settings)
    ours = metrics.ssim_per_image(noisy, pictures, 96)[0]
    assert ours == pytest.approx(expected, abs=1e-6)


def test_resizing_down_takes_single_pixels_because_it_is_not_antialiased():
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    assert metrics.resize(stripes, 21).std() > 0.2  # antialiasing would leave even gray


def test_two_way_identification_counts_strictly_lower_pictures_among_n_minus_1(generator):
    true, recon = (torch.randn(7, 20, generator=generator) for _ in range(2))
    r = np.corrcoef(true.double(), recon.double())[:7, 7:]
    counted = [sum(r[i, j] < r[j, j] for i in range(7)) / 6 for j in range(7)]
    assert metrics.two_way_identification(true, recon) == pytest.approx(np.mean(counted))


def test_distractors_are_other_pictures_and_not_other_reconstructions():
    true = torch.tensor([[1.0, 0, 0, 0], [1.0, 0.1, 0, 0], [0, 0, 1.0, 0]])
    recon = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    # the second reconstruction is more like picture 0; among reconstructions it would tie instead
    assert metrics.two_way_per_image(true, recon).tolist() == [1.0, 0.5, 1.0]


def test_equally_similar_pictures_do_not_count_as_identified():
    same = torch.ones(4, 5) * torch.arange(5.0)
    assert metrics.two_way_identification(same, same) == 0


def test_blocks_of_correlations_agree_with_numpy(generator):
    true, recon = (
        torch.randn(150, 30, generator=generator),
        torch.randn(150, 5, 6, generator=generator),
    )
    expected = np.corrcoef(true.double(), recon.flatten(1).double())[:150, 150:]
    np.testing.assert_allclose(metrics.correlations(true, recon), expected, atol=1e-12)


def test_correlation_distance_is_0_for_a_match_and_2_for_the_opposite(generator):
    features = torch.randn(5, 9, generator=generator)
    assert metrics.correlation_distance(features, 3 * features + 1) == pytest.approx(0, abs=1e-6)
    assert metrics.correlation_distance(features, -features) == pytest.approx(2, abs=1e-6)


def test_random_features_score_at_chance(generator):
    true, recon = (torch.randn(300, 64, generator=generator) for _ in range(2))
    assert metrics.two_way_identification(true, recon) == pytest.approx(0.5, abs=0.05)
    assert metrics.correlation_distance(true, recon) == pytest.approx(1, abs=0.03)


def test_a_perfect_reconstruction_scores_1_or_0(pictures):
    scores = metrics.evaluate(pictures, pictures, judges(), size=64)
    assert list(scores) == ["PixCorr", "SSIM", *metrics.TWO_WAY, *metrics.DISTANCE]
    for name, score in scores.items():
        assert score.value == pytest.approx(0 if name in metrics.DISTANCE else 1, abs=1e-6), name
        assert score.n == len(pictures) == len(score.per_image)


def test_shuffled_reconstructions_score_at_the_chance_that_is_stated(generator):
    coarse = torch.rand(80, 3, 6, 6, generator=generator)
    seen = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
    scores = metrics.evaluate(seen.roll(1, dims=0), seen, judges(), size=48)
    for score in scores.values():
        width = score.high - score.low
        assert abs(score.value - score.chance) < width, str(score)


@pytest.mark.parametrize("through", [None, 40])
@pytest.mark.parametrize(
    ("side", "other", "size"),
    [(48, 48, 70), (48, 48, 50), (48, 48, 48), (48, 48, 30), (48, 56, 70), (56, 48, 30)],
)
def test_pixcorr_is_that_of_resized_pictures_whichever_way_they_are_resized(
    side, other, size, through, generator
):
    a = torch.rand(5, 3, side, side, generator=generator)
    b = torch.rand(5, 3, other, other, generator=generator)
    r, chance = pixels.pixcorr_and_chance(a, b, size, through)
    if through:
        a, b = (metrics.resize(x, through) for x in (a, b))
    rows = [metrics.resize(x, size).flatten(1).double().numpy() for x in (a, b)]
    all_pairs = np.corrcoef(*rows)[:5, 5:]
    np.testing.assert_allclose(r, np.diag(all_pairs), atol=1e-6)
    wrong = (all_pairs.sum() - np.trace(all_pairs)) / 20
    assert chance == pytest.approx(wrong, abs=1e-6)


def test_chance_of_pixcorr_is_the_mean_over_all_wrong_pairs(pictures, generator):
    recon = (pictures + 0.3 * torch.rand(pictures.shape, generator=generator)).clamp(0, 1)
    r = metrics.correlations(metrics.resize(pictures, 32), metrics.resize(recon, 32))
    wrong = r[~np.eye(len(r), dtype=bool)].mean()
    assert metrics.evaluate(recon, pictures, {}, size=32)["PixCorr"].chance == pytest.approx(wrong)


def test_chance_of_ssim_is_that_of_pairs_in_which_nobody_meets_oneself(generator):
    for n in (2, 3, 20):  # 20 pictures are more than are worked out at once
        some = torch.rand(n, 3, 16, 16, generator=generator)
        matrix = np.array([metrics.ssim_per_image(some, x.expand_as(some), 32) for x in some])
        order = np.random.default_rng(n).permutation(n)
        expected = matrix[np.roll(order, 1), order].mean()
        score = metrics.evaluate(some, some, {}, seed=n, size=32)["SSIM"]
        assert score.chance == pytest.approx(expected, abs=1e-6) and score.value > 0.999999


@pytest.mark.parametrize("side", ["reconstruction", "seen picture"])
def test_a_picture_that_holds_nan_is_named_in_one_line(pictures, side):
    spoiled = pictures.clone()
    spoiled[9, 1, 3, 3] = torch.nan
    pair = (spoiled, pictures) if side == "reconstruction" else (pictures, spoiled)
    for score in (metrics.pixcorr_per_image, metrics.ssim_per_image):
        with pytest.raises(ValueError, match=rf"^{side} 9 \(counted from 0\) holds NaN[^\n]*$"):
            score(*pair)
    with pytest.raises(ValueError, match=rf"^{side} 9 \(counted from 0\) holds NaN[^\n]*$"):
        metrics.evaluate(*pair, judges(), size=64)


def test_the_interval_covers_the_mean_and_follows_the_seed(generator):
    values = torch.rand(200, generator=generator).numpy()
    low, high = metrics.bootstrap(values, seed=1)
    error = values.std() / np.sqrt(200)
    assert (low, high) == metrics.bootstrap(values, seed=1) != metrics.bootstrap(values, seed=2)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1) and low < values.mean() < high


def test_seen_pictures_of_another_size_come_to_the_reconstructions_size(pictures):
    larger = metrics.resize(pictures, 96)
    shapes = []
    judge = {"CLIP": lambda x: shapes.append(x.shape[-1]) or x}
    metrics.evaluate(larger, pictures, judge, size=64)
    assert set(shapes) == {96}


def test_both_sides_pass_through_a_size_before_anything_is_scored(generator):
    recon, seen = (torch.rand(3, 3, n, n, generator=generator) for n in (768, 224))
    shown = []
    judge = {"CLIP": lambda x: shown.append(x.clone()) or x}
    through = metrics.evaluate(recon, seen, judge, through=256, size=64)
    assert torch.equal(shown[0], metrics.resize(seen, 256))
    assert torch.equal(shown[1], recon[:, :, 1::3, 1::3]), "every third pixel: no antialiasing"
    at_256 = metrics.evaluate(metrics.resize(recon, 256), metrics.resize(seen, 256), {}, size=64)
    assert through["PixCorr"].value == at_256["PixCorr"].value
    direct = metrics.evaluate(recon, seen, {}, size=64)
    assert abs(direct["PixCorr"].value - through["PixCorr"].value) > 1e-4


def test_judges_see_small_batches_without_gradients(pictures):
    sizes = []
    judge = {"CLIP": lambda x: sizes.append(len(x)) or x.requires_grad_() * 1}
    metrics.evaluate(pictures, pictures, judge, size=32, batch=5)
    assert sizes == [5, 5, 2, 5, 5, 2]


def test_pictures_that_do_not_pair_up_are_refused_in_one_line(pictures):
    for recon, seen, count in (
        (pictures[:1], pictures, "1 recon"),
        (pictures[:1], pictures[:1], "1 seen"),
    ):
        with pytest.raises(ValueError, match=count) as error:
            metrics.evaluate(recon, seen, {})
        assert "\n" not in str(error.value)


def test_the_table_names_its_judges_and_what_chance_would_score(pictures):
    table = metrics.table(
        metrics.evaluate(pictures, pictures, judges(), size=32), source="mini-judges"
    )
    assert (
        table.loc["CLIP", "judged by"] == "mini-judges"
        and table.loc["SSIM", "judged by"] == "pixels"
    )
    assert table.loc["CLIP", "chance"] == 0.5 and table["n"].eq(len(pictures)).all()
    assert table.loc["Eff", "better"] == "lower"
    assert (table["95% low"] <= table["value"] + 1e-9).all()


def test_published_numbers_carry_their_source_and_our_units():
    rows = metrics.published()
    refined = rows.query("system == 'MindEye2, refined' and sessions == 40 and metric == 'CLIP'")
    mean = refined[refined["subject"].str.startswith("mean")].iloc[0]
    assert mean["source"] == "arXiv:2403.11207v2, Table 1"
    assert mean["value"] == pytest.approx(mean["quoted"] / 100)
    assert rows["value"].between(0, 1).all()


def test_published_subjects_average_to_the_published_mean():
    rows = metrics.published().query("system == 'MindEye2, refined'")
    means = rows[rows["subject"].str.startswith("mean")].set_index(["sessions", "metric"])["value"]
    people = rows[~rows["subject"].str.startswith("mean")].groupby(["sessions", "metric"])["value"]
    assert (people.count() == 4).all() and len(means) == 20
    assert (people.mean().reindex(means.index) - means).abs().max() < 0.0011


def test_the_published_file_says_that_it_is_quoted():
    data = json.loads(paths.results("published").read_text(encoding="utf-8"))
    assert "Quoted" in data["note"] and data["quoted_from"].startswith("arXiv")


# -- against plain references, whatever the batch ------------------------------------------------


def pearson(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    return float((a @ b) / (a @ a).sqrt() / (b @ b).sqrt())


@pytest.mark.parametrize("distractors", metrics.DISTRACTORS)
def test_two_way_and_distances_are_those_of_a_plain_double_loop(generator, distractors):
    true = torch.randn(17, 4, 5, generator=generator)
    recon = true + 2 * torch.randn(17, 4, 5, generator=generator)
    each = []
    for pair in range(17):
        own = pearson(true[pair], recon[pair])
        others = [other for other in range(17) if other != pair]
        if distractors == "images":
            wrong = [pearson(true[other], recon[pair]) for other in others]
        else:
            wrong = [pearson(true[pair], recon[other]) for other in others]
        each.append(sum(r < own for r in wrong) / 16)
    ours = metrics.two_way_per_image(true, recon, distractors=distractors)
    np.testing.assert_allclose(ours, each, atol=1e-12)
    value = metrics.two_way_identification(true, recon, distractors=distractors)
    assert value == pytest.approx(np.mean(each)) and 0.5 < value < 1
    far = [1 - pearson(a, b) for a, b in zip(true, recon, strict=True)]
    np.testing.assert_allclose(metrics.correlation_distance_per_image(true, recon), far, atol=1e-12)


def test_the_two_conventions_of_distractors_are_told_apart(pictures, generator):
    true = torch.tensor([[1.0, 0, 0, 0], [1.0, 0.1, 0, 0], [0, 0, 1.0, 0]])
    recon = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    worded = metrics.two_way_per_image(true, recon, distractors="reconstructions")
    assert worded.tolist() == [0.5, 0.5, 1.0]  # both are told the same, so neither is lower
    judge = {"CLIP": lambda x: x[:, :, :8, :8].flatten(1)}
    noisy = (pictures + torch.rand(pictures.shape, generator=generator)) / 2
    for how in metrics.DISTRACTORS:
        expected = metrics.two_way_per_image(
            judge["CLIP"](pictures), judge["CLIP"](noisy), distractors=how
        )
        found = metrics.evaluate(noisy, pictures, judge, size=32, distractors=how)["CLIP"]
        assert found.per_image.tolist() == expected.tolist()
    for line in (metrics.two_way_per_image, lambda *a, **k: metrics.evaluate(*a, {}, **k)):
        with pytest.raises(ValueError, match="distractors 'people': choose one of images, recon"):
            line(noisy, pictures, distractors="people")


def test_scores_do_not_depend_on_how_many_pictures_a_judge_sees_at_once(generator):
    coarse = torch.rand(40, 3, 8, 8, generator=generator)
    seen = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1)
    recon = (0.7 * seen + 0.3 * torch.rand(seen.shape, generator=generator)).clamp(0, 1)
    judges = encoders.judges()
    one, seven, thousand = (
        metrics.evaluate(recon, seen, judges, size=64, through=72, batch=n) for n in (1, 7, 1000)
    )
    assert list(one) == ["PixCorr", "SSIM", *metrics.TWO_WAY, *metrics.DISTANCE]
    for name, score in one.items():
        for other in (seven[name], thousand[name]):
            assert other.value == pytest.approx(score.value, abs=1e-6), name
            np.testing.assert_allclose(other.per_image, score.per_image, atol=1e-6)


def test_ssim_is_the_specified_call_of_scikit_image_at_full_size():
    a, b = (metrics.resize(GOLDEN[f"pixcorr.{x}"], 425)[:3].permute(0, 2, 3, 1) for x in "ab")
    pairs = zip(rgb2gray(a.double().numpy()), rgb2gray(b.double().numpy()), strict=True)
    expected = [
        structural_similarity(
            recon, image, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=1.0,
        )
        for recon, image in pairs
    ]  # fmt: skip
    ours = metrics.ssim_per_image(GOLDEN["pixcorr.a"][:3], GOLDEN["pixcorr.b"][:3])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_pictures_are_scored_as_if_all_had_been_resized_before(generator):
    recon, seen = (torch.rand(5, 3, n, n, generator=generator) for n in (40, 56))
    streamed = metrics.evaluate(recon, seen, judges(), through=48, size=64, batch=2)
    before = metrics.evaluate(
        metrics.resize(recon, 48), metrics.resize(seen, 48), judges(), size=64
    )
    for name, score in before.items():
        np.testing.assert_allclose(streamed[name].per_image, score.per_image, atol=1e-6)
        assert streamed[name].chance == pytest.approx(score.chance, abs=1e-6)


def test_features_that_are_not_numbers_are_named_too(generator):
    true, recon = (torch.randn(6, 9, generator=generator) for _ in range(2))
    true[4, 2] = torch.inf
    for score in (metrics.two_way_per_image, metrics.correlation_distance_per_image):
        with pytest.raises(ValueError, match=r"^seen picture 4 \(counted[^\n]+infinite features"):
            score(true, recon)


def test_large_but_finite_numbers_are_no_mistake():
    huge = torch.tensor([[3e38, 3e38, 1.0], [-3e38, -3e38, 2.0]])
    assert metrics.two_way_per_image(huge, huge).tolist() == [1.0, 1.0]
