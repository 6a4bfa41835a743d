"""What a training step needs is computed from the model itself, and moves the right way."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from test_train import TINY

from mindeye2_lite import assets, cli, plan, step_memory
from mindeye2_lite.config import Config
from mindeye2_lite.hardware import UNITS, Hardware
from mindeye2_lite.losses import low_level_contrastive_loss
from mindeye2_lite.model import MindEye2

CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"
OTHERS = {s: v for s, v in assets.VOXELS.items() if s != 1}
SIZES = {"hidden": 256, "dim": 64, "tokens": 16, "latent_size": 16, "prior_depth": 2}
SMALL = replace(TINY, **SIZES, batch=8, max_steps=None)
ONE = ((1, 500),)  # as in `planned`: a step that was counted is not counted again


def counted(config: Config, subjects: dict[int, int]) -> dict[str, int]:
    with torch.device("meta"):
        return plan.parameters(MindEye2.from_config(config, subjects))


def step(hardware: Hardware, config: Config = SMALL, each: int = 8, **how) -> plan.Need:
    return plan.need(config, ONE, each, hardware, **how)


# -- parameters: the totals that the released notebooks print -------------------------------------


def test_parameters_are_the_published_ones_in_every_part():
    paper = counted(Config.paper(), {1: 15724})
    assert paper == {
        "all": 2_227_294_844,
        "ridge": 64_409_600,
        "backbone": 1_903_020_028,
        "diffusion_prior": 259_865_216,
    }


def test_parameters_of_pretraining_and_of_the_light_models_are_the_published_ones():
    assert counted(Config.paper(), OTHERS)["all"] == 2_575_262_332
    light = counted(Config.colab(), {1: 15724})
    assert (light["all"], light["backbone"]) == (729_327_896, 453_360_280)
    assert counted(Config.colab(), OTHERS)["all"] == 816_319_768


# -- memory ---------------------------------------------------------------------------------------


def test_weights_gradients_and_states_follow_from_the_parameters():
    with torch.device("meta"):
        model = MindEye2.from_config(SMALL, dict(ONE))
    trained = 4e-9 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    need = step(Hardware("fp32"))
    assert need.gradients == pytest.approx(trained)
    assert need.optimizer == pytest.approx(2 * trained)
    assert need.weights > need.gradients  # frozen mixers are weights without a gradient
    assert need.gpu == pytest.approx(need.weights + 3 * trained + need.activations + plan.OVERHEAD)


def test_the_peak_is_that_of_a_step_with_real_numbers():
    """The same count, with tensors that exist instead of fake ones."""
    expected = step_memory.peak(SMALL, ONE, 4, Hardware("fp32"))
    real = step_memory.peak.__wrapped__  # past the cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_memory, "fake", lambda: torch.device("cpu"))
        patch.setattr(torch, "empty", torch.zeros)
        found = real(SMALL, ONE, 4, Hardware("fp32"))
    assert found == pytest.approx(expected, rel=0.02)


def test_what_saves_memory_saves_memory():
    plain, again = (step(Hardware("bf16", checkpointing=c)) for c in (False, True))
    assert again.activations < plain.activations
    whole, cut = (step(Hardware("bf16", accumulate=n), each=32) for n in (1, 8))
    assert cut.activations < whole.activations
    eight = step(Hardware("bf16", eight_bit=True))
    assert eight.optimizer < plain.optimizer / 2 and eight.activations == plain.activations
    away = step(Hardware("bf16"), offload=True)
    assert away.gpu < plain.gpu
    bare = step(Hardware("bf16", checkpointing=True), config=replace(SMALL, low_level=False))
    assert bare.gpu < again.gpu


def test_offload_needs_the_largest_part_twice_and_the_rest_in_the_host():
    with torch.device("meta"):
        model = MindEye2.from_config(SMALL, dict(ONE))
    need, weight = step(Hardware("bf16"), offload=True), model.backbone.backbone_linear.weight
    unit = 4e-9 * plan.parameters_of(model.backbone)
    frozen = 4e-9 * sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)
    assert need.start == pytest.approx(unit + 4e-9 * weight.numel())
    assert need.layer == pytest.approx(2 * unit - frozen)
    assert need.host == pytest.approx(need.weights + need.gradients + need.optimizer)
    assert step(Hardware("bf16")).host == 0
    late = replace(need, start=1000.0)
    assert late.gpu == 1000 + plan.OVERHEAD


def test_a_card_without_bf16_gets_a_row_of_its_own(planned):
    full, eight = (planned.needs[n] for n in (6, 7))
    assert [n.hardware.precision for n in planned.needs].count("fp32") == 3
    assert full.hardware == Hardware("fp32", checkpointing=True)
    assert eight.hardware == Hardware("fp32", checkpointing=True, eight_bit=True)
    card = replace(planned, gpu_gb=(full.gpu + eight.gpu) / 2)
    assert f"On a GPU without bf16 (T4, V100): {eight.name}." in plan.report(card)
    small = plan.report(replace(planned, gpu_gb=0.5))
    assert "On a GPU without bf16 (T4, V100): nothing of this." in small


def test_what_all_gpus_compare_is_counted_on_each(planned):
    n, rows = 600, {}
    with step_memory.fake(), step_memory.Living() as living:
        for name in ("student", "teacher", "augmented"):
            rows[name] = torch.empty(n, 64, requires_grad=name == "student")
        before = living.now
        low_level_contrastive_loss(**rows).backward()
    assert (living.peak - before) / (4 * n**2) == pytest.approx(plan.MATRICES, abs=0.2)
    # 8 GPUs with 42 trials each of 49 places, as in pretraining
    assert plan._compared(Config.paper(), 8 * 42) == pytest.approx(7.6, abs=0.05)
    said = f"On 8 GPUs, each compares low-level places of all their trials: {0:.1f}."
    assert said in plan.report(planned)


def test_more_trials_and_wider_models_need_more():
    assert step(Hardware("fp32"), each=4).gpu < step(Hardware("fp32"), each=8).gpu
    wider = replace(SMALL, hidden=512)
    assert step(Hardware("fp32")).gpu < step(Hardware("fp32"), config=wider).gpu


def test_a_plan_is_for_the_people_that_are_trained_on():
    assert plan._subjects(1, pretrain=False) == {1: 15724}
    assert plan._subjects(1, pretrain=True) == OTHERS and len(OTHERS) == 7


@pytest.fixture(scope="module")
def planned() -> plan.Planned:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(assets.VOXELS, *ONE[0])
        return plan.plan(SMALL, gpu_gb=16, sessions=2)


def test_a_plan_counts_steps_and_disk(planned):
    assert planned.subjects == dict(ONE) and planned.batch == 8
    assert planned.steps == 6 * (16 * 2 // 8)
    weights = 4e-9 * planned.parameters["all"]
    assert planned.disk["model"] == pytest.approx(weights)
    twice = ("checkpoint while training", "the same again while it is written")
    for name in twice:
        assert planned.disk[name] == pytest.approx(weights + 8e-9 * planned.trained)


def test_voxels_are_in_memory_and_targets_only_on_disk(planned):
    assert planned.host == pytest.approx(4e-9 * 2 * 16 * 500)
    numbers = 2 * 16 * (16 * 64 + 4 * 16 * 16 + 2 * 16 * SMALL.aux_dim)
    twice = [planned.disk[k] for k in (plan.TARGETS, "the same again while they are computed")]
    assert twice == pytest.approx([2e-9 * numbers] * 2)


def test_a_larger_card_never_needs_more_switches(planned):
    first = []
    for size in (0.1, *sorted(need.gpu for need in planned.needs), 80):
        fits = replace(planned, gpu_gb=size).fits
        first.append(len(planned.needs) if fits is None else planned.needs.index(fits))
    assert first == sorted(first, reverse=True)
    assert first[0] == len(planned.needs) and first[-1] == 0


def test_the_report_says_what_it_is_worth_and_what_to_type(planned):
    said = plan.report(planned)
    assert "not yet measured on a GPU" in said
    assert f"{planned.parameters['all']:,}" in said
    assert "Fits into 16 GB: fp32. Type: mindeye2-lite train" in said
    assert "Nothing here fits" in plan.report(replace(planned, gpu_gb=0.5))


def test_the_command_that_is_named_can_be_typed(planned):
    for need in planned.needs:
        words = plan.command(planned, need).partition(" train ")[2].split()
        options = cli.parser().parse_args(["train", *words])
        assert options.precision == need.hardware.precision
        assert options.accumulate == need.hardware.accumulate
        assert options.checkpointing == need.hardware.checkpointing
        assert options.eight_bit == need.hardware.eight_bit
        assert (options.subject, options.sessions, options.pretrain) == (1, 2, False)


def test_the_command_names_those_that_were_planned_for(planned):
    for who, expected in (
        ((3, None, False), (3, None, False)),
        ((3, 2, False), (3, 2, False)),
        ((2, None, True), (2, None, True)),
        ((2, 1, True), (2, None, True)),  # pretraining takes all sessions
    ):
        line = plan.command(replace(planned, who=plan._who(*who)), planned.needs[0])
        options = cli.parser().parse_args(line.split()[1:])
        assert (options.subject, options.sessions, options.pretrain) == expected


@pytest.mark.parametrize("line", ["--subject 9", "--sessions 41", "--gpu-gb 0"])
def test_a_plan_that_cannot_be_costs_one_line(line, capsys):
    assert cli.main(["plan", *line.split()]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mindeye2-lite: ") and said.count("\n") == 1


# -- configurations for accelerate ----------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_every_configuration(path):
    from accelerate.commands.config.config_args import load_config_from_file

    settings = load_config_from_file(str(path))
    assert settings.mixed_precision == "bf16"
    said = yaml.safe_load(path.read_text())
    assert settings.num_processes == said["num_processes"]
    if said["distributed_type"] == "FSDP":
        pieces = said["fsdp_config"]
        assert pieces["fsdp_version"] == 2  # what the trainer knows, cut as the plan counts it
        assert pieces["fsdp_transformer_layer_cls_to_wrap"].split(",") == list(UNITS)
    assert ("FSDP" in said["distributed_type"]) == (path.stem != "one_gpu")


def test_there_is_a_configuration_for_every_shape_and_a_slurm_script():
    names = {path.name for path in CONFIGS.iterdir()}
    assert names == {
        "one_gpu.yaml", "offload.yaml", "one_node.yaml", "several_nodes.yaml", "slurm.sh"
    }  # fmt: skip
    script = (CONFIGS / "slurm.sh").read_text()
    assert "several_nodes.yaml" in script and "mindeye2_lite.cli train" in script
    assert "All nodes must share the cache folder" in script
