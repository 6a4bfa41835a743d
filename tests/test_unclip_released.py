"""The released SDXL unCLIP becomes diffusers' networks: all names, all shapes, the same numbers."""

import ast
import functools
import gzip
import os
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindeye2_lite import encoders, unclip, unclip_names, unclip_released

FOLDER = Path(__file__).parent / "golden"
LIST = gzip.decompress((FOLDER / "unclip6_to_diffusers.tsv.gz").read_bytes()).decode()
ROWS = [line.split("\t") for line in LIST.splitlines()[1:]]
VALUES = load_file(FOLDER / "unclip_values.safetensors")
MODULE = {
    "UNet2DConditionModel": "unet",
    "AutoencoderKL": "vae",
    "OpenCLIP ViT-bigG-14": "image_tower",
}
TOWER = unclip_names.PARTS["image_tower"]
SMALL = {"head_size": 16, "pixels": 32}  # what the reference's small network cannot tell


def official() -> dict[str, torch.Tensor]:
    """The reference's small network by its released names."""
    return load_file(FOLDER / "unclip_sgm.safetensors")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """The small network and a small image tower, in a file like the released one."""
    tower = encoders.build_clip("mini-L").visual.state_dict()
    others = {"denoiser.sigmas": torch.zeros(1000)}
    state = official() | {f"{TOWER}{name}": tensor for name, tensor in tower.items()} | others
    path = tmp_path_factory.mktemp("released") / "unclip6.ckpt"
    torch.save({"epoch": 0, "global_step": 110_000, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def decoder(ckpt, tmp_path_factory):
    return unclip.load_released(ckpt, out=tmp_path_factory.mktemp("out"), **SMALL)


# ---- names and sizes ---------------------------------------------------------------------------


def test_every_one_of_the_2519_released_tensors_finds_its_place():
    assert len(ROWS) == 2519
    unneeded = []
    for key, _, module, name in ROWS:
        if (found := unclip_names.target(key)) is None:
            unneeded.append(name)
        else:
            full = f"visual.{found[1]}" if found[0] == "image_tower" else found[1]
            assert (found[0], full) == (MODULE[module], name.split("  (squeeze")[0]), key
    text = ["ln_final.bias", "ln_final.weight", "logit_scale", "positional_embedding"]
    assert sorted(unneeded) == ["-", *text, "text_projection", "token_embedding.weight"]


@pytest.fixture(scope="module")
def full_size():
    """The plan of the released file, and the networks that it was checked against, on meta."""
    built, on_meta = {}, unclip_names.on_meta

    def kept(part, config):
        built[part] = on_meta(part, config)
        return built[part]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unclip_names, "on_meta", kept)
        released = {key: ast.literal_eval(shape) for key, shape, *_ in ROWS}
        return SimpleNamespace(plan=unclip_names.plan(released), **built)


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_the_full_size_networks_have_exactly_the_released_tensors(full_size):
    for part, parameters in (("unet", 2_501_272_324), ("vae", 83_653_863)):
        network = getattr(full_size, part)
        assert shapes(network) == full_size.plan.shapes[part]
        assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_image_tower_is_open_clip_s_bigg(full_size):
    import open_clip
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config("ViT-bigG-14")
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
    assert full_size.plan.shapes["image_tower"] == shapes(visual)


def test_the_full_size_unet_takes_latents_tokens_and_sizes_of_the_true_shapes(full_size):
    latents, tokens = torch.zeros(2, 4, 96, 96), torch.zeros(2, 256, 1664)
    denoiser = unclip.conditioned(full_size.unet, (768, 768, 0, 0))
    assert full_size.unet.add_embedding.linear_1.in_features == 1024
    with torch.no_grad():
        noise = denoiser(latents.to("meta"), torch.zeros(2, device="meta"), tokens.to("meta"))
    assert noise.shape == latents.shape


def test_the_full_size_vae_makes_pictures_of_768_pixels(full_size):
    with torch.no_grad():
        decoded = full_size.vae.decode(torch.zeros(1, 4, 96, 96, device="meta")).sample
    assert decoded.shape == (1, 3, 768, 768)


# ---- numbers -----------------------------------------------------------------------------------


def test_the_converted_unet_predicts_the_reference_s_noise(decoder):
    denoiser = unclip.conditioned(decoder.unet, (768, 768, 0, 0))
    with torch.no_grad():
        found = denoiser(VALUES["x"], VALUES["t"], VALUES["context"])
    torch.testing.assert_close(found, VALUES["eps"], rtol=0, atol=1e-5)


def test_the_converted_vae_encodes_and_decodes_as_the_reference(decoder):
    network = decoder.vae.network
    with torch.no_grad():
        decoded = network.decode(VALUES["vae.z"]).sample
        moments = network.encode(VALUES["vae.image"]).latent_dist.parameters
    torch.testing.assert_close(decoded, VALUES["vae.decoded"], rtol=0, atol=1e-5)
    torch.testing.assert_close(moments, VALUES["vae.moments"], rtol=0, atol=1e-5)


def test_conversion_keeps_every_number_and_its_dtype(ckpt, tmp_path):
    folder = unclip_released.convert(ckpt, tmp_path, head_size=16)
    before, levels = torch.load(ckpt, weights_only=True)["state_dict"], 3
    after = {
        part: load_file(next((folder / part).glob("*.safetensors"))) for part in unclip_names.PARTS
    }
    for key, tensor in before.items():
        if key != "denoiser.sigmas":
            part, name = unclip_names.target(key, levels)
            assert torch.equal(after[part].pop(name).flatten(), tensor.flatten())
    assert after == {"unet": {}, "vae": {}, "image_tower": {}}


def test_the_image_tower_loads_into_open_clip_strictly(ckpt, tmp_path):
    state = unclip_released.image_tower(ckpt, tmp_path, head_size=16)
    assert sorted(folder.name for folder in tmp_path.iterdir() if folder.is_dir()) == [
        "image_tower"
    ]
    visual = encoders.build_clip("mini-L").visual
    visual.load_state_dict(state, strict=True)
    key = "transformer.resblocks.0.attn.in_proj_weight"
    stored = torch.load(ckpt, weights_only=True)["state_dict"][f"{TOWER}{key}"]
    assert torch.equal(visual.state_dict()[key], stored)


def pictures(decoder: unclip.Decoder, n: int = 1, **options) -> torch.Tensor:
    tokens = torch.randn(n, 7, 24, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 3, "progress": False} | options
    return unclip.decode(decoder, tokens, generator=torch.Generator().manual_seed(1), **options)


@pytest.fixture(scope="module")
def drawn(decoder):
    """What the small network draws by default."""
    return pictures(decoder)


def test_the_converted_folder_and_a_safetensors_file_give_the_same_pictures(ckpt, drawn, tmp_path):
    save_file(torch.load(ckpt, weights_only=True)["state_dict"], tmp_path / "unclip6.safetensors")
    named = unclip.load_released(tmp_path / "unclip6.safetensors", out=tmp_path / "out", **SMALL)
    again = unclip.load_released(tmp_path / "out", pixels=32)
    assert drawn.shape == (1, 3, 32, 32)
    assert drawn.std() > 0.01
    assert torch.equal(pictures(named), drawn)
    assert torch.equal(pictures(again), drawn)


def test_without_a_folder_it_goes_below_the_cache(ckpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path))
    for said in ("converted now, 3 files", "converted earlier"):
        folder = unclip_released.convert(ckpt, head_size=16)
        assert folder.parent == tmp_path / "released"
        line = capsys.readouterr().out
        assert line.startswith("unclip6.ckpt: unet 618, vae 152, image_tower ")
        assert said in line


# ---- small cards -------------------------------------------------------------------------------


def test_one_picture_at_a_time_as_released_and_more_on_request(decoder):
    started = []
    start = unclip._start

    def noted(decoder, shape, generator):
        started.append(shape[0])
        return start(decoder, shape, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unclip, "_start", noted)
        pictures(decoder, n=3)
        pictures(decoder, n=3, batch=2)
    assert started == [1, 1, 1, 2, 1]


def test_half_precision_is_for_the_unet_alone_and_changes_little(ckpt, drawn, tmp_path):
    half = unclip.load_released(ckpt, dtype=torch.bfloat16, out=tmp_path, **SMALL)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}
    found = pictures(half)
    torch.testing.assert_close(found, drawn, rtol=0, atol=0.05)
    assert not torch.equal(found, drawn)


def test_channels_last_is_another_layout_of_the_same_network(ckpt, drawn, tmp_path):
    last = unclip.load_released(ckpt, out=tmp_path, channels_last=True, **SMALL)
    for convolution in (last.unet.conv_in, last.vae.network.encoder.conv_in):
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pictures(last), drawn, rtol=0, atol=1e-4)


def test_the_vae_decodes_tile_by_tile_if_asked(ckpt, decoder, tmp_path):
    tiled = unclip.load_released(ckpt, out=tmp_path, tiling=True, **SMALL)
    sizes = []
    tiled.vae.network.decoder.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[-1]))
    pictures(tiled, n=1)
    assert max(sizes) == decoder.side // 2
    assert len(sizes) > 1


def test_with_offloading_a_network_is_on_the_device_only_while_it_works(ckpt, tmp_path):
    spare = unclip.load_released(ckpt, "meta", out=tmp_path, offload=True, **SMALL)
    networks = {"unet": spare.unet, "vae": spare.vae.network}
    sent_away = []

    def places() -> dict[str, str]:
        return {name: next(n.parameters()).device.type for name, n in networks.items()}

    assert spare.device == torch.device("meta")
    assert places() == {"unet": "cpu", "vae": "cpu"}
    inputs = [torch.empty_like(VALUES[name], device="meta") for name in ("x", "t", "context")]
    denoiser = torch.no_grad()(unclip.conditioned(spare.unet, spare.size_ids))
    denoiser(*inputs)
    assert places() == {"unet": "meta", "vae": "cpu"}
    for working, waiting in (("vae", "unet"), ("unet", "vae")):
        before = networks[working]._hf_hook.prev_module_hook
        before.offload = functools.partial(sent_away.append, waiting)
    spare.vae.decode_raw(torch.empty(1, 4, 8, 8, device="meta"))
    assert places()["vae"] == "meta"
    assert sent_away == ["unet"]
    denoiser(*inputs)
    assert sent_away == ["unet", "vae"]


def test_offloading_changes_no_picture(ckpt, drawn, tmp_path):
    spare = unclip.load_released(ckpt, offload=True, out=tmp_path, **SMALL)
    assert torch.equal(pictures(spare), drawn)


# ---- streaming ---------------------------------------------------------------------------------

SHARD = 400_000  # numbers; the small network has 3.7 million, its largest tensor 147,456


class Reader:
    """Reads like a file, counts what it has given, and can stop in the middle."""

    def __init__(self, stop_after: int | None = None):
        self.state, self.given, self.stop_after = official(), [], stop_after
        self.alive, self.peak = [], 0

    def open(self, path: Path):
        return {key: tuple(tensor.shape) for key, tensor in self.state.items()}, self.read

    def read(self, key: str) -> torch.Tensor:
        if len(self.given) == self.stop_after:
            raise KeyboardInterrupt
        tensor = self.state[key].clone()
        self.given.append(key)
        self.alive.append(weakref.ref(tensor.untyped_storage(), self.alive.remove))
        self.held = sum(storage().nbytes() for storage in self.alive)
        self.peak = max(self.peak, self.held)
        return tensor


def converted(reader: Reader, out: Path, monkeypatch) -> Path:
    monkeypatch.setattr(unclip_released, "open_weights", reader.open)
    path = FOLDER / "unclip_sgm.safetensors"
    return unclip_released.convert(path, out, head_size=16, shard=SHARD)


def files(folder: Path) -> dict[str, dict[str, bytes]]:
    """The numbers of every shard, and the text of every other file but the lock."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"):
        text = {} if path.suffix == ".safetensors" else {"": path.read_bytes()}
        tensors = {} if text else {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        found[path.relative_to(folder).as_posix()] = text | tensors
    return found


def test_no_more_than_one_shard_is_ever_in_memory(tmp_path, monkeypatch):
    reader = Reader()
    converted(reader, tmp_path, monkeypatch)
    assert sorted(reader.given) == sorted(reader.state)
    whole = sum(tensor.nbytes for tensor in reader.state.values())
    assert SHARD < reader.peak <= 2 * SHARD < whole / 5  # two bytes a number


def test_what_was_written_before_a_stop_is_kept_and_the_rest_is_as_without_it(
    tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        converted(Reader(stop_after=300), tmp_path / "stopped", monkeypatch)
    before = files(tmp_path / "stopped")
    assert 0 < len(before) < 10
    assert all(name.endswith(".safetensors") for name in before)
    killed = tmp_path / "stopped" / "unet" / ".shard.1234.part"
    killed.write_bytes(b"what a killed process leaves")
    with pytest.raises(ValueError, match="is missing"):
        unclip.load_released(tmp_path / "stopped", pixels=32)
    again = Reader()
    converted(again, tmp_path / "stopped", monkeypatch)
    converted(Reader(), tmp_path / "whole", monkeypatch)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    kept = sum(len(tensors) for tensors in before.values())
    assert len(again.given) == len(again.state) - kept


def test_a_finished_conversion_is_not_touched_again(tmp_path, monkeypatch):
    converted(Reader(), tmp_path, monkeypatch)
    shards = list(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 10
    times = [shard.stat().st_mtime_ns for shard in shards]
    converted(Reader(stop_after=0), tmp_path, monkeypatch)
    assert [shard.stat().st_mtime_ns for shard in shards] == times


def test_a_shard_that_was_cut_or_comes_from_another_file_is_written_again(tmp_path, monkeypatch):
    converted(Reader(), tmp_path, monkeypatch)
    expected = files(tmp_path)
    cut, other = sorted(tmp_path.rglob("*.safetensors"))[:2]
    os.truncate(cut, cut.stat().st_size - 10)
    save_file(load_file(other), other, metadata={"format": "pt", "source": "another file"})
    again = Reader()
    converted(again, tmp_path, monkeypatch)
    assert files(tmp_path) == expected
    assert len(again.given) == len(load_file(cut)) + len(load_file(other))


def test_other_shards_of_the_same_part_are_cleared_away(ckpt, tmp_path):
    unclip_released.convert(ckpt, tmp_path, head_size=16, shard=SHARD)
    unclip_released.convert(ckpt, tmp_path, head_size=16)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


# ---- what is refused ---------------------------------------------------------------------------


def refusal(path: Path, out: Path, kind=ValueError, **options) -> str:
    """The one line that a file is refused with; nothing may be left behind."""
    with pytest.raises(kind) as error:
        unclip.load_released(path, out=out, **(SMALL | options))
    assert not out.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def without(*names: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in official().items() if key not in names}


CONV = "model.diffusion_model.input_blocks.0.0.weight"
BIAS = "first_stage_model.decoder.up.2.block.1.conv2.bias"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (without(CONV), "lacks tensors of the unCLIP model, among them 'conv_in.weight'"),
        (without(BIAS), "lacks 1 tensors of the vae, first decoder.up_blocks.0.resnets.1.conv2"),
        (official() | {BIAS: torch.zeros(3)}, "has the wrong size for 1 tensors of the vae"),
        (official() | {f"{CONV}.lora": torch.zeros(3)}, "has too many 1 tensors of the unet"),
        (official() | {f"{TOWER}proj": torch.zeros(3)}, "lacks 7 tensors of the image_tower"),
        ({"ridge.linears.0.weight": torch.zeros(3)}, "lacks tensors of the unCLIP model"),
    ],
)
def test_a_file_that_is_not_the_whole_model_is_refused(state, said, tmp_path):
    save_file(state, tmp_path / "file.safetensors")
    line = refusal(tmp_path / "file.safetensors", tmp_path / "out")
    assert line.startswith("file.safetensors is not the released unCLIP: it ")
    assert said in line


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_cut_short_is_refused(suffix, ckpt, tmp_path):
    path = shutil.copy(ckpt, tmp_path / "cut.ckpt")
    if suffix == ".safetensors":
        path = shutil.copy(FOLDER / "unclip_sgm.safetensors", tmp_path / "cut.safetensors")
    os.truncate(path, path.stat().st_size // 2)
    line = refusal(path, tmp_path / "out")
    assert line.startswith(f"cannot read cut{suffix} ")
    assert "is it whole?" in line or "it is cut short" in line


class Spiteful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_the_file_is_not_run_and_its_networks_are_converted(tmp_path):
    mark = tmp_path / "mark"
    torch.save({"state_dict": official(), "hook": Spiteful(mark)}, tmp_path / "odd.ckpt")
    folder = unclip_released.convert(tmp_path / "odd.ckpt", tmp_path / "out", head_size=16)
    assert {path.name for path in folder.iterdir()} >= {"unet", "vae"}
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_page_in_place_of_a_file_is_refused(content, tmp_path):
    (tmp_path / "page.ckpt").write_bytes(content)
    assert "cannot read page.ckpt" in refusal(tmp_path / "page.ckpt", tmp_path / "out")


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "other.ckpt")
    assert "holds a Tensor" in refusal(tmp_path / "other.ckpt", tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    assert "no weights file" in refusal(tmp_path / "nowhere.ckpt", tmp_path / "out")


def test_heads_that_do_not_fit_are_named(ckpt, tmp_path):
    assert "heads 64 wide" in refusal(ckpt, tmp_path / "out", head_size=64)


def test_a_disk_without_room_is_noticed_before_anything_is_written(ckpt, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "0.0 GB are free: make room" in refusal(ckpt, tmp_path / "out", kind=OSError)


def test_pictures_that_the_vae_cannot_make_are_refused(ckpt, tmp_path):
    with pytest.raises(ValueError, match="pixels is 30, which is not a multiple of the VAE's 4"):
        unclip.load_released(ckpt, out=tmp_path, head_size=16, pixels=30)


def test_a_folder_without_a_conversion_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no whole unet in .* is missing"):
        unclip.load_released(tmp_path)


def test_a_file_without_an_image_tower_says_so(tmp_path):
    with pytest.raises(ValueError, match="no whole image_tower"):
        unclip_released.image_tower(FOLDER / "unclip_sgm.safetensors", tmp_path, head_size=16)
