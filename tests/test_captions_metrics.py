"""Captions are marked against the truth, beside what chance would get."""

import ast
import inspect
import shutil

import nltk
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mindeye2_lite import captions_metrics, scenes


def test_wilsons_interval_is_the_published_formula_and_stays_inside():
    n, p, z = 40, 0.9, 1.959964
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = captions_metrics.share("right", np.arange(n) < p * n)
    expected = np.array([middle - half, middle + half]) / (1 + z**2 / n)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-5)
    perfect = captions_metrics.share("right", np.ones(40))
    assert perfect.low < 0.95 and perfect.value == perfect.high == 1


def test_true_captions_are_all_right_and_shuffled_ones_are_at_chance():
    drawn = scenes.sample(400, seed=5)
    truth = {name: [getattr(s, name) for s in drawn] for name in ("kind", "color", "ground")}
    said = [dict(zip(truth, values, strict=True)) for values in zip(*truth.values(), strict=True)]
    right = captions_metrics.grade(said, truth)
    assert {score.value for score in right.values()} == {1.0}
    assert abs(right["kind"].chance - 1 / len(scenes.KINDS)) < 0.01
    order = np.random.default_rng(0).permutation(400)
    shuffled = captions_metrics.grade([said[i] for i in order], truth)
    for score in shuffled.values():
        assert score.low - 0.01 < score.chance < score.high + 0.01, score


def test_what_a_caption_leaves_out_is_wrong():
    said = [{"kind": "cat", "color": None}, {"kind": "boat", "color": "red"}]
    found = captions_metrics.grade(said, {"kind": ["cat", "boat"], "color": ["red", "red"]})
    assert [score.value for score in found.values()] == [1.0, 0.5, 0.5]
    assert found["color"].per_image.tolist() == [0, 1]


def test_captions_without_their_pictures_are_refused_in_one_line():
    with pytest.raises(ValueError, match="^1 captions but 2 true values of kind[^\n]*$"):
        captions_metrics.grade([{"kind": "cat"}], {"kind": ["cat", "boat"]})
    with pytest.raises(ValueError, match="^no answers to take the share 'right' of[^\n]*$"):
        captions_metrics.share("right", np.array([]))


# --- sentences against sentences


def write_wordnet(folder):
    """A WordNet of one synset, as NLTK's package has its files."""
    line = "00000000 06 n 02 car 0 auto 0 000 | what people drive\n"
    for kind in ("adj", "adv", "noun", "verb"):
        (folder / f"data.{kind}").write_text(line if kind == "noun" else "")
        index = "auto n 1 0 1 0 00000000\ncar n 1 0 1 0 00000000\n" if kind == "noun" else ""
        (folder / f"index.{kind}").write_text(index)
        (folder / f"{kind}.exc").write_text("")
    for name in ("cntlist.rev", "index.sense"):
        (folder / name).write_text("")
    (folder / "lexnames").write_text("".join(f"{i:02d}\tname{i}\t1\n" for i in range(45)))


def test_meteor_and_rouge_are_what_their_formulas_give_by_hand():
    # all three words match in one piece: 1 - 0.5 (1/3)^3
    assert captions_metrics.meteor("the cat sat", ["The cat sat"]) == pytest.approx(1 - 0.5 / 27)
    # two of three words, in two pieces: P = R = 2/3, penalty 0.5
    apart = captions_metrics.meteor("dog and cat", ["cat or dog"])
    assert apart == pytest.approx(2 / 3 * 0.5)
    said, written = "sand a cat", ["a cat on sand"]
    assert captions_metrics.rouge(said, written, "rouge1") == pytest.approx(6 / 7)
    assert captions_metrics.rouge(said, written, "rougeL") == pytest.approx(4 / 7)


def test_stems_count_for_meteor_and_not_for_rouge():
    assert captions_metrics.meteor("two cats", ["two cat"]) > 0.9
    assert captions_metrics.rouge("two cats", ["two cat"]) == 0.5


def test_the_best_of_several_references_counts():
    several = ["a dog runs", "a red cat"]
    assert captions_metrics.rouge("a red cat", several) == 1
    assert captions_metrics.meteor("a red cat", several) == pytest.approx(1 - 0.5 / 27)


def test_synonyms_count_where_there_is_a_wordnet_and_else_the_score_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path))
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(FileNotFoundError, match=r"^no WordNet in .*wordnet\.zip[^\n]*$"):
        captions_metrics.wordnet()
    folder = tmp_path / "nltk_data" / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    write_wordnet(folder)
    reader = captions_metrics.wordnet()
    assert captions_metrics.meteor("car", ["auto"], reader) == 0.5  # one word is one whole piece
    assert captions_metrics.meteor("car", ["auto"]) == 0
    said, written = ["car", "cat"], ["auto", "cat"]
    with_it = captions_metrics.compare(said, written, wordnet=reader)
    without = captions_metrics.compare(said, written)
    assert with_it["METEOR"].value == 0.5 and "METEOR without synonyms" not in with_it
    assert without["METEOR without synonyms"].value == 0.25 and "METEOR" not in without
    other = tmp_path / "other"
    shutil.make_archive(str(other / "corpora" / "wordnet"), "zip", folder.parent, "wordnet")
    shutil.rmtree(folder)
    packed = captions_metrics.wordnet(other)
    assert captions_metrics.meteor("car", ["auto"], packed) == 0.5


def letters(sentences):
    """A text tower: how often each letter stands there."""
    return torch.tensor([[float(s.count(c)) for c in "abcdefghij "] for s in sentences])


def test_text_similarity_is_the_cosine_and_chance_that_of_all_wrong_pairs():
    said, written = ["a bad cab", "deaf", "high"], ["a bad cab", "fade", "jig"]
    found = captions_metrics.compare(said, written, {"letters": letters})["letters"]
    cosine = F.cosine_similarity(letters(said)[:, None], letters(written)[None], dim=2).numpy()
    np.testing.assert_allclose(found.per_image, np.diag(cosine), rtol=1e-6)
    assert found.chance == pytest.approx((cosine.sum() - np.trace(cosine)) / 6, rel=1e-6)
    assert (found.n, found.name) == (3, "letters") and found.low <= found.value <= found.high
    several = [["jig", "a bad cab"], ["fade"], ["jig", "high", "fade"]]
    best = captions_metrics.compare(said, several, {"letters": letters})["letters"]
    np.testing.assert_allclose(best.per_image, [1, 1, 1])


def test_chance_compares_every_wrong_pair_where_these_are_few_and_some_where_many():
    few = captions_metrics._wrong_pairs(7, 0)
    assert sorted(few) == [(i, j) for i in range(7) for j in range(7) if i != j]
    many = captions_metrics._wrong_pairs(3000, 0)
    assert len(set(many)) == 3000 and all(i != j for i, j in many)
    assert {i for i, _ in many} == {j for _, j in many} == set(range(3000))


def test_shuffled_captions_score_what_chance_says():
    drawn = [scenes.captions(s)[0] for s in scenes.sample(30, seed=3)]
    order = np.roll(np.arange(30), 1)
    right = captions_metrics.compare(drawn, drawn)
    wrong = captions_metrics.compare([drawn[i] for i in order], drawn)
    assert right["ROUGE-L"].value == 1
    for name, found in wrong.items():
        assert found.low - 0.02 < found.chance < found.high + 0.02, found
        assert right[name].value > 3 * right[name].chance


def test_the_paper_s_three_comparisons_and_their_ratio():
    brain, image = ["a cat", "a red dog", "the sun"], ["a cat sits", "a dog", "a sun"]
    written = ["the cat sits", "a red dog", "a sun"]
    found = captions_metrics.comparisons(brain, image, written, {"letters": letters})
    assert list(found) == ["brain vs COCO", "image vs COCO", "brain vs image", "ratio"]
    direct = captions_metrics.compare(image, written)["ROUGE-1"]
    assert found["image vs COCO"]["ROUGE-1"] == direct
    for name, ratio in found["ratio"].items():
        top, ground = found["brain vs image"][name], found["image vs COCO"][name]
        assert ratio.value == pytest.approx(top.value / ground.value)
        assert ratio.per_image.mean() == pytest.approx(ratio.value)
        assert ratio.low <= ratio.value <= ratio.high
    table = captions_metrics.table(found)
    assert table.loc[("brain vs COCO", "ROUGE-1"), "n"] == 3 and len(table) == 16


def test_sentences_that_do_not_pair_up_or_are_empty_are_refused_in_one_line():
    for said, written, told in (
        (["a", "b"], ["a"], "2 captions but references of 1 pictures"),
        (["a"], ["a"], "1 captions but references of 1"),
        (["a", " "], ["a", "b"], "caption 1 is empty"),
        (["a", "b"], [["a"], []], "a reference of picture 1 is empty"),
    ):
        with pytest.raises(ValueError, match=f"^{told}[^\n]*$"):
            captions_metrics.compare(said, written)


def test_the_libraries_of_words_are_imported_only_when_they_are_needed():
    at_once = ast.parse(inspect.getsource(captions_metrics)).body
    lines = [ast.unparse(node) for node in at_once if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [line for line in lines if "nltk" in line or "rouge_score" in line]
