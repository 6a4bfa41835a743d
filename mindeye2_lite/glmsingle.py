"""GLMsingle's results in a `.npy` file: a pickled dict, opened without running any code in it.

Python's GLMsingle writes `TYPED_FITHRF_GLMDENOISE_RR.npy` by `np.save` of a dict, which is a list
of instructions for building objects; numpy would follow whatever they name. Here only arrays of
plain numbers or words and plain containers are built; every other name becomes an inert object.

    read_results(path)["betasmd"]      (X, Y, Z, trials) or (V, 1, 1, trials), percent signal
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

PLAIN = "biufcSU"  # kinds of numbers and words


class Inert:
    """Stands where a file names something that is not admitted: takes everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return object.__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self

    def _nothing(self, *args: Any) -> None:
        pass

    __setstate__ = append = extend = add = __setitem__ = _nothing


class _Kind(Inert):
    """A dtype: its name and byte order, and nothing else of what one can be."""

    def __new__(cls, name: str, *_: Any) -> "_Kind":
        made = object.__new__(cls)
        made.dtype = np.dtype(name if isinstance(name, str) else "O")
        if made.dtype.kind not in PLAIN + "O":
            raise ValueError(f"numbers of kind {name}")
        return made

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(Inert):
    """An array that is filled when its state comes."""

    values: Any = None

    def __setstate__(self, state: tuple) -> None:
        _version, shape, kind, fortran, content = state
        self.values = _filled(content, kind, shape, "F" if fortran else "C")


class _Buffer(Inert):
    """An array of newer pickles, which comes whole."""

    def __new__(cls, content: Any, kind: _Kind, shape: tuple, order: str) -> "_Buffer":
        made = object.__new__(cls)
        made.values = _filled(content, kind, shape, order)
        return made


class _Scalar(Inert):
    """A number of its own."""

    def __new__(cls, kind: _Kind, content: Any = None) -> Any:
        return np.frombuffer(content, kind.dtype)[0].item()


def _filled(content: Any, kind: _Kind, shape: tuple, order: str) -> np.ndarray:
    if isinstance(content, list):
        values = np.empty(len(content), object)
        values[:] = content
    else:
        values = np.frombuffer(content, kind.dtype)  # refuses objects
    return values.reshape(shape, order=order)


class _PlainDict(dict):
    """An OrderedDict without attributes."""

    def __setstate__(self, *_: Any) -> None:
        pass


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Kind,
    ("collections", "OrderedDict"): _PlainDict,
    ("_codecs", "encode"): lambda text, _how: text.encode("latin-1"),
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    ADMITTED[f"{_core}.multiarray", "scalar"] = _Scalar
    ADMITTED[f"{_core}.numeric", "_frombuffer"] = _Buffer
for _name, _class in {"list": list, "tuple": tuple, "dict": dict, "set": set}.items():
    ADMITTED["builtins", _name] = _class


class _Unpickler(pickle.Unpickler):
    """Python's own, except that it looks up no name."""

    def find_class(self, module: str, name: str) -> Any:
        return ADMITTED.get((module, name), Inert)


def read_results(path: str | Path) -> Any:
    """What np.save kept in a file of objects: for GLMsingle a dict of arrays, lists and words.

    ValueError in one line for a file that is cut short or something else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0}
            header.get(version, np.lib.format.read_array_header_2_0)(file)
            return _plain(_Unpickler(file).load())
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged or malicious file brings about
        why = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(f"{path} is damaged, or no file of np.save ({why})") from error


def _plain(value: Any) -> Any:
    """Arrays in place of what holds them, in containers, too."""
    if isinstance(value, _Array | _Buffer):
        value = value.values
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = _plain(value.item()) if value.ndim == 0 else [_plain(v) for v in value.ravel()]
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    return value
