"""The real frozen networks: true sizes on paper, the same classes small in numbers, files in hand.

No released weights are here; what is written to disk below has their names and random values.
"""

import dataclasses
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mindeye2_lite import encoders, paths, released_networks
from mindeye2_lite.config import Config

CACHED = (encoders.image_encoder, encoders.vae, released_networks.teacher)


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    """An empty folder of assets, an empty cache of the Hub; whoever opens a connection fails."""

    def opened(*_, **__):
        raise AssertionError("tried the network")

    monkeypatch.setattr(socket.socket, "connect", opened)
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINDEYE2_LITE_DOWNLOAD", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "assets").mkdir()
    for loader in CACHED:
        loader.cache_clear()
    yield tmp_path / "assets"
    for loader in CACHED:
        loader.cache_clear()


def randomly(build, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def small_visual():
    """bigG's image tower in small: its heads, its odd MLP ratio, 14-pixel patches."""
    from open_clip.model import CLIP

    eye = {"image_size": 56, "patch_size": 14, "width": 32, "layers": 3, "head_width": 8}
    words = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8}
    return CLIP(16, eye | {"mlp_ratio": 4.9231}, words).visual


def small_vae(name: str = ""):
    from diffusers import AutoencoderKL

    network = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, sample_size=56)
    return encoders.Vae(network, released_networks.SD_SCALE)


TEACHER = released_networks.Teacher


def small_teacher():
    return TEACHER((1, 1, 2, 1), (4, 8, 12, 16), 8)


@pytest.fixture
def visual():
    return randomly(small_visual)


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -- image tokens ---------------------------------------------------------------------------------


def test_bigg_gives_256_tokens_of_1664_at_full_size():
    with torch.device("meta"):
        encoder = encoders.ImageEncoder(released_networks.build_visual())
    tokens = encoder(torch.empty(2, 3, 224, 224, device="meta"))
    assert tokens.shape == (2, 256, 1664)
    assert sum(p.numel() for p in encoder.visual.parameters()) == 1_844_907_264
    state = encoder.visual.state_dict()
    assert len(state) == 584 and state["conv1.weight"].shape == (1664, 3, 14, 14)
    assert state["transformer.resblocks.47.mlp.c_fc.weight"].shape == (8192, 1664)


def test_tokens_are_those_that_open_clip_calls_its_tokens(visual, pictures):
    pixels = encoders.ImageEncoder(visual).preprocess(pictures)
    visual.output_tokens = True
    assert torch.equal(encoders.ImageEncoder(visual).tokens(pixels), visual(pixels)[1])


def test_tokens_do_not_depend_on_what_open_clip_is_told_to_return(visual, pictures):
    encoder = encoders.ImageEncoder(visual)
    told = []
    for visual.output_tokens in (True, False):
        told.append(encoder(pictures))
    assert torch.equal(*told) and told[0].shape == (3, 16, 32)


def test_pictures_from_zero_to_one_are_shown_as_from_a_half_to_one(visual, pictures):
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoders.CLIP_MEAN, encoders.CLIP_STD))
    shown = encoders.ImageEncoder(visual).preprocess(pictures)
    assert torch.equal(shown, ((pictures + 1) / 2 - mean) / std)
    assert 0.5 <= (shown * std + mean).min() and (shown * std + mean).max() <= 1


def test_256_pixels_are_shrunk_to_224_without_a_blur_but_768_with_one():
    big = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert encoders._without_aliases(big, 256 / 224) is big
    stripes = (torch.arange(768) % 2).float().expand(1, 3, 768, 768)
    blurred = encoders._without_aliases(stripes, 768 / 224)
    assert stripes.std() > 0.49 and blurred.std() < 0.05


def test_half_weights_compute_in_half_and_hand_out_float32(visual, pictures):
    exact = encoders.ImageEncoder(visual)(pictures)
    half = encoders.ImageEncoder(released_networks.halve(visual))(pictures)
    assert visual.conv1.weight.dtype == torch.float16 and visual.ln_post.weight.dtype == half.dtype
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)


def write_visual(path: Path, visual) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"visual.{key}": value.clone() for key, value in visual.state_dict().items()}
    save_file(state | {"logit_scale": torch.zeros(()), "text_projection": torch.ones(2, 2)}, path)


@pytest.fixture
def bigg(assets, visual, monkeypatch):
    """A small tower in the place of bigG, and its file among the assets."""
    monkeypatch.setattr(released_networks, "build_visual", lambda name: small_visual())
    write_visual(assets / "open_clip_model.safetensors", visual)
    return assets / "open_clip_model.safetensors"


def test_the_tower_is_read_from_open_clips_file(bigg, visual, pictures):
    loaded = encoders.image_encoder("ViT-bigG-14")
    assert torch.equal(loaded(pictures), encoders.ImageEncoder(visual)(pictures))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_tower_is_read_from_the_released_unclip_as_it_is(bigg, visual, pictures, assets):
    bigg.unlink()
    state = {f"conditioner.embedders.0.model.visual.{k}": v for k, v in visual.state_dict().items()}
    state["conditioner.embedders.0.model.logit_scale"] = torch.zeros(())
    torch.save({"state_dict": state}, assets / "unclip6_epoch0_step110000.ckpt")
    loaded = encoders.image_encoder("ViT-bigG-14")
    assert torch.equal(loaded(pictures), encoders.ImageEncoder(visual)(pictures))


def test_the_tower_is_read_from_the_released_unclip_taken_apart(bigg, visual, pictures, tmp_path):
    bigg.unlink()
    folder = tmp_path / "cache" / "released" / "unclip6_epoch0_step110000-12345678" / "image_tower"
    folder.mkdir(parents=True)
    state = list(visual.state_dict().items())
    for i, part in enumerate((state[:9], state[9:])):
        save_file({k: v.clone() for k, v in part}, folder / f"{i}.safetensors")
    with pytest.raises(FileNotFoundError):  # until the index says that the folder is whole
        encoders.image_encoder("ViT-bigG-14")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    loaded = encoders.image_encoder("ViT-bigG-14")
    assert torch.equal(loaded(pictures), encoders.ImageEncoder(visual)(pictures))


def test_the_tower_is_read_from_open_clips_file_in_the_hubs_cache(bigg, visual, pictures, tmp_path):
    bigg.unlink()
    folder = tmp_path / "hub" / "models--laion--CLIP-ViT-bigG-14-laion2B-39B-b160k"
    write_visual(folder / "snapshots" / "abc" / "open_clip_model.safetensors", visual)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    loaded = encoders.image_encoder("ViT-bigG-14")
    assert torch.equal(loaded(pictures), encoders.ImageEncoder(visual)(pictures))


@pytest.mark.parametrize(
    "name, load",
    [
        ("ViT-bigG-14", encoders.image_encoder),
        ("sd-image-variations-vae", encoders.vae),
        ("convnext-xl-vicregl", encoders.teacher),
    ],
)
def test_a_file_that_is_not_there_costs_one_line_that_says_which_and_where(assets, name, load):
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    assert str(assets / released_networks.FILES[name]) in one_line(error)
    assert "mindeye2-lite fetch" in str(error.value)


# -- the VAE of the blurry picture ----------------------------------------------------------------


def test_the_full_size_vae_has_the_released_count_and_latents():
    with torch.device("meta"):
        network = released_networks.build_vae().network
    assert sum(p.numel() for p in network.parameters()) == 83_653_863
    latents = network.encode(torch.empty(1, 3, 224, 224, device="meta")).latent_dist.mode()
    assert latents.shape == (1, 4, 28, 28)
    assert network.decode(latents).sample.shape == (1, 3, 224, 224)
    assert "decoder.mid_block.attentions.0.to_out.0.weight" in network.state_dict()


def test_the_vae_is_a_bare_state_dict_and_its_latents_are_the_scaled_mode(
    assets, pictures, monkeypatch
):
    made = randomly(small_vae)
    torch.save(made.network.state_dict(), assets / "sd_image_var_autoenc.pth")
    monkeypatch.setattr(released_networks, "build_vae", small_vae)
    loaded = encoders.vae("sd-image-variations-vae")
    mode = made.network.encode(2 * pictures - 1).latent_dist.mode()
    torch.testing.assert_close(loaded.encode(pictures), mode * 0.18215)
    decoded = made.network.decode(mode).sample
    torch.testing.assert_close(loaded.decode(mode * 0.18215), (decoded / 2 + 0.5).clamp(0, 1))


# -- the teacher ----------------------------------------------------------------------------------


def vicregl_names(depths: tuple[int, ...]) -> set[str]:
    """The names in the released file that the teacher needs, without `module.`."""
    layers = [f"downsample_layers.{i}.{j}" for i in range(4) for j in range(2)]
    parts = ("dwconv", "norm", "pwconv1", "pwconv2")
    layers += [f"stages.{i}.{j}.{p}" for i, n in enumerate(depths) for j in range(n) for p in parts]
    both = [f"backbone.{layer}" for layer in [*layers, "norm"]]
    both += [f"maps_projector.{i}" for i in (0, 1, 3, 4)]
    return {f"{n}.{kind}" for n in both for kind in ("weight", "bias")} | {
        "maps_projector.6.weight"
    }


def test_the_full_size_teacher_has_the_released_count_names_and_49_places():
    with torch.device("meta"):
        teacher = released_networks.Teacher()
    assert sum(p.numel() for p in teacher.parameters()) == 349_687_808
    names = map(released_networks.teacher_name, vicregl_names((3, 3, 27, 3)))
    assert set(names) == set(teacher.state_dict())
    assert teacher(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 49, 512)


def convnext(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """VICRegL's ConvNeXt and projector, from its own names."""

    def of(name: str) -> tuple[Tensor, Tensor | None]:
        return state[f"{name}.weight"], state.get(f"{name}.bias")

    def norm(x: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        weight, bias = of(name)
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def norm2d(x: Tensor, name: str) -> Tensor:
        return norm(x.permute(0, 2, 3, 1), name).permute(0, 3, 1, 2)

    for i in range(4):
        down = f"backbone.downsample_layers.{i}"
        if i == 0:
            x = norm2d(F.conv2d(x, *of(f"{down}.0"), stride=4), f"{down}.1")
        else:
            x = F.conv2d(norm2d(x, f"{down}.0"), *of(f"{down}.1"), stride=2)
        j = 0
        while f"backbone.stages.{i}.{j}.norm.weight" in state:
            block = f"backbone.stages.{i}.{j}"
            y = F.conv2d(x, *of(f"{block}.dwconv"), padding=3, groups=x.shape[1])
            y = norm(y.permute(0, 2, 3, 1), f"{block}.norm")
            y = F.linear(F.gelu(F.linear(y, *of(f"{block}.pwconv1"))), *of(f"{block}.pwconv2"))
            x, j = x + y.permute(0, 3, 1, 2), j + 1
    x = norm(x.flatten(2).transpose(1, 2), "backbone.norm")
    for i in (0, 3):
        x = norm(F.linear(x, *of(f"maps_projector.{i}")), f"maps_projector.{i + 1}", 1e-5).relu()
    return F.linear(x, *of("maps_projector.6"))


@pytest.fixture
def vicregl(assets, monkeypatch):
    """Random weights of a small teacher in a file like VICRegL's; its state under the old names."""
    own = randomly(small_teacher).state_dict()
    names = {released_networks.teacher_name(name): name for name in vicregl_names((1, 1, 2, 1))}
    generator = torch.Generator().manual_seed(1)
    state = {names[k]: 0.3 * torch.randn(v.shape, generator=generator) for k, v in own.items()}
    model = {f"module.{k}": v for k, v in state.items()}
    model["module.projector.0.weight"] = torch.zeros(2, 2)
    path = assets / released_networks.FILES["convnext-xl-vicregl"]
    torch.save({"epoch": 400, "model": model, "optimizer": {"param_groups": [{"lr": 0.1}]}}, path)
    monkeypatch.setattr(released_networks, "Teacher", small_teacher)
    return path, model, state


def test_the_teacher_computes_vicregls_features_of_pixels_normalized_as_released(vicregl, pictures):
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.228, 0.224, 0.225])[:, None, None]
    pictures = F.interpolate(pictures, 64)
    expected = convnext(vicregl[2], (pictures - mean) / std)
    assert expected.shape == (3, 4, 8) and expected.std() > 1e-3
    found = encoders.teacher("convnext-xl-vicregl")(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_teachers_file_of_another_layout_is_noticed(vicregl):
    path, model, _ = vicregl
    del model["module.backbone.norm.bias"]
    torch.save({"model": model}, path)
    with pytest.raises(
        ValueError, match=r"1 names differ, first backbone\.norm_pre\.bias"
    ) as error:
        encoders.teacher("convnext-xl-vicregl")
    assert str(path) in one_line(error)


# -- files ----------------------------------------------------------------------------------------


class Bomb:
    """Unpickled carelessly, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_file_is_not_run_and_its_tensors_are_read(tmp_path):
    path, mark = tmp_path / "odd.pth", tmp_path / "ran"
    torch.save({"weight": torch.ones(2), "other": Bomb(mark)}, path)
    assert torch.equal(released_networks.read_state(path)["weight"], torch.ones(2))
    assert not mark.exists()


def test_a_pickle_that_torch_did_not_write_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "bad.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"weight": torch.ones(2), "other": Bomb(mark)}, protocol=2))
    with pytest.raises(ValueError, match="cannot read bad.pth") as error:
        released_networks.read_state(path)
    assert one_line(error) and not mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_short_costs_one_line(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    weights = {"weight": torch.ones(1000)}
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="it is cut short") as error:
        released_networks.read_state(path)
    assert path.name in one_line(error)


def test_only_the_wanted_tensors_are_taken(tmp_path):
    weights = {"visual.a": torch.ones(1), "text.b": torch.ones(2), "visual.c": torch.ones(3)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save({"model": weights, "epoch": 1}, tmp_path / "a.pth")
    for state in (
        released_networks.read_state(tmp_path / "a.safetensors", prefix="visual."),
        released_networks.read_state(tmp_path / "a.pth", inside="model", prefix="visual."),
    ):
        assert {k: len(v) for k, v in state.items()} == {"a": 1, "c": 3}
    with pytest.raises(ValueError, match="holds no tensors named audio"):
        released_networks.read_state(tmp_path / "a.safetensors", prefix="audio.")


def test_downloads_need_leave(monkeypatch, assets):
    asked = []

    def load(source, **options):
        asked.append((source, options))

    released_networks.from_hub(load, "git-large-coco")
    monkeypatch.setenv("MINDEYE2_LITE_DOWNLOAD", "1")
    released_networks.from_hub(load, "git-large-coco")
    (assets / "git-large-coco").mkdir()
    released_networks.from_hub(load, "git-large-coco")
    assert [options["local_files_only"] for _, options in asked] == [True, False, False]
    folder = str(assets / "git-large-coco")
    assert [source for source, _ in asked] == ["microsoft/git-large-coco"] * 2 + [folder]


# -- the second view ------------------------------------------------------------------------------


def test_solarizing_shifts_and_then_inverts_what_is_bright():
    ramp = torch.linspace(0, 1, 101).expand(3, 1, 101)
    torch.manual_seed(3)
    addition, threshold = (torch.empty(()).uniform_(*b) for b in ((-0.1, 0.1), (0.4, 0.6)))
    torch.manual_seed(3)
    found = released_networks.solarize(ramp)[0, 0]
    shifted = (ramp[0, 0] + addition).clamp(0, 1)
    torch.testing.assert_close(found[shifted < threshold], shifted[shifted < threshold])
    torch.testing.assert_close(found[shifted >= threshold], 1 - shifted[shifted >= threshold])
    assert found.max() <= 0.6 + 1e-6


def test_the_second_view_is_another_one_but_always_the_same():
    pictures = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    views = released_networks.augment(pictures)
    assert torch.equal(views, released_networks.augment(pictures))
    assert torch.equal(before, torch.random.get_rng_state()), "borrows no global randomness"
    assert views.shape == pictures.shape and 0 <= views.min() and views.max() <= 1
    gray = (views[:, 0] - views[:, 1]).abs().amax(dim=(1, 2)) < 1e-6
    assert 0 < gray.sum() < 10


# -- targets --------------------------------------------------------------------------------------


class Pictures:
    """Twenty random pictures by id, in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.all = torch.rand(20, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        path.write_bytes(b"pictures")

    def __getitem__(self, ids: Tensor) -> Tensor:
        return F.interpolate(self.all[ids], 64)


@pytest.fixture
def real(bigg, vicregl, assets, monkeypatch, tmp_path):
    """Real names, small networks; and a list that grows whenever targets are computed."""
    torch.save(randomly(small_vae).network.state_dict(), assets / "sd_image_var_autoenc.pth")
    monkeypatch.setattr(released_networks, "build_vae", small_vae)
    calls, compute = [], encoders._targets_of

    def counted(*arguments):
        calls.append(len(arguments[0]))
        return compute(*arguments)

    monkeypatch.setattr(encoders, "_targets_of", counted)
    lite, paper = Config.lite(), Config.paper()
    names = {name: getattr(paper, name) for name in ("encoder", "vae", "teacher")}
    return dataclasses.replace(lite, **names), calls, Pictures(tmp_path / "images.hdf5")


def test_targets_of_the_real_networks_are_kept_batch_by_batch_as_float16(real, visual):
    config, calls, images = real
    ids = torch.tensor([7, 3, 11, 5, 3])
    made = encoders.targets(images, ids, config, batch=2, progress=False)
    again = encoders.targets(images, ids, config, batch=2, progress=False)
    assert calls == [2, 2]
    assert made.image_ids.tolist() == [3, 5, 7, 11]
    for name, value in vars(made).items():
        assert torch.equal(value, getattr(again, name)), name
        assert value.dtype == (torch.int64 if name == "image_ids" else torch.float16)
    expected = encoders.ImageEncoder(visual)(images[made.image_ids])
    torch.testing.assert_close(made.tokens.float(), expected, rtol=2e-3, atol=2e-3)
    files = [path for path in (Path(os.environ["MINDEYE2_LITE_CACHE"]) / "targets").iterdir()]
    assert [path.suffix for path in files] == [".safetensors"], "nothing else stays behind"
    assert again.tokens[-1].flatten()[-50:].all()
    with files[0].open("r+b") as file:
        file.seek(-100, os.SEEK_END)  # tokens come last
        file.write(bytes(100))
    assert not again.tokens[-1].flatten()[-50:].any(), "they are the file, not a copy of it"


def test_without_a_low_level_head_the_image_encoder_is_all_that_is_needed(real, assets):
    config, calls, images = real
    whole = encoders.targets(images, torch.arange(3), config, progress=False)
    for path in assets.glob("*.pth"):  # the VAE and the teacher
        path.unlink()
    config = dataclasses.replace(config, low_level=False)
    made = encoders.targets(images, torch.arange(3), config, progress=False)
    assert len(calls) == 2 and torch.equal(made.tokens, whole.tokens)
    assert made.latents is made.aux is made.aux_augmented is None
    assert torch.equal(made.to("cpu").tokens, made.tokens) and made.to("cpu").latents is None


def test_the_real_networks_are_given_sixteen_pictures_at_once(real, monkeypatch):
    config, _, images = real
    expected = encoders.targets(images, torch.arange(20), config, progress=False)
    given, encode = [], encoders.Vae.encode

    def counted(self, pictures):
        given.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(encoders.Vae, "encode", counted)
    for kept in paths.targets().iterdir():
        kept.unlink()
    made = encoders.targets(images, torch.arange(20), config, progress=False)
    assert given == [16, 4]
    assert torch.equal(made.aux_augmented, expected.aux_augmented)


def test_another_file_of_weights_or_of_pictures_makes_new_targets(real, bigg, assets):
    config, calls, images = real
    ids = torch.tensor([1, 2])
    encoders.targets(images, ids, config, progress=False)
    images.path.write_bytes(b"more pictures")
    encoders.targets(images, ids, config, progress=False)
    assert len(calls) == 2
    for path in (files := [bigg, *assets.glob("*.pth")]):
        os.utime(path, ns=(1, 1))  # a copy of the same
    encoders.targets(images, ids, config, progress=False)
    assert len(calls) == 2
    for path in files:
        before = released_networks.fingerprint(NAMES[path.name])
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        assert released_networks.fingerprint(NAMES[path.name]) != before


NAMES = {file: name for name, file in released_networks.FILES.items()}


def test_the_command_that_gets_a_network_names_the_stage_that_has_it():
    from mindeye2_lite import assets

    files = released_networks.FILES | {"sdxl-unclip": released_networks.UNCLIP}
    for name, stage in released_networks.FETCH.items():
        named = [a for a in assets.table() if name == a.part or files.get(name) in a.files]
        assert {a.stage for a in named} == {stage}, name
