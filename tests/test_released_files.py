"""Checkpoints of others open without running their code, and broken ones cost one line.

The traps work: each is first shown to go off under Python's own unpickler.
"""

import enum
import io
import json
import os
import pickle
import pickletools
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindeye2_lite import released
from mindeye2_lite.model import MindEye2

GOLDEN = Path(__file__).parent / "golden"


def golden_weights() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


# ---- files that try to run code ----------------------------------------------------------------


class ByReduce:
    """Each of these, unpickled by Python's own unpickler, makes the file it is given."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class ByEval(ByReduce):
    def __reduce__(self):
        return eval, (f"open({self.marker!r}, 'w')",)


class ByState(ByReduce):
    __reduce__ = object.__reduce__

    def __setstate__(self, state):
        Path(state["marker"]).touch()


class ByNew(ByReduce):
    def __new__(cls, marker):
        Path(marker).touch()
        return super().__new__(cls)

    def __reduce__(self):
        return ByNew, (self.marker,)


class Outer:
    class ByNested(ByReduce):
        def __reduce__(self):
            return Outer.ByNested.act, (self.marker,)

        @staticmethod
        def act(marker):
            Path(marker).touch()


class ByAppend(list):
    def __init__(self, marker: Path | None = None):
        super().__init__([str(marker)] if marker else [])

    def append(self, marker):
        Path(marker).touch()

    def extend(self, markers):
        self.append(*markers)


class BySetItem(dict):
    def __init__(self, marker: Path | None = None):
        super().__init__({"marker": str(marker)} if marker else {})

    def __setitem__(self, key, marker):
        Path(marker).touch()


TRAPS = [ByReduce, ByEval, ByState, ByNew, Outer.ByNested, ByAppend, BySetItem]
FORMATS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 5": {"pickle_protocol": 5},
    "legacy protocol 5": {"_use_new_zipfile_serialization": False, "pickle_protocol": 5},
}


@pytest.mark.parametrize("saved", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_pickle_made_to_run_code_on_load_does_not_run_it(trap, saved, tmp_path):
    marker, path, weights = tmp_path / "it-ran", tmp_path / "last.pth", golden_weights()
    torch.save({"optimizer": trap(marker), "model_state_dict": weights}, path, **saved)
    marker.unlink(missing_ok=True)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the trap itself does not work"
    marker.unlink()
    content = released.read(path)
    model = MindEye2.from_released(path)
    assert not marker.exists()
    assert all(torch.equal(content["model_state_dict"][k], v) for k, v in weights.items())
    assert model.subjects == (0, 1)


def test_a_module_that_a_pickle_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "booby.py").write_text("class Trap: pass")
    monkeypatch.syspath_prepend(tmp_path)
    import booby

    torch.save({"optimizer": booby.Trap(), "lrs": [1e-5]}, tmp_path / "last.pth")
    monkeypatch.delitem(sys.modules, "booby")
    content = released.read(tmp_path / "last.pth")
    assert "booby" not in sys.modules
    assert content["lrs"] == [1e-5] and isinstance(content["optimizer"], released.Inert)


def zipped(instructions: bytes, path: Path) -> Path:
    """A checkpoint of hand-written instructions."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", instructions)
        archive.writestr("archive/byteorder", sys.byteorder)
    return path


@pytest.mark.parametrize(
    "instructions",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch {}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {}'\no.",  # OBJ
        b"cposix\nsystem\n(S'touch {}'\ntR.",
        b'cbuiltins\neval\n(cbuiltins\nstr\n(S\'open("{}", "w")\'\ntRtR.',
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'touch {}'\ntR.",  # STACK_GLOBAL
        b"cbuiltins\ngetattr\n(cos\n__dict__\nS'get'\ntR(S'system'\ntR(S'touch {}'\ntR.",
        b"cfunctools\npartial\n(cos\nsystem\nS'touch {}'\ntR(tR.",
    ],
)
def test_hand_written_instructions_run_nothing(instructions, tmp_path):
    marker = tmp_path / "it-ran"
    instructions = instructions.replace(b"{}", str(marker).encode())
    pickle.loads(instructions)
    assert marker.exists(), "the trap itself does not work"
    marker.unlink()
    content = released.read(zipped(instructions, tmp_path / "last.pth"))
    assert not marker.exists() and isinstance(content, released.Inert)


@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict"])
def test_a_pickle_cannot_change_what_it_names(name, tmp_path):
    before = [dict(vars(kind)) for kind in released.ADMITTED.values() if isinstance(kind, type)]
    change = b"(N(dS'__doc__'\nS'changed'\nstb."  # BUILD of attributes
    released.read(zipped(f"c{name}\n".encode() + change, tmp_path / "last.pth"))
    after = [dict(vars(kind)) for kind in released.ADMITTED.values() if isinstance(kind, type)]
    assert before == after and "changed" not in str(torch._utils._rebuild_tensor_v2.__doc__)


# ---- files as they come ------------------------------------------------------------------------


def test_a_pickle_with_deepspeed_s_classes_loads(tmp_path, monkeypatch):
    scaler = type("LossScaler", (), {"__module__": "deepspeed.runtime.fp16.loss_scaler"})
    stage = enum.IntEnum("ZeroStageEnum", {"gradients": 2}, module="deepspeed.runtime.zero.config")
    for kind in (scaler, stage):
        names = kind.__module__.split(".")
        for i in range(1, len(names) + 1):
            name = ".".join(names[:i])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        setattr(sys.modules[kind.__module__], kind.__name__, kind)
    loss_scaler = scaler()
    loss_scaler.cur_scale, loss_scaler.parts = 65536.0, [torch.ones(3)]
    saved = {
        "epoch": 149,
        "model_state_dict": torch.nn.ParameterDict(
            {"a": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)}
        ).state_dict(),
        "optimizer_state_dict": {
            "loss_scaler": loss_scaler,
            "zero_stage": stage(2),
            "groups": [[]],
        },
        "lr_scheduler": {"total_steps": 4650, "anneal": {"cos"}, "last": (1, None, True)},
        "train_losses": [1.5, 0.25],
        "lrs": [1.2e-5] * 3,
    }
    torch.save(saved, tmp_path / "last.pth")
    monkeypatch.undo()
    with pytest.raises(ModuleNotFoundError, match="deepspeed"):
        torch.load(tmp_path / "last.pth", weights_only=False)
    content = released.read(tmp_path / "last.pth")
    optimizer = content.pop("optimizer_state_dict")
    assert isinstance(optimizer["loss_scaler"], released.Inert) and optimizer["groups"] == [[]]
    assert isinstance(optimizer["zero_stage"], released.Inert)
    weights, expected = content.pop("model_state_dict"), saved.pop("model_state_dict")
    assert torch.equal(weights["a"], expected["a"]) and weights.keys() == expected.keys()
    assert content == {k: v for k, v in saved.items() if k != "optimizer_state_dict"}


@pytest.mark.parametrize("saved", FORMATS.values(), ids=FORMATS)
def test_tensors_of_every_kind_come_back_as_torch_reads_them(saved, tmp_path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {str(kind): whole.to(kind) for kind in (*kinds, torch.int32, torch.int16, torch.int8)}
    tensors |= {"a view": whole[1:, ::2].T, "the same": whole, "one number": torch.tensor(7.0)}
    tensors |= {"truth": whole > 5, "none": torch.zeros(0, 3), "odd": torch.ones(3).to(torch.int8)}
    torch.save(tensors | {"last": torch.ones(1, dtype=torch.float64)}, tmp_path / "x.pt", **saved)
    found = released.read(tmp_path / "x.pt")
    expected = torch.load(tmp_path / "x.pt", weights_only=False)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    found["the same"][1, 0] = -1
    assert found["a view"][0, 0] == -1  # they share their numbers, as when they were saved


@pytest.mark.parametrize("kept", [0, 3, 0.01, 0.5, 0.9, 0.999, -1])
@pytest.mark.parametrize("saved", FORMATS.values(), ids=FORMATS)
def test_a_file_cut_short_gives_one_clear_line(saved, kept, tmp_path):
    torch.save({"model_state_dict": golden_weights()}, tmp_path / "whole.pth", **saved)
    content = (tmp_path / "whole.pth").read_bytes()
    end = round(kept * len(content)) if isinstance(kept, float) else kept
    (tmp_path / "last.pth").write_bytes(content[:end])
    with pytest.raises(ValueError, match="^cannot read last.pth [^\n]* cut short[^\n]*fetch it"):
        MindEye2.from_released(tmp_path / "last.pth")


LARGER_THAN_ANY_MEMORY = 2**40  # bytes: a hole in a file, which takes no room on disk


def test_a_file_larger_than_memory_opens_and_what_is_changed_stays_in_memory(tmp_path):
    whole, path = tmp_path / "whole.pth", tmp_path / "last.pth"
    torch.save({"model_state_dict": golden_weights()}, whole)
    with path.open("wb") as file:
        file.write(released.ZIP)
        file.seek(LARGER_THAN_ANY_MEMORY)
        file.write(whole.read_bytes())
    for _ in range(2):
        found, _ = released.weights(path)
        for name, weight in golden_weights().items():
            assert torch.equal(found[name], weight), name
        next(iter(found.values())).zero_()


def test_numbers_kept_in_a_file_larger_than_memory_are_read_row_by_row(tmp_path):
    rows = LARGER_THAN_ANY_MEMORY // 8
    kept = {"image_ids": ("I64", [2], [0, 16]), "tokens": ("F16", [rows, 4], [16, 16 + 8 * rows])}
    keys = ("dtype", "shape", "data_offsets")
    header = {name: dict(zip(keys, entry, strict=True)) for name, entry in kept.items()}
    said = json.dumps(header | {"__metadata__": {}}).encode()
    said += b" " * (-len(said) % 8)
    with (tmp_path / "kept.safetensors").open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        file.write(torch.tensor([3, 5]).numpy().tobytes())
        file.seek(8 * rows - 8, os.SEEK_CUR)
        file.write(torch.ones(4, dtype=torch.float16).numpy().tobytes())
    found = released.lazily(tmp_path / "kept.safetensors")
    assert found["image_ids"].tolist() == [3, 5] and found["tokens"].shape == (rows, 4)
    assert found["tokens"][-2:].tolist() == [[0] * 4, [1] * 4]


def test_too_little_memory_is_not_told_as_a_damaged_file(tmp_path, monkeypatch):
    def refused(_):
        raise OSError(12, "Cannot allocate memory")

    torch.save({"model_state_dict": golden_weights()}, tmp_path / "last.pth")
    monkeypatch.setattr(released, "mapped", refused)
    with pytest.raises(OSError, match="^not enough memory to open last.pth[^\n]*$") as error:
        released.read(tmp_path / "last.pth")
    assert "cut short" not in str(error.value)


def legacy(path: Path) -> tuple[bytes, list[str], bytes]:
    """A file of three tensors of five numbers, in the older format: all but its keys, and these."""
    tensors = {name: torch.arange(5.0) + i for i, name in enumerate("abc")}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        for _ in range(4):  # magic number, version, system, content
            list(pickletools.genops(file))
        head = path.read_bytes()[: file.tell()]
        return head, pickle.load(file), file.read()


EACH = 8 + 5 * 4  # bytes of a storage: how many numbers, and the numbers


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_an_older_file_that_lists_fewer_numbers_than_it_needs_gives_one_clear_line(
    missing, tmp_path
):
    path = tmp_path / "x.pt"
    head, keys, numbers = legacy(path)
    assert len(keys) == 3 and len(numbers) == 3 * EACH
    path.write_bytes(head + pickle.dumps(keys, 2) + numbers)
    assert released.read(path)["c"].tolist() == [2, 3, 4, 5, 6]
    fewer = pickle.dumps(keys[:-missing], 2) + numbers[: -missing * EACH]
    path.write_bytes(head + fewer)
    with pytest.raises(ValueError, match=r"^cannot read x.pt \(it lacks some numbers\)[^\n]*$"):
        released.read(path)


@pytest.mark.parametrize("cut", [1, EACH - 8, EACH - 4, EACH, EACH + 1, 3 * EACH])
def test_an_older_file_cut_short_in_its_numbers_gives_one_clear_line(cut, tmp_path):
    path = tmp_path / "x.pt"
    legacy(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"^cannot read x.pt \(it ends within its n[^\n]* cut sh"):
        released.read(path)


def foreign(kind: str, path: Path) -> None:
    if kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "nothing")
    elif kind == "compressed":
        torch.save({"zeros": torch.zeros(1000), "more": torch.randn(2000)}, path)
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, record in records.items():
                archive.writestr(name, record)
    else:
        contents = {
            "web page": b"<!doctype html><title>401</title>",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 8909\n",
            "pickle": pickle.dumps({"model_state_dict": {}}),
        }
        path.write_bytes(contents[kind])


@pytest.mark.parametrize("kind", ["archive", "compressed", "web page", "pointer", "pickle"])
def test_a_file_of_another_kind_gives_one_clear_line(kind, tmp_path):
    foreign(kind, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="^cannot read last.pth [^\n]* fetch it again[^\n]*$"):
        MindEye2.from_released(tmp_path / "last.pth")


class Claim(pickle.Pickler):
    """Writes a tensor of any claimed shape over a storage of any claimed length."""

    def __init__(self, file, length):
        super().__init__(file, protocol=2)
        self.length = length

    def persistent_id(self, obj):
        return ("storage", torch.FloatStorage, "0", "cpu", self.length) if obj is ... else None


class Claimed:
    def __init__(self, *claim):
        self.claim = claim

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (..., *self.claim, False, {})


@pytest.mark.parametrize(
    ("length", "offset", "size", "stride"),
    [(5, 0, (5,), (1,)), (4, 1, (4,), (1,)), (4, 0, (2, 3), (2, 1)), (4, -1, (2,), (1,)),
     (4, 0, (2,), (-1,)), (4, 0, (-2,), (1,)), (-1, 0, (2,), (1,)), (4, 0, (2,), (2**62,)),
     (4, 0, (2, 2), (1,)), (2**62, 0, (2,), (1,))],
)  # fmt: skip
def test_tensors_that_claim_more_than_their_numbers_are_refused(
    length, offset, size, stride, tmp_path
):
    def write(pad, length, *claim):
        file = io.BytesIO()
        Claim(file, length).dump(Claimed(*claim))
        with zipfile.ZipFile(zipped(file.getvalue(), tmp_path / "x.pth"), "a") as archive:
            archive.writestr(
                "archive/pad", b" " * pad
            )  # numbers on an odd place, or on an even one
            archive.writestr("archive/data/0", torch.arange(4.0).numpy().tobytes())
            archive.writestr("archive/data/1", torch.arange(40.0).numpy().tobytes())
        return tmp_path / "x.pth"

    for pad in range(4):
        assert released.read(write(pad, 4, 1, (3,), (1,))).tolist() == [1, 2, 3]
        with pytest.raises(ValueError, match="^cannot read x.pth [^\n]*$"):
            released.read(write(pad, length, offset, size, stride))


def test_a_deepspeed_folder_is_recognized_and_its_user_told_what_to_do(tmp_path):
    pieces = tmp_path / "log" / "last"
    pieces.mkdir(parents=True)
    with pytest.raises(ValueError, match="^[^\n]*log is a folder without a checkpoint[^\n]*$"):
        MindEye2.from_released(tmp_path / "log")
    for name in ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (pieces / name).touch()
        for given in (pieces / name, pieces, tmp_path / "log"):
            with pytest.raises(ValueError, match="DeepSpeed ZeRO [^\n]* zero_to_fp32.py [^\n]*$"):
                MindEye2.from_released(given)
        (pieces / name).unlink()
    for name in ("zero_to_fp32.py", "latest"):
        (tmp_path / "log" / name).touch()
        with pytest.raises(ValueError, match="DeepSpeed ZeRO [^\n]* zero_to_fp32.py [^\n]*$"):
            MindEye2.from_released(tmp_path / "log")
        (tmp_path / "log" / name).unlink()
    (tmp_path / "log" / "last.pth").touch()
    with pytest.raises(ValueError, match="is a folder: give the file, for example [^\n]*last.pth$"):
        MindEye2.from_released(tmp_path / "log")


def test_a_path_without_a_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="^there is no weights file [^\n]*nowhere.pth$"):
        MindEye2.from_released(tmp_path / "nowhere.pth")
