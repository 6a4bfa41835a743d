"""The paper's judges: its layers, sizes and normalization, from files in which no code is run.

None of the published weights are here: the networks below are filled with random numbers.
"""

import socket
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from mindeye2_lite import assets, encoders, metrics, paper_judges
from mindeye2_lite.config import Config

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EXPECTED = {  # pixels a side, numbers (spec 5.1; 184,512 is 192 maps of 31 x 31)
    "Alex(2)": (256, 184_512),
    "Alex(5)": (256, 57_600),
    "Incep": (342, 2048),
    "CLIP": (224, 768),
    "Eff": (255, 1280),
    "SwAV": (224, 2048),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of assets; whoever opens a connection fails."""

    def opened(*_, **__):
        raise AssertionError("tried the network")

    monkeypatch.setattr(socket.socket, "connect", opened)
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path))
    paper_judges.network.cache_clear()
    (tmp_path / "judges").mkdir()
    yield tmp_path / "judges"
    paper_judges.network.cache_clear()


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def randomly(build) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def pixels(size: int, images: torch.Tensor, mean, std) -> torch.Tensor:
    """What a network is shown, written down once more."""
    shown = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    return torch.stack([(shown[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


# -- layers, shapes, pixels -----------------------------------------------------------------------


@pytest.mark.parametrize("score", list(EXPECTED))
def test_each_judge_has_the_features_of_its_layer_at_full_size(score):
    name, layer, size = paper_judges.LOOKS[score]
    with torch.device("meta"):
        network = paper_judges.at_layer(paper_judges.build(name), layer)
        look = paper_judges.judge(network, size, *IMAGENET)
        assert (size, look(torch.empty(2, 3, 256, 256)).shape) == (
            EXPECTED[score][0], (2, EXPECTED[score][1])
        )  # fmt: skip


def test_the_six_scores_stand_in_the_order_of_the_paper():
    assert list(paper_judges.LOOKS) == [*metrics.TWO_WAY, *metrics.DISTANCE]


def test_alexnet_is_looked_at_after_its_second_and_fifth_relu(pictures):
    network = randomly(models.alexnet)
    shown, found = pixels(256, pictures, *IMAGENET), []
    for depth in (5, 12):  # up to and with features.4, features.11
        assert isinstance(network.features[depth - 1], nn.ReLU)
        with torch.no_grad():
            found.append(network.features[:depth](shown).flatten(1))
    for layer, expected in zip(("features.4", "features.11"), found, strict=True):
        extractor = paper_judges.at_layer(network, layer)
        torch.testing.assert_close(
            paper_judges.judge(extractor, 256, *IMAGENET)(pictures), expected
        )


def test_inception_undoes_the_normalization_as_its_published_weights_make_it(pictures):
    network = paper_judges.build("inception")  # torch's own random weights
    found = paper_judges.judge(paper_judges.at_layer(network, "avgpool"), 107, *IMAGENET)(pictures)
    assert network.transform_input and not network.training
    network.transform_input = False
    plain = create_feature_extractor(network, ["avgpool"]).eval()
    resized = F.interpolate(pictures, (107, 107), mode="bilinear")
    with torch.no_grad():
        expected = plain(2 * resized - 1)["avgpool"].flatten(1)  # [0, 1] to [-1, 1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_clip_is_openais_with_its_own_gelu_and_normalization():
    shown = []

    class Sees(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1))

        def forward(self, x):
            shown.append(x)
            return x.mean(dim=(2, 3))

    networks = {name: Sees() for name in paper_judges.FILES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_judges, "at_layer", lambda network, layer: network)
        all_of_them = paper_judges.judges(networks)
    images = torch.rand(2, 3, 96, 96)
    for look in all_of_them.values():
        look(images)
    for (score, (size, _)), seen in zip(EXPECTED.items(), shown, strict=True):
        clip = (encoders.CLIP_MEAN, encoders.CLIP_STD)
        expected = pixels(size, images, *(clip if score == "CLIP" else IMAGENET))
        torch.testing.assert_close(seen, expected)
    with torch.device("meta"):
        visual = paper_judges.build("clip")
    assert type(visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert sum(p.numel() for p in visual.parameters()) == 303_966_208


# -- files ----------------------------------------------------------------------------------------


def test_files_are_those_that_fetch_gets():
    chosen = assets.needed(Config.paper(), stages=("judging",))
    assert [asset.name for asset in chosen] == list(paper_judges.FILES.values())
    assert all(asset.folder == "judges" and not asset.under_terms for asset in chosen)


def test_a_missing_file_costs_one_line_with_the_command_that_gets_it(folder):
    with pytest.raises(FileNotFoundError) as error:
        encoders.judges("paper-judges")
    said = str(error.value)
    assert "\n" not in said and "fetch --profile paper --stages judging" in said
    assert str(folder / "alexnet-owt-7be5be79.pth") in said


def small_resnet():
    network = models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], width_per_group=4)
    network.fc = nn.Identity()
    return network


def test_swavs_file_loses_its_prefix_and_the_heads_it_was_trained_with(folder, monkeypatch):
    source = randomly(small_resnet)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    state |= {"module.prototypes.weight": torch.ones(3, 2)}
    state |= {"module.projection_head.0.weight": torch.ones(3, 2)}
    torch.save(state, folder / paper_judges.FILES["swav"])
    monkeypatch.setattr(paper_judges, "build", lambda _: small_resnet().eval())
    loaded = paper_judges.network("swav")
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(image), source(image))
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training


def test_files_without_counters_of_batches_are_read_too(folder, monkeypatch):
    source = randomly(small_resnet)
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(state, folder / paper_judges.FILES["inception"])
    monkeypatch.setattr(paper_judges, "build", lambda _: small_resnet().eval())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(paper_judges.network("inception")(image), source(image))


def test_a_file_of_another_network_is_refused_in_one_line(folder):
    torch.save({"features.0.weight": torch.ones(2, 2)}, folder / paper_judges.FILES["alexnet"])
    with pytest.raises(ValueError, match=r"does not fit AlexNet: \d+ names differ") as error:
        paper_judges.network("alexnet")
    assert "\n" not in str(error.value)


class Clip(nn.Module):
    """A module with the form of OpenAI's: an image tower and numbers beside it."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2, bias=False), nn.Flatten())
        self.visual.proj = nn.Parameter(torch.randn(36, 2).half())
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x):
        return self.visual(x) @ self.visual.proj.float()


@pytest.fixture
def program(tmp_path) -> tuple[Path, Clip]:
    clip = randomly(Clip)
    traced = torch.jit.trace(clip, torch.rand(1, 3, 4, 4))
    torch.jit.save(traced, path := tmp_path / "ViT-L-14.pt")
    return path, clip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_openais_program_gives_its_tensors_by_name_and_is_not_run(program):
    path, clip = program
    held = paper_judges.scripted(path)
    assert held.keys() == clip.state_dict().keys()
    assert all(torch.equal(held[key], value) for key, value in clip.state_dict().items())
    assert held["visual.proj"].dtype == torch.float16
    assert set(paper_judges.read("clip", path)) == {"0.weight", "proj"}
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(path.with_name("bare.pt"), "w") as bare:
        for name in whole.namelist():
            if "/code/" not in name:
                bare.writestr(name, whole.read(name))
    assert paper_judges.scripted(path.with_name("bare.pt")).keys() == held.keys()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_program_that_is_cut_short_is_refused_in_one_line(program):
    path, _ = program
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"OpenAI's file of CLIP \([^\n]+fetch --profile paper"):
        paper_judges.scripted(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"OpenAI's file of CLIP"):
        paper_judges.scripted(path)


def test_other_networks_judge_just_as_well(pictures, monkeypatch):
    """Networks are arguments: here one very small network stands for all five."""
    small = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 4, 1)).requires_grad_(False)
    monkeypatch.setattr(paper_judges, "at_layer", lambda network, layer: network)
    networks = dict.fromkeys(paper_judges.FILES, small)
    scores = metrics.evaluate(pictures, pictures, paper_judges.judges(networks), size=32)
    assert [scores[name].value for name in metrics.TWO_WAY] == [1.0] * 4
    assert [scores[name].value for name in metrics.DISTANCE] == pytest.approx([0, 0], abs=1e-6)
