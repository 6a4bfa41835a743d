"""Files that others made with `torch.save`, opened without running any code in them.

Such a file is a list of instructions for building objects (a pickle) beside raw numbers, and an
instruction may call whatever it names. The released `last.pth` files name DeepSpeed's classes, so
that torch's own safe loader refuses them. Here only tensors and plain containers are built; every
other name becomes an `Inert` object, which takes everything and does nothing.

    read(path)        all that the file holds; tensors stay on disk until they are used
    weights(source)   a MindEye2's state dict, and the names of its subjects if the file has them

No released file was at hand: their form is known from the released code and from reports.
"""

import io
import json
import mmap
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import UInt8
from torch import Tensor

ZIP = b"PK\x03\x04"
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # how torch before 1.6 began its files
LOCAL_HEADER = 30  # bytes before a record's name in a zip file
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
ZERO_PART = re.compile(r"zero_to_fp32\.py$|latest$|.*mp_rank_\d+_\w+_states\.pt$")

MAP_NORESERVE = 0x4000  # Linux's number for it, which Python's mmap does not name
SAFETENSORS = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read(path: str | Path) -> Any:
    """What a `torch.save` file holds: tensors and plain containers, the rest as `Inert` objects.

    No code of the file runs. Tensors are views of the file itself, mapped into memory, so change
    or delete it only when you are done; files from before torch 1.6 are read into memory. The
    numbers are not checked (a hash of the file does that). ValueError in one line for a file that
    is cut short, that torch.save did not write, or that is a part of a DeepSpeed ZeRO checkpoint;
    OSError where memory does not suffice.
    """
    path = _one_file(Path(path))
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP)) == ZIP
            file.seek(0)
            return _read_zip(path, file) if is_zip else _read_legacy(file)
    except Exception as error:  # whatever a damaged or malicious file brings about
        raise _unreadable(path, "torch.save", error) from error


def mapped(file: BinaryIO) -> UInt8[Tensor, " bytes"]:
    """The bytes of an open file, which may be larger than memory: what is used is read then.

    What is written to the tensor stays in memory and does not reach the file. torch's own mapping
    and that of safetensors reserve memory for all of it, and are refused where that is not there.
    """
    if sys.platform != "linux":
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    else:
        flags = mmap.MAP_PRIVATE | MAP_NORESERVE
        whole = mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(whole, dtype=torch.uint8)


def lazily(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of ours, mapped: rows are read when they are used."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header, numbers = json.loads(file.read(length)), mapped(file)[8 + length :]
    return {
        name: numbers[slice(*entry["data_offsets"])]
        .view(SAFETENSORS[entry["dtype"]])
        .view(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def weights(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Tensor], list[int] | None]:
    """The state dict in a checkpoint's file, or in what such a file holds, and its subjects' names.

    Names lose what DDP, FSDP and torch.compile put before them. Only files that `MindEye2.save`
    wrote name their subjects. Tensors are the source's own: copy them before changing them.
    ValueError in one line where there is no state dict.
    """
    names = None
    if isinstance(source, Mapping):
        content = source
    elif Path(source).suffix == ".safetensors":
        content, names = _read_safetensors(_one_file(Path(source)))
    else:
        content = read(source)
    content = content if isinstance(content, Mapping) else {"its content": content}
    state = content.get("model_state_dict", content)
    state = state if isinstance(state, Mapping) else {"model_state_dict": state}
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(f"these are not the weights of a MindEye2: {name!r} is not a tensor")
    return _unwrapped(state), names


class Inert:
    """Stands where a file names a class or function that is not admitted."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return object.__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self

    def _nothing(self, *args: Any) -> None:
        pass

    # All that a pickle can do to an object: set its state, append, extend, add, set items.
    __setstate__ = append = extend = add = __setitem__ = _nothing


class _PlainDict(dict):
    """An OrderedDict without attributes, which could hide its methods."""

    def __setstate__(self, *_: Any) -> None:
        pass


class _Rebuilt(Inert):
    """Makes a tensor of a storage. A class, since a pickle can set a function's attributes."""

    def __new__(cls, numbers, offset, size, stride, grad=None, hooks=None, flags=None):
        if flags:
            raise ValueError("a conjugated tensor")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or (0 not in size and last >= len(numbers)):
            raise ValueError("a tensor reaches beyond its numbers")
        return numbers.as_strided(size, stride, numbers.storage_offset() + offset)


class _Parameter(Inert):
    """A parameter comes back as its tensor."""

    def __new__(cls, data, *_):
        return data


PLAIN = {"list": list, "tuple": tuple, "dict": dict, "set": set, "frozenset": frozenset}
ADMITTED = {
    ("collections", "OrderedDict"): _PlainDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _Rebuilt,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuilt,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    **{(f"torch{part}", name): d for name, d in STORAGES.items() for part in ("", ".cuda")},
    # Pickles have the names of Python 2 and of Python 3.
    **{(module, name): c for name, c in PLAIN.items() for module in ("builtins", "__builtin__")},
}

Storage = Callable[..., Tensor]  # (dtype, key, location, length) -> its numbers


class _Unpickler(pickle.Unpickler):
    """Python's own, except that it looks up no name: what is not admitted is `Inert`."""

    def __init__(self, file: BinaryIO | io.BytesIO, storage: Storage):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        return ADMITTED.get((module, name), Inert)

    def persistent_load(self, saved: Any) -> Any:
        kind, *about = saved
        return self.storage(*about) if kind == "storage" else Inert()


def _read_zip(path: Path, file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        pickles = [name for name in records if re.fullmatch("[^/]+/data.pkl", name)]
        if len(pickles) != 1:
            raise ValueError("another kind of zip file")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in records:
            _check_byteorder(archive.read(f"{root}byteorder") == b"little")
        bytes_of_file = mapped(file)

        def storage(dtype: torch.dtype, key: str, _location: Any, length: int) -> Tensor:
            start, size = _place(file, records[f"{root}data/{key}"])
            nbytes = length * dtype.itemsize
            if nbytes > size:
                raise ValueError("a tensor reaches beyond its numbers")
            part = bytes_of_file[start : start + nbytes]
            # torch aligns its records; copy one that something else has moved.
            return (part.clone() if start % dtype.itemsize else part).view(dtype)

        return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _place(file: BinaryIO, record: zipfile.ZipInfo) -> tuple[int, int]:
    """Where in the file the bytes of a record begin, and how many they are."""
    if record.compress_type != zipfile.ZIP_STORED:
        raise ValueError("compressed tensors")
    file.seek(record.header_offset + LOCAL_HEADER - 4)
    name, extra = struct.unpack("<HH", file.read(4))  # lengths of two fields before the bytes
    return record.header_offset + LOCAL_HEADER + name + extra, record.file_size


def _read_legacy(file: BinaryIO) -> Any:
    """Five pickles in a row: magic number, version, system, content, keys; then the numbers."""
    numbers = {}

    def storage(
        dtype: torch.dtype, key: str, _location: Any, length: int, view: Any = None
    ) -> Tensor:
        if key not in numbers:
            numbers[key] = torch.empty(length, dtype=dtype)  # filled below
        _, start, size = view or (None, 0, length)
        return numbers[key][start : start + size]

    def following() -> Any:
        return _Unpickler(file, storage).load()

    if (following(), following()) != (LEGACY_MAGIC, LEGACY_VERSION):
        raise ValueError("another kind of file")
    _check_byteorder(following()["little_endian"])
    content = following()
    for key in following():
        _fill(numbers.pop(key), file)
    if numbers:
        raise EOFError("it lacks some numbers")
    return content


def _fill(numbers: Tensor, file: BinaryIO) -> None:
    length, raw = file.read(8), numbers.view(torch.uint8).numpy()
    if length != struct.pack("<q", len(numbers)) or file.readinto(raw) != raw.nbytes:
        raise EOFError("it ends within its numbers")


def _check_byteorder(little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise ValueError("numbers in another byte order than this machine's")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], list[int] | None]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            subjects = (file.metadata() or {}).get("subjects")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return state, subjects and json.loads(subjects)
    except Exception as error:
        raise _unreadable(path, "save_file of safetensors", error) from error


def _unreadable(path: Path, writer: str, error: Exception) -> ValueError | OSError:
    why = (str(error).strip() or type(error).__name__).split("\n")[0]
    if isinstance(error, MemoryError) or "annot allocate memory" in why:
        return OSError(f"not enough memory to open {path.name} ({why}): the file may be whole")
    return ValueError(
        f"cannot read {path.name} ({why}): it is cut short, or {writer} did not write it; "
        "fetch it again, or give another file"
    )


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): value
        for name, value in state.items()
    }
    if len(plain) < len(state):
        raise ValueError("these weights hold some names twice, once with and once without a prefix")
    return plain


def _one_file(path: Path) -> Path:
    """The path, if it is a file that can hold a whole model; else a ValueError says what to do."""
    folder = path.is_dir()
    parts = sorted([*path.glob("*"), *path.glob("*/*")]) if folder else [path]
    whole = [part for part in parts if part.suffix in {".pth", ".safetensors"}]
    if folder and whole:
        raise ValueError(f"{path} is a folder: give the file, for example {whole[0]}")
    if any(ZERO_PART.match(part.name) for part in parts):
        raise ValueError(
            f"{path} is from a DeepSpeed ZeRO checkpoint, which keeps the model in pieces: in its "
            "folder run DeepSpeed's own `python zero_to_fp32.py . whole` (newer ones also take "
            "`--max_shard_size 100GB`, to write one file), then give the file that it writes"
        )
    if folder:
        raise ValueError(f"{path} is a folder without a checkpoint in it: give the file")
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    return path
