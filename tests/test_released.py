"""The real MindEye2: its checkpoints load, run no code of theirs, and give the released numbers.

No released weights were at hand. Proof are the official classes' outputs for small random weights
(`golden/`), the official lists of names and shapes, and full-size models without memory (`meta`).
"""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mindeye2_lite import captions, released, unclip
from mindeye2_lite.config import Config
from mindeye2_lite.losses import (
    Mix,
    bimixco_loss,
    low_level_contrastive_loss,
    soft_clip_loss,
    soft_clip_temperatures,
)
from mindeye2_lite.model import MindEye2
from mindeye2_lite.prior import NoiseSchedule
from mindeye2_lite.refine import SKIPPED, STEPS

GOLDEN = Path(__file__).parent / "golden"
VALUES = load_file(GOLDEN / "values.safetensors")
VOXELS = dict(enumerate((15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386), start=1))
FULL_SIZE = [
    ("paper_subject_1", Config.paper(), (1,)),
    ("paper_subjects_2_to_8", Config.paper(), tuple(range(2, 9))),
    ("colab_subjects_2_to_8", Config.colab(), tuple(range(2, 9))),
]

Shapes = dict[str, tuple[int, ...]]


def released_keys() -> dict[str, tuple[int, Shapes]]:
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


def golden_weights() -> dict[str, Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


def shapes_of(state: dict[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items()}


def assert_within(found: Tensor, golden: Tensor, distance: float) -> None:
    torch.testing.assert_close(found, golden.to(found.dtype), atol=distance, rtol=0)


# ---- every number of a small released model ----------------------------------------------------
# In double precision, so that it is the released code's rounding that is measured and not ours.


@pytest.fixture(scope="module")
def model() -> MindEye2:
    model = MindEye2.from_released(GOLDEN / "weights.safetensors", subjects=(3, 5))
    return model.double().eval().requires_grad_(False)


def voxels_of(subject: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return VALUES[f"voxels.{(3, 5).index(subject)}"].squeeze(1).to(dtype)


def prior_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return VALUES["prior.noisy"].to(dtype), VALUES["prior.t"], VALUES["backbone"].to(dtype)


def test_the_ridge_maps_are_the_released_ones(model):
    latents = torch.cat([model.ridge(voxels_of(s), s) for s in model.subjects])
    assert_within(latents, VALUES["ridge"].squeeze(1), 1e-5)


@pytest.mark.parametrize(
    ("field", "golden"),
    [
        ("tokens", "backbone"),
        ("retrieval", "clip_voxels"),
        ("low_level", "blur_latent"),
        ("low_level_features", "blur_aux"),
    ],
)
def test_everything_said_about_the_voxels_is_what_the_released_model_says(model, field, golden):
    outputs = [getattr(model(voxels_of(s), s), field) for s in model.subjects]
    assert_within(torch.cat(outputs), VALUES[golden], 1e-5)


def test_the_prior_computes_what_the_released_one_computes(model):
    assert_within(model.prior(*prior_inputs()), VALUES["prior.out"], 1e-4)


def test_hiding_everything_gives_the_released_null_answer(model):
    nothing = torch.zeros(6, dtype=torch.bool)
    found = model.prior.net(*prior_inputs(), nothing, nothing)
    assert_within(found, VALUES["prior.out_all_null"], 1e-4)


def test_guidance_is_the_released_guidance(model):
    found = model.prior(*prior_inputs(), guidance_scale=3.0)
    assert_within(found, VALUES["prior.out_scale3"], 1e-4)


def test_in_single_precision_the_numbers_are_the_same_but_for_rounding():
    model = MindEye2.from_released(GOLDEN / "weights.safetensors", subjects=(3, 5)).eval()
    out = model(voxels_of(5, torch.float32), 5)
    close = {"atol": 5e-5, "rtol": 1e-4}
    for found, golden in zip(
        out, ("backbone", "clip_voxels", "blur_latent", "blur_aux"), strict=True
    ):
        torch.testing.assert_close(found, VALUES[golden][3:], **close)
    inputs = prior_inputs(torch.float32)
    torch.testing.assert_close(model.prior(*inputs), VALUES["prior.out"], **close)


# ---- the prior's schedule, steps and loss ------------------------------------------------------


def test_the_schedule_is_the_released_one_to_the_last_buffer():
    ours, theirs = NoiseSchedule().state_dict(), golden_weights()
    assert len(ours) == 13
    for name, buffer in ours.items():
        expected = theirs[f"diffusion_prior.noise_scheduler.{name}"]
        torch.testing.assert_close(buffer, expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "steps", "calls"), [("ddim20", 20, 19), ("ddpm100", None, 100), ("ddpm100", 100, 100)]
)
def test_the_times_are_those_that_the_released_sampler_visits(name, steps, calls):
    times = NoiseSchedule().times(steps)
    assert times == [*VALUES[f"{name}.t"].tolist(), -1] and len(times) == calls + 1


@pytest.mark.parametrize("name", ["ddim20", "ddpm100"])
def test_every_step_is_the_released_step_given_its_input_and_noise(model, name):
    x, noises = VALUES[f"{name}.x"].double(), VALUES[f"{name}.noises"].double()
    torch.testing.assert_close(x[0], noises[0])
    ends, noises = [*x[1:], VALUES[f"{name}.out"]], [*noises[1:], torch.zeros_like(x[0])]
    times, tokens = [*VALUES[f"{name}.t"].tolist(), -1], VALUES["backbone"][:2].double()
    for i, (end, noise) in enumerate(zip(ends, noises[: len(x)], strict=True)):
        walk = x[i], times[i], times[i + 1], tokens, noise
        after, predicted = model.prior.step(*walk, every_time=name == "ddpm100")
        assert_within(predicted, VALUES[f"{name}.x0"][i], 1e-4)
        assert_within(after, end, 1e-4)


@pytest.mark.parametrize("name", ["ddim20", "ddpm100"])
def test_given_the_released_prediction_a_step_is_exact(name):
    schedule, times = NoiseSchedule().double(), [*VALUES[f"{name}.t"].tolist(), -1]
    x, seen = VALUES[f"{name}.x"].double(), VALUES[f"{name}.x0"].double()
    for i, noise in enumerate(VALUES[f"{name}.noises"][1 : len(x)].double()):
        if name == "ddim20":
            found = schedule.ddim_step(x[i], seen[i], times[i], times[i + 1], noise)
        else:
            found = schedule.ddpm_step(x[i], seen[i], times[i], noise)
        torch.testing.assert_close(found, x[i + 1], atol=1e-6, rtol=1e-6)


def test_the_prior_s_training_loss_is_the_released_loss(model):
    target, noise = VALUES["prior_loss.target"].double(), VALUES["prior_loss.noise"].double()
    _, times, tokens = prior_inputs()
    noisy = model.prior.noise_scheduler.add_noise(target, times, noise)
    predicted = model.prior(noisy, times, tokens)
    assert_within(predicted, VALUES["prior_loss.pred"], 1e-4)
    assert_within((predicted - target).square().mean(), VALUES["prior_loss.loss"], 1e-6)


# ---- losses, converter, sizes and loops of the other stages ------------------------------------

EXACT = {"atol": 1e-6, "rtol": 1e-6}


def loss_inputs(*names: str) -> list[Tensor]:
    return [VALUES[f"loss.{name}"] for name in names]


def test_mixing_is_the_released_mixing():
    mixed = Mix(*loss_inputs("partner", "share")).apply(VALUES["loss.voxels"].squeeze(1))
    torch.testing.assert_close(mixed, VALUES["loss.voxels_mixed"].squeeze(1), **EXACT)


def test_bimixco_is_the_released_loss_where_no_trial_is_its_own_partner():
    mix = Mix(*loss_inputs("partner", "share"))
    loss = bimixco_loss(*loss_inputs("brain", "image"), mix, 0.006)
    torch.testing.assert_close(loss, VALUES["loss.bimixco_t006"], **EXACT)


def test_soft_clip_is_the_released_loss():
    loss = soft_clip_loss(*loss_inputs("brain", "image"), 0.005)
    torch.testing.assert_close(loss, VALUES["loss.softclip_t005"], **EXACT)


def test_the_low_level_loss_is_the_released_loss():
    loss = low_level_contrastive_loss(*loss_inputs("brain", "image", "aug"), 0.2)
    torch.testing.assert_close(loss, VALUES["loss.softcont_t2"], **EXACT)


def test_the_temperatures_are_the_released_ones():
    expected = VALUES["loss.softclip_temperatures"]
    torch.testing.assert_close(soft_clip_temperatures(101), expected, **EXACT)


def test_the_caption_converter_is_the_released_one():
    converter = captions.Converter((4, 5), (16, 8))
    state = {k.removeprefix("converter."): v for k, v in VALUES.items() if "converter.l" in k}
    converter.load_state_dict(state)
    torch.testing.assert_close(converter(VALUES["converter.x"]), VALUES["converter.y"], **EXACT)


def test_sizes_are_embedded_as_in_the_released_unclip():
    with torch.device("meta"):
        embed = unclip.build_unet("mini-unclip").add_time_proj
    embed.num_channels = 256  # SDXL's width
    found = embed(torch.tensor([768, 768, 0, 0])).flatten()[None]
    torch.testing.assert_close(found, VALUES["size_vector_768_0"], **EXACT)


def test_the_thousand_noise_levels_of_unclip_are_the_released_ones():
    torch.testing.assert_close(unclip.sigmas(), VALUES["sigmas_1000_ascending"], **EXACT)


def toy(noisy: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """The network around which the reference ran its loops."""
    mixed = torch.einsum("oc,bchw->bohw", VALUES["euler.W"], noisy)
    return mixed + condition.mean(dim=(1, 2))[:, None, None, None] + t[:, None, None, None] / 5000


def walk(loop: str, times: Tensor) -> Tensor:
    """The loop from its start to its end, after the times and levels are seen to be released."""
    levels = torch.cat([unclip.sigmas()[times], torch.zeros(1)])
    assert torch.equal(times, VALUES[f"{loop}.timesteps"])
    torch.testing.assert_close(levels, VALUES[f"{loop}.sigmas"], **EXACT)
    noise, highest = VALUES["euler.noise"], levels[0]
    if loop == "euler":
        noise, highest = noise + unclip.NOISE_OFFSET * VALUES["euler.offset"], unclip.sigmas()[-1]
    start = VALUES["euler.z"] + noise * highest
    if loop == "refine":
        torch.testing.assert_close(start, VALUES["refine.start"], **EXACT)
    return unclip.euler(toy, start, times, VALUES["euler.cond"], VALUES["euler.uncond"])


@pytest.mark.parametrize("loop", ["euler", "refine"])
def test_both_euler_loops_visit_the_released_times_and_end_where_they_ended(loop):
    times = {"euler": unclip.timesteps(38), "refine": unclip.timesteps(STEPS)[SKIPPED:]}[loop]
    torch.testing.assert_close(walk(loop, times), VALUES[f"{loop}.out"], atol=0, rtol=1e-5)


# ---- any size ----------------------------------------------------------------------------------


def official_shapes(
    voxels: list[int],
    *,
    hidden: int,
    tokens: int,
    dim: int,
    blocks: int = 4,
    depth: int = 6,
    dim_head: int = 52,
    low_level: bool = True,
    **_,
) -> Shapes:
    """The official names and shapes for any size, in the order of the released files."""
    small = released_keys()["small"][1]
    shapes = {f"ridge.linears.{i}.weight": (hidden, v) for i, v in enumerate(voxels)}
    shapes |= {f"ridge.linears.{i}.bias": (hidden,) for i in range(len(voxels))}
    for mixers, width in (("mixer_blocks1", hidden), ("mixer_blocks2", 1)):
        for i in range(blocks):
            shapes |= _norm(f"backbone.{mixers}.{i}.0", width)
            for layer in ("1.0", "1.3"):
                shapes |= _linear(f"backbone.{mixers}.{i}.{layer}", width, width)
    shapes |= _linear("backbone.backbone_linear", hidden, tokens * dim)
    for i in (0, 3, 6):
        shapes |= _norm(f"backbone.clip_proj.{i}", dim)
        shapes |= _linear(f"backbone.clip_proj.{i + 2}", dim, dim)
    if low_level:
        head = ("backbone.bnorm", "backbone.bupsampler", "backbone.b_maps_projector")
        shapes |= {name: shape for name, shape in small.items() if name.startswith(head)}
        shapes |= _linear("backbone.blin1", hidden, 3136)
    schedule = "diffusion_prior.noise_scheduler."
    shapes |= {name: (100,) for name in small if name.startswith(schedule)}
    return shapes | _prior_shapes(tokens, dim, depth, dim_head)


def _prior_shapes(tokens: int, dim: int, depth: int, dim_head: int) -> Shapes:
    net, heads = "diffusion_prior.net", dim // dim_head
    tables = ("learned_query", "null_brain_embeds", "null_image_embed")
    shapes = {f"{net}.{table}": (tokens, dim) for table in tables}
    for place, sizes in (
        ("0.0", (dim, 2 * dim)),
        ("1.0", (2 * dim, 2 * dim)),
        ("2", (2 * dim, dim)),
    ):
        shapes |= _linear(f"{net}.to_time_embeds.0.1.net.{place}", *sizes)
    transformer = f"{net}.causal_transformer"
    shapes[f"{transformer}.rel_pos_bias.relative_attention_bias.weight"] = (32, heads)
    per_layer = {
        "0.null_kv": (2, dim_head),
        "0.norm.g": (dim,),
        "0.to_q.weight": (heads * dim_head, dim),
        "0.to_kv.weight": (2 * dim_head, dim),
        "0.rotary_emb.freqs": (min(16, dim_head // 2),),
        "0.to_out.0.weight": (dim, heads * dim_head),
        "0.to_out.1.g": (dim,),
        "1.0.g": (dim,),
        "1.1.weight": (8 * dim, dim),
        "1.5.weight": (dim, 4 * dim),
    }
    for i in range(depth):
        shapes |= {f"{transformer}.layers.{i}.{name}": s for name, s in per_layer.items()}
    return shapes | {
        f"{transformer}.norm.g": (dim,),
        f"{transformer}.project_out.weight": (dim, dim),
    }


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


SMALL = {"hidden": 32, "tokens": 4, "dim": 16, "blocks": 2, "dim_head": 8}


@pytest.mark.parametrize(
    ("name", "voxels", "sizes"),
    [
        ("small", [20, 30], SMALL),
        ("small_no_low_level", [20], SMALL | {"low_level": False}),
        *((name, [VOXELS[s] for s in who], vars(config)) for name, config, who in FULL_SIZE),
    ],
)
def test_the_official_lists_follow_from_the_sizes(name, voxels, sizes):
    assert official_shapes(voxels, **sizes) == released_keys()[name][1]


def drawn(seed: int, subjects: int, low_level: bool) -> tuple[dict, dict[str, Tensor]]:
    """Random sizes, and random weights of these sizes under the official names."""
    draw = random.Random(f"{seed} {subjects} {low_level}")
    dim_head = 2 * draw.randint(2, 22)
    sizes = {
        "voxels": [draw.randint(3, 60) for _ in range(subjects)],
        "hidden": draw.randint(5, 70),
        "tokens": draw.randint(1, 9),
        "dim": dim_head * draw.randint(1, 3),
        "blocks": draw.randint(1, 6),
        "depth": draw.randint(1, 8),
        "dim_head": dim_head,
    }
    shapes = official_shapes(**sizes, low_level=low_level)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    freqs = [name for name in weights if name.endswith("rotary_emb.freqs")]
    return sizes, weights | dict.fromkeys(freqs, weights[freqs[0]])  # one tensor, many names


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subjects", [1, 7])
@pytest.mark.parametrize("low_level", [True, False], ids=["low level", "no low level"])
def test_weights_of_any_size_load_strictly_and_run(seed, subjects, low_level):
    sizes, weights = drawn(seed, subjects, low_level)
    model = MindEye2.from_released(weights).eval().requires_grad_(False)
    assert shapes_of(model.state_dict()) == shapes_of(weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for subject, voxels in enumerate(sizes["voxels"]):
        out = model(torch.randn(2, voxels), subject)
        assert out.tokens.shape == (2, sizes["tokens"], sizes["dim"])
        assert (out.low_level is None) != low_level
    times = torch.zeros(2, dtype=torch.long)
    assert model.prior(out.tokens, times, out.tokens).shape == out.tokens.shape


@pytest.mark.parametrize(("name", "config", "subjects"), FULL_SIZE)
def test_full_size_models_have_the_released_names_shapes_and_counts(name, config, subjects):
    count, shapes = released_keys()[name]
    with torch.device("meta"):
        model = MindEye2.from_config(config, {s: VOXELS[s] for s in subjects})
    assert list(shapes_of(model.state_dict()).items()) == list(shapes.items())
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_paper_s_model_of_subject_1_has_249_entries_and_2_227_294_844_parameters():
    count, shapes = released_keys()["paper_subject_1"]
    assert (len(shapes), count) == (249, 2_227_294_844)


@pytest.mark.parametrize(("name", "config", "subjects"), FULL_SIZE)
def test_a_full_size_file_opens_and_its_sizes_are_read_off(name, config, subjects, tmp_path):
    count, shapes = released_keys()[name]
    one = torch.zeros(1)  # every weight a view of one zero: a small file of full-size weights
    state = {key: one.expand(shape) for key, shape in shapes.items()}
    torch.save({"epoch": 149, "model_state_dict": state}, tmp_path / "last.pth")
    opened, _ = released.weights(tmp_path / "last.pth")
    assert shapes_of(opened) == shapes
    model = MindEye2.from_released({k: v.to("meta") for k, v in opened.items()}, subjects)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.subjects == subjects and model.backbone.kind == "released"


# ---- files -------------------------------------------------------------------------------------


def test_the_released_weights_load_strictly_and_export_unchanged(tmp_path):
    weights = golden_weights()
    torch.save({"model_state_dict": weights}, tmp_path / "last.pth")
    path = MindEye2.from_released(tmp_path / "last.pth", (2, 7)).save(tmp_path / "m.safetensors")
    exported = load_file(path)
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[key], weights[key].float()) for key in weights)
    again = MindEye2.from_released(path)
    assert again.subjects == (2, 7)
    assert all(torch.equal(again.state_dict()[key], exported[key]) for key in exported)


def test_the_small_released_model_has_its_names_and_count_with_and_without_low_level_head():
    for name, drop in (("small", ()), ("small_no_low_level", ("backbone.b", "ridge.linears.1."))):
        count, shapes = released_keys()[name]
        weights = {
            k: v
            for k, v in golden_weights().items()
            if not k.startswith(drop or "-") or k.startswith("backbone.backbone_linear")
        }
        model = MindEye2.from_released(weights)
        assert shapes_of(model.state_dict()) == shapes
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_ddp_and_compile_put_before_the_names_goes(prefix):
    weights = golden_weights()
    wrapped = {prefix + name: value for name, value in weights.items()}
    inside = {
        name.replace("backbone.", "backbone._orig_mod.", 1): weights[name] for name in weights
    }
    for named in (wrapped, inside):
        assert MindEye2.from_released(named).state_dict().keys() == weights.keys()
    with pytest.raises(ValueError, match="^these weights hold some names twice[^\n]*$"):
        MindEye2.from_released(weights | wrapped)


def test_the_model_is_its_own_and_neither_the_file_nor_the_state_dict_changes(tmp_path):
    weights = {name: value.float() for name, value in golden_weights().items()}
    torch.save(weights, tmp_path / "bare.pth")
    before = (tmp_path / "bare.pth").read_bytes()
    for source in (weights, tmp_path / "bare.pth"):
        for parameter in MindEye2.from_released(source).parameters():
            parameter.data.zero_()
    assert all(torch.equal(weights[k], v.float()) for k, v in golden_weights().items())
    assert (tmp_path / "bare.pth").read_bytes() == before


def test_weights_without_ridge_maps_give_a_model_that_knows_nobody_yet():
    shared = {k: v for k, v in golden_weights().items() if not k.startswith("ridge")}
    model = MindEye2.from_released(shared)
    assert model.subjects == ()
    with pytest.raises(
        ValueError, match=r"^no ridge map for subject 1: [^\n]* knows nobody \(fine"
    ):
        model(torch.randn(2, 25), subject=1)
    tuned = MindEye2.fine_tune_from(model, subject=1, num_voxels=25)
    assert tuned(torch.randn(2, 25), subject=1).tokens.shape == (2, 4, 16)


def test_a_wrong_subject_is_told_which_ones_the_weights_hold():
    model = MindEye2.from_released(golden_weights())
    known = r"this model knows 0 \(20 voxels\), 1 \(30 voxels\)$"
    with pytest.raises(ValueError, match=f"^no ridge map for subject 5: {known}"):
        model(torch.randn(2, 20), subject=5)


def test_ridge_maps_that_a_file_lacks_leave_the_others_their_places():
    weights = {k: v for k, v in golden_weights().items() if not k.startswith("ridge.linears.0.")}
    model = MindEye2.from_released(weights)
    assert model.subjects == (1,)
    assert torch.equal(model.ridge.linear(1).weight, weights["ridge.linears.1.weight"].float())
    assert MindEye2.from_released(weights, subjects=(7,)).subjects == (7,)


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("backbone.clip_proj.5.bias", r"1 weights do not fit[^\n]*clip_proj.5.bias"),
        ("backbone.backbone_linear.weight", "these are not the weights of a MindEye2: no "),
        ("ridge.linears.1.weight", "these are not the weights of a MindEye2: no "),
    ],
)
def test_weights_that_do_not_fit_are_named_in_one_line(missing, complaint):
    weights = golden_weights()
    del weights[missing]
    with pytest.raises(ValueError, match=f"^{complaint}[^\n]*$"):
        MindEye2.from_released(weights)


def test_subjects_that_are_not_as_many_as_the_ridge_maps_are_refused():
    with pytest.raises(ValueError, match="^the weights hold 2 ridge maps [^\n]*$"):
        MindEye2.from_released(golden_weights(), subjects=(1,))


@pytest.mark.parametrize(
    "content", [{"something": 3}, {"model_state_dict": None}, [1, 2], torch.zeros(3), {3: 4}]
)
def test_a_file_of_something_else_is_no_mindeye2(content, tmp_path):
    torch.save(content, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="^these are not the weights of a MindEye2: [^\n]*$"):
        MindEye2.from_released(tmp_path / "last.pth")


def test_diffusers_euler_visits_the_released_steps_and_ends_where_the_reference_ends():
    scheduler = unclip.build_scheduler("EulerDiscreteScheduler", 38)
    assert torch.equal(scheduler.timesteps.long(), VALUES["euler.timesteps"])
    torch.testing.assert_close(scheduler.sigmas, VALUES["euler.sigmas"], rtol=1e-5, atol=1e-6)
    noise = VALUES["euler.noise"] + unclip.NOISE_OFFSET * VALUES["euler.offset"]
    start = VALUES["euler.z"] + noise * unclip.sigmas()[-1]
    conditions = VALUES["euler.cond"], VALUES["euler.uncond"]
    found = unclip.scheduled(toy, start, scheduler, *conditions, generator=torch.Generator())
    torch.testing.assert_close(found, VALUES["euler.out"], rtol=1e-4, atol=1e-4)
