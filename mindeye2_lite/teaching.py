"""What the notebooks need beyond the model: exercises, explorers, checked parameters, colophons.

Nothing here imports the rest of the package, and only notebooks import this.
"""

import importlib.metadata
import numbers
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

# What `parameters_ok` knows by name: (lowest, highest) of a whole number, or the names to choose
# from. Everything else is passed as (value, lowest, highest) or (value, [choices]).
RULES: dict[str, tuple[int, int] | list[str]] = {
    "profile": ["lite", "colab", "paper"],
    "subject": (1, 8),
    "sessions": (1, 40),
    "seed": (0, 2**32 - 1),
}


@contextmanager
def exercise(name: str) -> Iterator[None]:
    """Say "to do" while the answer still raises NotImplementedError; let wrong answers fail loudly.

    So `Run all` passes on a student's untouched copy, stops at a wrong answer, and, because the
    full notebooks carry the solutions, CI checks every solution.
    """
    try:
        yield
    except NotImplementedError:
        print(f"✎ {name}: yours to write, in the cell above")
    else:
        print(f"✓ {name}")


def parameters_ok(**values: Any) -> None:
    """ValueError in one line if a notebook parameter is of the wrong kind or out of range.

    `parameters_ok(profile=profile, subject=subject, temperature=(temperature, 0.01, 1.0))`: names
    in `RULES` are given as they are, others with the lowest and highest value (whole numbers if the
    lowest is one) or with a list of choices.
    """
    for name, given in values.items():
        value, rule = _rule(name, given)
        fits = value in rule if isinstance(rule, list) else _between(value, *rule)
        if not fits:
            raise ValueError(f"{name} must be {_wanted(rule)}, got {_shown(value)}")


def widget(function: Callable[..., Any], **choices: Any) -> None:
    """Show an explorer: sliders and menus that call `function` again whenever one is let go.

    A choice is (low, high), (low, high, step) or (low, high, step, start) for a slider, a list for
    a menu, True or False for a check box. A returned Figure is drawn once and closed. Without a
    notebook's front end one line says where the explorer works: the static figure above it must
    tell the story alone. So in a batch run, which sets MINDEYE2_LITE_BATCH (the book does).
    """
    if os.environ.get("MINDEYE2_LITE_BATCH") or not _in_notebook():
        print(f"explorer over {', '.join(choices)}: open this notebook in JupyterLab or Colab")
        return
    import ipywidgets
    from IPython.display import display

    controls = {name: control(name, choice) for name, choice in choices.items()}
    output = ipywidgets.interactive_output(lambda **now: _draw(function, now), controls)
    display(ipywidgets.VBox([*controls.values(), output]))


def control(name: str, choice: Any) -> Any:
    """The ipywidgets control of one choice (the API that versions 7 and 8 share)."""
    import ipywidgets

    # continuous_update off: a miniature takes a second, a slider being dragged asks fifty times
    look = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if isinstance(choice, bool):
        return ipywidgets.Checkbox(value=choice, **look)
    if isinstance(choice, list):
        return ipywidgets.Dropdown(options=choice, value=choice[0], **look)
    low, high, *rest = choice
    whole = all(isinstance(x, numbers.Integral) for x in choice)
    slider = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    step = rest[0] if rest else 1 if whole else (high - low) / 20
    start = rest[1] if len(rest) > 1 else low
    return slider(value=start, min=low, max=high, step=step, continuous_update=False, **look)


def colophon(config: Any = None, started: float | None = None) -> None:
    """Print what this notebook ran with: profile, versions, device, and seconds since `started`.

    `started` is `time.time()` from the setup cell.
    """
    parts = [f"mindeye2-lite {_version('mindeye2-lite')}"]
    if config is not None:
        parts.append(f"profile {config.profile}")
    parts.append(f"Python {platform.python_version()}")
    parts += [f"{name} {_version(name)}" for name in ("torch", "diffusers", "transformers")]
    parts.append(_device())
    if started is not None:
        parts.append(f"{time.time() - started:.0f} s")
    print(" · ".join(parts))


def _rule(name: str, given: Any) -> tuple[Any, Any]:
    if name in RULES and not isinstance(given, tuple):
        return given, RULES[name]
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], list):
        return given
    if isinstance(given, tuple) and len(given) == 3:
        return given[0], given[1:]
    raise TypeError(f"parameters_ok has no rule for {name}: pass ({name}, lowest, highest)")


def _between(value: Any, low: Any, high: Any) -> bool:
    kind = numbers.Integral if isinstance(low, numbers.Integral) else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool) and bool(low <= value <= high)


def _wanted(rule: Sequence[Any]) -> str:
    if isinstance(rule, list):
        return "one of " + ", ".join(map(str, rule))
    kind = "whole number" if isinstance(rule[0], numbers.Integral) else "number"
    return f"a {kind} from {rule[0]} to {rule[1]}"


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _in_notebook() -> bool:
    try:
        import ipywidgets  # noqa: F401
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and _somebody_is_there(kernel)


def _somebody_is_there(kernel: Any) -> bool:
    """Does the front end take typed input? JupyterLab and Colab do; papermill and nbval do not.

    There an explorer has no one to move its sliders, and can leave nbclient waiting for ever.
    """
    message = kernel.get_parent() if hasattr(kernel, "get_parent") else {}
    return (message or {}).get("content", {}).get("allow_stdin", True)


def _draw(function: Callable[..., Any], now: dict[str, Any]) -> None:
    from IPython.display import display
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

    result = function(**now)
    if isinstance(result, Figure):
        plt.close(result)  # else the inline backend draws it a second time
    if result is not None:
        display(result)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)} on {os.cpu_count()} cores"
