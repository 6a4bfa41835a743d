"""SDXL at full size on paper, and a small one of the same classes in numbers, from both layouts."""

import json
import socket

import pytest
import torch
from safetensors.torch import save_file

from mindeye2_lite import refine, sdxl
from mindeye2_lite.unclip import conditioned

PROMPTS = ["a red car on a street", "a dog"]
WIDTHS = {"hidden_act": "gelu", "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL = {
    "unet": sdxl.SIZES["unet"]
    | {
        "sample_size": 8,
        "block_out_channels": [16, 32, 32],
        "norm_num_groups": 8,
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [2, 4, 4],
        "cross_attention_dim": 24 + 32,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    },
    "vae": sdxl.SIZES["vae"]
    | {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 8, "layers_per_block": 1},
    "text_encoder": WIDTHS | {"hidden_size": 24, "intermediate_size": 96, "projection_dim": 24},
    "text_encoder_2": WIDTHS | {"hidden_size": 32, "intermediate_size": 128, "projection_dim": 32},
}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No assets, an empty cache of the Hub, and whoever opens a connection fails."""

    def opened(*_, **__):
        raise AssertionError("tried the network")

    monkeypatch.setattr(socket.socket, "connect", opened)
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path / "assets"))
    monkeypatch.delenv("MINDEYE2_LITE_DOWNLOAD", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def open_clip_text():
    """open_clip's own text tower of the small size: what the file's second tower was cut from."""
    from open_clip.model import CLIP

    with torch.random.fork_rng():
        torch.manual_seed(0)
        eye = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
        words = {"width": 32, "heads": 2, "layers": 3, "vocab_size": 49408, "context_length": 77}
        return CLIP(32, eye, words).eval()


@pytest.fixture(scope="module")
def parts(open_clip_text):
    """Small random parts; the second text tower is open_clip's."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = {name: part.eval() for name, part in sdxl.build(SMALL).items()}
    return made


@pytest.fixture(scope="module")
def checkpoint(parts, open_clip_text, tmp_path_factory):
    """The same parts as one file under SDXL's original names."""
    state = {f"model.diffusion_model.{k}": v for k, v in original_unet(parts["unet"]).items()}
    state |= {f"first_stage_model.{k}": v for k, v in original_vae(parts["vae"]).items()}
    for key, value in parts["text_encoder"].state_dict().items():
        key = key.removeprefix("text_model.")
        state[f"conditioner.embedders.0.transformer.text_model.{key}"] = value
    for key, value in open_clip_text.state_dict().items():
        if not key.startswith("visual."):
            state[f"conditioner.embedders.1.model.{key}"] = value
    path = tmp_path_factory.mktemp("file") / "some_sdxl.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def original_unet(unet) -> dict:
    """The UNet's weights under the names of the original code, by the rules of the reference."""
    heads = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    for b in range(3):
        for r in range(2):
            heads[f"down_blocks.{b}.resnets.{r}"] = f"input_blocks.{1 + 3 * b + r}.0"
            heads[f"down_blocks.{b}.attentions.{r}"] = f"input_blocks.{1 + 3 * b + r}.1"
        heads[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{3 + 3 * b}.0.op"
        for r in range(3):
            heads[f"up_blocks.{b}.resnets.{r}"] = f"output_blocks.{3 * b + r}.0"
            heads[f"up_blocks.{b}.attentions.{r}"] = f"output_blocks.{3 * b + r}.1"
        heads[f"up_blocks.{b}.upsamplers.0.conv"] = f"output_blocks.{2 + 3 * b}.2.conv"
    inside = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    found = {}
    for key, value in unet.state_dict().items():
        (head,) = [h for h in heads if key.startswith(h + ".")]
        tail = key.removeprefix(head + ".")
        if ".resnets." in key:
            part, _, kind = tail.rpartition(".")
            tail = f"{inside[part]}.{kind}"
        found[f"{heads[head]}.{tail}"] = value
    return found


def original_vae(vae) -> dict:
    """The VAE's weights under the names of the original code."""
    names = {
        "conv_norm_out": "norm_out", "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
        "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
        "conv_shortcut": "nin_shortcut", "downsamplers.0.conv": "downsample.conv",
        "upsamplers.0.conv": "upsample.conv",
    }  # fmt: skip
    found = {}
    for key, value in vae.state_dict().items():
        for i in range(4):
            key = key.replace(f"down_blocks.{i}.", f"down.{i}.")
            key = key.replace(f"up_blocks.{i}.", f"up.{3 - i}.")
        if ".mid_block." not in key:
            key = key.replace(".resnets.", ".block.")
        for ours, theirs in names.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        if ".attn_1." in key and value.ndim == 2:
            value = value[:, :, None, None]
        found[key] = value
    return found


# -- full size ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return sdxl.build()


def test_the_full_size_parts_have_sdxls_parameter_counts(full):
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in full.items()}
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


def test_a_call_at_1024_pixels_goes_through_the_full_size_unet(full):
    pooled = torch.empty(2, 1280, device="meta")
    denoise = conditioned(full["unet"], sdxl.SIZE_IDS, pooled)
    noisy = torch.empty(2, 4, 128, 128, device="meta")
    steps = torch.empty(2, dtype=torch.long, device="meta")
    with torch.no_grad():
        noise = denoise(noisy, steps, torch.empty(2, 77, 2048, device="meta"))
    assert noise.shape == (2, 4, 128, 128) and len(sdxl.SIZE_IDS) == 6


def test_both_full_size_towers_give_2048_per_word_and_1280_pooled(full, monkeypatch):
    ids = torch.empty(2, 77, dtype=torch.long, device="meta")
    monkeypatch.setattr(sdxl, "word_ids", lambda prompts, context: ids)
    words, pooled = sdxl.SdxlText(full["text_encoder"], full["text_encoder_2"])(PROMPTS)
    assert words.shape == (2, 77, 2048) and pooled.shape == (2, 1280)


def test_768_pixels_are_96_latents_of_the_full_size_vae(full):
    pictures = torch.empty(1, 3, 768, 768, device="meta")
    latents = full["vae"].encode(pictures).latent_dist.mode()
    assert latents.shape == (1, 4, 96, 96)
    assert full["vae"].decode(latents).sample.shape == pictures.shape


# -- words ----------------------------------------------------------------------------------------


def test_word_pieces_are_clips_with_marks_and_zeros_after():
    ids = sdxl.word_ids(["a dog", "word " * 200])
    assert ids[0, :5].tolist() == [49406, 320, 1929, 49407, 0] and not ids[0, 4:].any()
    assert ids.shape == (2, 77) and ids[1, -1] == 49407


def test_the_large_tower_gives_what_open_clip_gives(checkpoint, open_clip_text):
    loaded = sdxl.from_file(checkpoint, sizes=SMALL)
    words, pooled = sdxl.SdxlText(loaded["text_encoder"], loaded["text_encoder_2"])(PROMPTS)
    caught = []
    block = open_clip_text.transformer.resblocks[-2]
    hook = block.register_forward_hook(lambda _, __, out: caught.append(out))
    expected = open_clip_text.encode_text(sdxl.word_ids(PROMPTS))
    hook.remove()
    torch.testing.assert_close(words[..., 24:], caught[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


def test_the_small_tower_sees_the_end_mark_where_the_large_one_sees_zeros(parts):
    seen = {}

    def keep(name):
        return lambda _, args, kwargs: seen.update({name: (args or [kwargs["input_ids"]])[0]})

    towers = {name: parts[name] for name in ("text_encoder", "text_encoder_2")}
    hooks = [t.register_forward_pre_hook(keep(n), with_kwargs=True) for n, t in towers.items()]
    words, _ = sdxl.SdxlText(*towers.values())(["a dog"])
    for hook in hooks:
        hook.remove()
    assert set(seen["text_encoder"][0, 3:].tolist()) == {49407}
    assert set(seen["text_encoder_2"][0, 4:].tolist()) == {0}
    expected = parts["text_encoder"](seen["text_encoder"], output_hidden_states=True)
    torch.testing.assert_close(words[..., :24], expected.hidden_states[2])  # 3 layers: 0 to 3


# -- weights --------------------------------------------------------------------------------------


def test_one_file_under_the_original_names_gives_the_same_network(parts, checkpoint):
    loaded = sdxl.from_file(checkpoint, sizes=SMALL)
    for name in ("unet", "vae", "text_encoder"):
        state = loaded[name].state_dict()
        for key, value in parts[name].state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=f"{name}.{key}")


def test_a_folder_of_diffusers_gives_the_same_network(parts, tmp_path):
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    loaded = sdxl.from_folder(tmp_path)
    for name, part in parts.items():
        state = loaded[name].state_dict()
        for key, value in part.state_dict().items():
            assert torch.equal(state[key], value), f"{name}.{key}"


def first(part) -> float:
    return next(part.parameters()).flatten()[0].item()


def test_half_precision_is_read_from_its_own_files_and_the_vae_never(parts, tmp_path):
    import copy

    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
        other = copy.deepcopy(part)
        next(other.parameters()).data.flatten()[0] = 7.0  # to tell them apart
        other.half().save_pretrained(tmp_path / name, variant="fp16")
    full, half = sdxl.from_folder(tmp_path), sdxl.from_folder(tmp_path, torch.float16)
    for name in parts:
        assert first(full[name]) == first(parts[name]) != 7, name
        assert (first(half[name]) == 7) == (name != "vae"), name


def test_where_there_are_only_halves_these_are_read(parts, tmp_path):
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name, variant="fp16")
    assert first(sdxl.from_folder(tmp_path)["vae"]) == first(parts["vae"])


def test_a_file_that_is_cut_short_costs_one_line(checkpoint, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cut.safetensors cannot be read") as error:
        sdxl.from_file(cut, sizes=SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("gone", ["model.diffusion_model.out.2", "conditioner.embedders.1"])
def test_a_file_that_lacks_a_part_is_refused_in_one_line(checkpoint, tmp_path, gone):
    from safetensors.torch import load_file

    kept = {k: v for k, v in load_file(checkpoint).items() if not k.startswith(gone)}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="part.safetensors is not a whole SDXL") as error:
        sdxl.from_file(tmp_path / "part.safetensors", sizes=SMALL)
    assert "\n" not in str(error.value)


def test_without_any_weights_one_line_says_which_file_is_expected_where(tmp_path):
    with pytest.raises(FileNotFoundError, match="zavychromaxl_v30.safetensors") as error:
        refine.load("sdxl")
    assert "\n" not in str(error.value) and str(tmp_path / "assets") in str(error.value)
    with pytest.raises(FileNotFoundError, match="'sdxl-turbo': there is no such file or folder"):
        refine.load("sdxl-turbo")


# -- the refiner ----------------------------------------------------------------------------------


@pytest.fixture
def small(parts):
    """A refiner of small parts that is told the true sizes but works at 32 pixels."""
    import dataclasses

    words = sdxl.SdxlText(parts["text_encoder"], parts["text_encoder_2"])
    made = sdxl.refiner(parts, words)
    return dataclasses.replace(made, size_ids=(32, 32, 0, 0, 64, 64), through=16)


def refined(refiner, pictures, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = {"generator": generator, "batch": 2, "progress": False}
    return refine.refine(refiner, pictures, PROMPTS, **both)


def test_one_picture_at_a_time_as_released_unless_asked_for_more(small, monkeypatch):
    counts, euler = [], refine.euler

    def counted(denoiser, noisy, *rest, **how):
        counts.append(len(noisy))
        return euler(denoiser, noisy, *rest, **how)

    monkeypatch.setattr(refine, "euler", counted)
    generator = torch.Generator().manual_seed(0)
    refine.refine(small, torch.rand(2, 3, 32, 32), PROMPTS, generator=generator, progress=False)
    assert counts == [1, 1]


def test_refining_is_the_released_recipe_step_by_step(parts, small):
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    found = refined(small, pictures)
    generator = torch.Generator().manual_seed(0)
    resize = torch.nn.functional.interpolate
    seen = resize(resize(pictures, 16, mode="bilinear"), 32, mode="bilinear")
    posterior = parts["vae"].encode(2 * seen - 1).latent_dist
    z = 0.13025 * posterior.sample(generator)
    levels = refine.sigmas()[torch.arange(479, 0, -40)].tolist() + [0.0]
    x = z + levels[0] * torch.randn(z.shape, generator=generator)
    towers = sdxl.SdxlText(parts["text_encoder"], parts["text_encoder_2"])
    words, pooled = towers([sdxl.NEGATIVE] * 2 + PROMPTS)
    sizes = torch.tensor([[32.0, 32, 0, 0, 64, 64]]).repeat(4, 1)
    extra = {"text_embeds": pooled, "time_ids": sizes}
    for t, sigma, following in zip(range(479, 0, -40), levels, levels[1:], strict=False):
        scaled = torch.cat([x, x]) / (sigma**2 + 1) ** 0.5
        with torch.no_grad():
            noise = parts["unet"](scaled, t, words, added_cond_kwargs=extra).sample
        away, towards = noise.chunk(2)
        x = x + (following - sigma) * (away + 5 * (towards - away))
    with torch.no_grad():
        expected = (parts["vae"].decode(x / 0.13025).sample + 1) / 2
    torch.testing.assert_close(found, expected.clamp(0, 1), rtol=1e-3, atol=1e-3)


def test_the_negative_prompt_goes_through_the_checkpoints_own_towers(parts, small):
    import dataclasses

    heard = []

    def other(prompts):
        heard.append(prompts)
        return small.text(prompts)

    refined(dataclasses.replace(small, negative_text=other), torch.rand(2, 3, 32, 32))
    assert heard == [[sdxl.NEGATIVE] * 2]
    assert sdxl.NEGATIVE.startswith("painting, extra") and sdxl.NEGATIVE.endswith("legs, anime")


def test_half_weights_refine_to_about_the_same_picture(parts, small):
    import copy
    import dataclasses

    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    half = copy.deepcopy(parts["unet"]).to(torch.bfloat16)
    again = refined(dataclasses.replace(small, unet=half), pictures)
    assert again.dtype == torch.float32
    assert 0 < (again - refined(small, pictures)).abs().mean() < 0.02


def test_the_configuration_files_need_no_network(tmp_path):
    sdxl._write_sizes(tmp_path, sdxl.SIZES)
    unet = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert unet["_class_name"] == "UNet2DConditionModel" and unet["cross_attention_dim"] == 2048


def test_the_vae_decodes_one_picture_after_the_other(parts, small):
    counts = []
    hook = parts["vae"].decoder.register_forward_pre_hook(lambda _, x: counts.append(len(x[0])))
    small.vae.decode(torch.zeros(3, 4, 4, 4))
    hook.remove()
    assert counts == [1, 1, 1]
