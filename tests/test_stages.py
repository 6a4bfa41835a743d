"""Stages make what the pipeline makes, keep it, and go on where they were stopped."""

import dataclasses

import pytest
import torch

from mindeye2_lite import captions, encoders, nsd, pipeline, refine, sdxl, stages, unclip
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

LITE = Config.lite()
HOW = {"limit": 3, "steps": 2}


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


@pytest.fixture(scope="module")
def model_file(person, tmp_path_factory):
    model = MindEye2.from_config(LITE, {1: person.num_voxels})
    return model.save(tmp_path_factory.mktemp("model") / "model.safetensors")


def staged(person, model_file, folder, **how) -> stages.Staged:
    options = HOW | {"progress": False} | how
    return stages.Staged(model_file, person.test(), person.images, LITE, folder, **options)


@pytest.fixture(scope="module")
def run(person, model_file, tmp_path_factory):
    made = staged(person, model_file, tmp_path_factory.mktemp("kept"))
    made.everything()
    return made


def no_network(*_):
    raise AssertionError("a network was loaded")


@pytest.fixture
def no_networks(monkeypatch):
    """No stage may load anything."""
    for where, name in (
        (MindEye2, "from_released"),
        (unclip, "load"),
        (captions, "load"),
        (refine, "load"),
        (encoders, "vae"),
        (encoders, "image_encoder"),
    ):
        monkeypatch.setattr(where, name, no_network)


def same(one: pipeline.Reconstructions, other: pipeline.Reconstructions) -> bool:
    """To the last bit, the captions letter by letter."""
    parts = ((getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in parts)


def test_the_stages_make_what_the_pipeline_makes_at_once(run, person, model_file):
    model = MindEye2.from_released(model_file).eval()
    whole = pipeline.reconstruct(
        model, person.test(), person.images, LITE, progress=False, seed=0, **HOW
    )
    assert same(run.everything(), whole)


class Negatives(nsd.Images):
    """The same pictures with light and dark exchanged."""

    def __getitem__(self, ids):
        return 1 - super().__getitem__(ids)


def test_other_brains_and_other_pictures_are_kept_apart(run, person):
    test = person.test()
    brains = dataclasses.replace(test, voxels=test.voxels + 1)
    pictures = Negatives(person.images.path)
    assert dataclasses.replace(run, trials=brains).place != run.place
    assert dataclasses.replace(run, images=pictures).place != run.place
    assert dataclasses.replace(run, trials=person.test()).place == run.place


def test_pictures_by_sdxl_base_are_not_taken_for_the_released_checkpoints(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path))
    real = dataclasses.replace(run, config=dataclasses.replace(LITE, refiner="sdxl"))
    assert (run._refined, real._refined) == ("refined", "refined by base")
    (tmp_path / sdxl.CHECKPOINT).touch()
    assert real._refined == "refined"


def test_what_is_kept_is_read_back_without_any_network(run, person, model_file, no_networks):
    again = staged(person, model_file, run.folder)
    assert same(again.everything(), run.everything())


def test_every_stage_says_once_whether_it_was_kept(run, person, model_file, capsys, no_networks):
    again = staged(person, model_file, run.folder, progress=True)
    again.refined()
    again.refined()
    lines = sorted(capsys.readouterr().out.splitlines())
    names = ("blurry", "brain", "captions", "prior", "reconstruction", "refined")
    assert lines == [f"{name}: 3 kept" for name in names]


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(
    person, model_file, tmp_path, monkeypatch, capsys
):
    whole = staged(person, model_file, tmp_path / "whole", every=1).reconstruction()
    decode, drawn = unclip.decode, []

    def stops(*args, **how):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(None)
        return decode(*args, **how)

    monkeypatch.setattr(unclip, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        staged(person, model_file, tmp_path / "cut", every=1).reconstruction()
    monkeypatch.setattr(unclip, "decode", decode)
    on = staged(person, model_file, tmp_path / "cut", every=1, progress=True)
    assert torch.equal(on.reconstruction(), whole)
    assert "reconstruction: 2 kept and 1 made now" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"seed": 1}, {"limit": 2}, {"steps": 3}, {"every": 1}])
def test_other_choices_are_kept_apart(run, person, model_file, change):
    assert staged(person, model_file, run.folder, **change).place != run.place
    assert staged(person, model_file, run.folder).place == run.place


def test_another_size_of_what_is_scored_is_kept_apart_and_seen_by_the_encoder(
    run, person, model_file
):
    config = dataclasses.replace(LITE, score_size=96)
    other = dataclasses.replace(run, config=config)
    assert other.place != run.place
    expected = pipeline.encode_seen(encoders.image_encoder(), run.seen, "cpu", through=96)
    assert torch.equal(other.image_tokens(), expected)
    assert not torch.equal(other.image_tokens(), run.image_tokens())


def test_another_checkpoint_is_kept_apart(run, person, model_file, tmp_path):
    other = MindEye2.from_config(LITE, {1: person.num_voxels}, seed=1)
    other.save(tmp_path / "model.safetensors")
    assert staged(person, tmp_path / "model.safetensors", run.folder).place != run.place


def test_scores_are_those_of_the_pipeline_and_are_kept(run, person, model_file, no_networks):
    scores = run.scores()
    assert scores == pipeline.score(run.everything(), LITE)
    again = staged(person, model_file, run.folder).scores()
    assert again == scores
    assert (again["PixCorr"].per_image == scores["PixCorr"].per_image).all()


def test_retrieval_needs_no_decoder(person, model_file, tmp_path, monkeypatch):
    for where in (unclip, refine):
        monkeypatch.setattr(where, "load", no_network)
    found = staged(person, model_file, tmp_path, limit=5).retrieval()
    assert found.brain_to_image.n == 5


def test_a_network_is_let_go_when_its_stage_is_done():
    encoders.image_encoder(), encoders.vae(), captions.load()
    stages.forget()
    for loader in (encoders.image_encoder, encoders.vae, captions.load, sdxl.load):
        assert loader.cache_info().currsize == 0


def test_large_pictures_are_kept_at_256_pixels_and_small_ones_as_they_are():
    large, small = torch.rand(2, 3, 768, 768), torch.rand(2, 3, 64, 64)
    assert pipeline.no_larger(large).shape == (2, 3, 256, 256)
    assert pipeline.no_larger(small) is small


def test_a_network_is_given_few_full_size_rows_at_once():
    counts = [pipeline.at_once(torch.empty(1000, *s, device="meta")) for s in SHAPES]
    assert counts == [2048, 9, 341, 27]


SHAPES = ((16, 128), (256, 1664), (3, 64, 64), (3, 224, 224))
