"""A miniature can be made again by one command, goes on after a kill, and never saw a cohort."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch

from mindeye2_lite import encoders, paths, scenes, synthetic, unclip
from mindeye2_lite import training_miniatures as training

SCENES = 200


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A cache folder with 200 training scenes in it; they are painted once for this file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINDEYE2_LITE_CACHE", str(folder))
        training.training_pictures(SCENES, scenes.TRAINING_SEED, workers=1)
    return folder


@pytest.fixture
def workshop(drawn, tmp_path, monkeypatch):
    """A copy of the package's weights to write into, and batches of eight."""
    shutil.copytree(paths.PACKAGE / "weights", tmp_path / "package" / "weights")
    shutil.copytree(drawn, tmp_path / "cache")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "package")
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))
    recipes = {k: dataclasses.replace(r, batch=8) for k, r in training.recipes().items()}
    monkeypatch.setattr(training, "recipes", lambda: recipes)
    return tmp_path


def train(name: str, **how):
    return training.train(
        name, **{"steps": 2, "scene_count": SCENES, "device": "cpu", "progress": False} | how
    )


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- the whole command ----------------------------------------------------------------------------


def test_two_steps_make_a_file_that_loads_and_a_line_in_the_manifest(workshop):
    before = encoders.manifest()
    network = train("mini-vae", seed=3)
    entry = encoders.manifest()["mini-vae"]
    assert entry["sha256"] != before["mini-vae"]["sha256"]
    assert entry["bytes"] == paths.weights("mini-vae").stat().st_size
    made = entry["made"]["mini-vae"]
    assert (made["steps"], made["scenes"], made["seed"]) == (2, SCENES, 3)
    assert made["command"] == "mindeye2-lite miniatures mini-vae"
    loaded = encoders.build_vae()
    loaded.load_state_dict(encoders.load_weights("mini-vae"))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert not list(workshop.rglob("*.part"))


def test_a_judge_takes_its_place_beside_the_other_judges(workshop):
    before = encoders.load_weights("mini-judges")
    train("alex")
    after = encoders.load_weights("mini-judges")
    assert after.keys() == before.keys()
    changed = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert changed == {"alex"}


def test_a_miniature_says_which_one_it_needs_first(workshop):
    paths.weights("mini-vae").unlink()
    with pytest.raises(FileNotFoundError, match="mindeye2-lite miniatures mini-vae"):
        train("mini-sdxl")


@pytest.mark.parametrize("name", ["mini-L", "mini-sdxl", "mini-unclip", "mini-git", "swav"])
def test_every_kind_of_recipe_takes_a_step_and_changes_its_network(name, workshop):
    recipe = training.recipes()[name]
    data = training.training_pictures(SCENES, scenes.TRAINING_SEED)
    few = training.Pictures(data.images[:16], data.words[:16], data.labels[:16])
    network = recipe.build()
    before = copy.deepcopy(network)
    run = training.Run(recipe, network, 2, float("inf"), seed=0)
    loss = run.one(few, 0.0)
    assert torch.isfinite(loss) and not same(before, network)


# -- going on -------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the power cord."""


def test_a_killed_run_goes_on_to_the_last_bit(workshop, monkeypatch):
    whole = train("alex", steps=4)
    checkpoint = training._checkpoint("alex", 0)
    checkpoint.unlink()
    one = training.Run.one

    def one_until_killed(run, data, done):
        if run.step == 2:
            run.save(checkpoint)
            raise Killed
        return one(run, data, done)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.Run, "one", one_until_killed)
        train("alex", steps=4)
    assert same(train("alex", steps=4), whole)


def test_the_average_is_shipped_where_there_is_one(workshop):
    recipe = dataclasses.replace(training.recipes()["alex"], average=0.9)
    data = training.training_pictures(SCENES, scenes.TRAINING_SEED)
    run = training.Run(recipe, recipe.build(), 3, float("inf"), seed=0)
    for _ in range(3):
        run.one(data, 0.0)
        run.step += 1
    assert run.averaged is not run.network and not same(run.averaged, run.network)
    plain = training.Run(dataclasses.replace(recipe, average=0.0), recipe.build(), 3, 1.0, seed=0)
    assert plain.averaged is plain.network


def test_a_loss_that_is_not_finite_stops_with_the_step(workshop):
    recipe = training.recipes()["alex"]
    data = training.training_pictures(SCENES, scenes.TRAINING_SEED)
    network = recipe.build()
    network.head.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the loss is nan at step 0"):
        training.Run(recipe, network, 2, float("inf"), seed=0).one(data, 0.0)


# -- where they start and what they see -----------------------------------------------------------


def test_unclip_starts_from_sdxl_in_all_but_the_keys_and_values_of_cross_attention():
    started, source = training.unclip_from_sdxl().state_dict(), encoders.load_weights("mini-sdxl")
    assert started.keys() == source.keys()
    fresh = {key for key in started if ".attn2.to_k" in key or ".attn2.to_v" in key}
    assert fresh
    cut = set()
    for key, value in started.items():
        if key in fresh:
            assert not torch.equal(value, source[key]), key
        elif value.shape == source[key].shape:
            assert torch.equal(value, source[key]), key
        else:
            cut.add(key)
    assert cut == {"add_embedding.linear_1.weight"}, "the size part of its labels"
    width = unclip.UNETS["mini-unclip"]["projection_class_embeddings_input_dim"]
    key = "add_embedding.linear_1.weight"
    assert torch.equal(started[key], source[key][:, :width])


def test_held_out_scenes_are_no_training_scenes_and_neither_are_in_a_cohort(drawn, monkeypatch):
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(drawn))
    seen = training.training_pictures(SCENES, scenes.TRAINING_SEED).images
    held_out = training.training_pictures(50, training.HELD_OUT_SEED, workers=1).images
    cohort = torch.from_numpy(scenes.render(scenes.sample(50, seed=0))).permute(0, 3, 1, 2)
    flat = {
        name: {picture.numpy().tobytes() for picture in pictures}
        for name, pictures in (("seen", seen), ("held out", held_out), ("cohort", cohort))
    }
    assert not flat["seen"] & flat["held out"]
    assert not (flat["seen"] | flat["held out"]) & flat["cohort"]
    for seed in (scenes.TRAINING_SEED, training.HELD_OUT_SEED):
        with pytest.raises(ValueError):
            synthetic.write_cohort(drawn / "none", seed=seed, progress=False)


def test_training_pictures_are_painted_once_and_carry_words_and_labels(workshop, monkeypatch):
    def paints(*_, **__):
        raise AssertionError("painted again")

    monkeypatch.setattr(training, "_draw_scenes", paints)
    data = training.training_pictures(SCENES, scenes.TRAINING_SEED)
    assert data.images.shape == (SCENES, 3, 64, 64) and data.images.dtype == torch.uint8
    assert data.words.shape == (SCENES, 5, encoders.CONTEXT)
    first = scenes.sample(1, scenes.TRAINING_SEED)[0]
    assert scenes.KINDS[data.labels[0, 0]] == first.kind
    assert scenes.COLORS[data.labels[0, 1]] == first.color
    told = encoders.tokenizer().decode_batch(data.words[0].tolist())
    assert told == scenes.captions(first)


def test_a_share_carries_wilsons_interval_and_a_mean_a_normal_one():
    found = training._share(torch.tensor([True] * 9 + [False]).numpy(), chance=0.5)
    assert found["value"] == 0.9 and found["n"] == 10 and found["chance"] == 0.5
    assert 0.59 < found["low"] < 0.6 and 0.98 < found["high"] < 0.99
    assert json.dumps(found)
    mean = training._mean([1.0, 2.0, 3.0])
    assert mean["value"] == 2.0 and round(mean["high"] - 2, 3) == round(1.96 / 3**0.5, 3)


class Elsewhere(torch.Tensor):
    """A tensor on a GPU, as far as numpy is concerned: it has to be fetched first."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_what_is_measured_on_a_gpu_can_be_averaged():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert training._mean(values.as_subclass(Elsewhere), "dB") == training._mean(values, "dB")
    assert training._mean(values)["value"] == 3
