"""Exercises may be empty but not wrong; parameters of the wrong kind get one clear line."""

from types import SimpleNamespace

import ipywidgets
import pytest
from matplotlib import pyplot as plt

from mindeye2_lite import config, teaching


@pytest.fixture(autouse=True)
def with_people(monkeypatch):
    """`make test` runs the notebooks without their explorers; here they are the subject."""
    monkeypatch.delenv("MINDEYE2_LITE_BATCH", raising=False)


def test_an_empty_exercise_is_to_do_and_a_right_one_is_ticked(capsys):
    with teaching.exercise("4.1 soft targets"):
        raise NotImplementedError
    with teaching.exercise("4.1 soft targets"):
        pass
    todo, done = capsys.readouterr().out.splitlines()
    assert todo.startswith("✎ 4.1 soft targets") and done == "✓ 4.1 soft targets"


def test_a_wrong_answer_fails_loudly(capsys):
    with pytest.raises(AssertionError, match="rows sum to 1"), teaching.exercise("4.1"):
        raise AssertionError("rows sum to 1")
    assert "✓" not in capsys.readouterr().out


def test_a_batch_run_says_where_the_explorer_works(capsys, monkeypatch):
    monkeypatch.setenv("MINDEYE2_LITE_BATCH", "1")
    teaching.widget(lambda size: None, size=(1, 3))
    assert "explorer over size" in capsys.readouterr().out


def test_good_parameters_pass_in_silence(capsys):
    teaching.parameters_ok(profile="lite", subject=8, seed=0, sessions=40)
    teaching.parameters_ok(
        temperature=(0.1, 0.01, 1.0), steps=(20, 1, 100), head=("low", ["low", "high"])
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"subject": "abc"}, 'subject must be a whole number from 1 to 8, got "abc"'),
        ({"subject": 9}, "subject must be a whole number from 1 to 8, got 9"),
        ({"subject": True}, "subject must be a whole number from 1 to 8, got True"),
        ({"sessions": 1.5}, "sessions must be a whole number from 1 to 40, got 1.5"),
        ({"seed": -1}, f"seed must be a whole number from 0 to {2**32 - 1}, got -1"),
        ({"seed": None}, f"seed must be a whole number from 0 to {2**32 - 1}, got None"),
        ({"profile": "tiny"}, 'profile must be one of lite, colab, paper, got "tiny"'),
        ({"profile": 3}, "profile must be one of lite, colab, paper, got 3"),
        ({"scale": ("5", 0.0, 9.0)}, 'scale must be a number from 0.0 to 9.0, got "5"'),
        ({"scale": (float("nan"), 0.0, 9.0)}, "scale must be a number from 0.0 to 9.0, got nan"),
        ({"start": ("cold", ["warm"])}, 'start must be one of warm, got "cold"'),
    ],
)
def test_a_parameter_of_the_wrong_kind_gets_one_line(given, line):
    with pytest.raises(ValueError) as error:
        teaching.parameters_ok(**given)
    assert str(error.value) == line


def test_the_profiles_are_those_of_the_configuration():
    assert tuple(teaching.RULES["profile"]) == config.PROFILES


def test_a_parameter_without_a_rule_is_a_mistake_of_the_notebook():
    with pytest.raises(TypeError, match="no rule for temperature"):
        teaching.parameters_ok(temperature=0.1)


def test_controls_follow_the_kind_of_choice():
    whole = teaching.control("num_steps", (1, 50, 1, 20))
    real = teaching.control("scale", (0.0, 2.0))
    menu = teaching.control("start", ["pretrained", "from scratch"])
    box = teaching.control("shuffled", False)
    assert isinstance(whole, ipywidgets.IntSlider) and (whole.min, whole.max, whole.value) == (
        1,
        50,
        20,
    )
    assert isinstance(real, ipywidgets.FloatSlider) and real.step == pytest.approx(0.1)
    assert isinstance(menu, ipywidgets.Dropdown) and menu.value == "pretrained"
    assert isinstance(box, ipywidgets.Checkbox) and box.value is False
    assert whole.description == "num steps" and not whole.continuous_update


def test_without_a_front_end_the_explorer_is_one_line_and_nothing_is_computed(capsys):
    teaching.widget(lambda **_: pytest.fail("computed"), steps=(1, 5), scale=(0.0, 1.0))
    assert capsys.readouterr().out.count("\n") == 1


def test_with_a_front_end_the_explorer_draws_once_and_again_on_change(monkeypatch):
    calls, shown = [], []
    monkeypatch.setattr(teaching, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure = plt.figure()
    teaching.widget(lambda steps: calls.append(steps) or figure, steps=(1, 5))
    box = next(x for x in shown if isinstance(x, ipywidgets.VBox))
    box.children[0].value = 3
    assert calls == [1, 3]
    assert shown.count(figure) == 2 and not plt.fignum_exists(figure.number)


def test_the_colophon_names_profile_versions_device_and_seconds(capsys, monkeypatch):
    monkeypatch.setattr(teaching, "time", SimpleNamespace(time=lambda: 1041.0))
    teaching.colophon(SimpleNamespace(profile="lite"), 1000.0)
    (line,) = capsys.readouterr().out.splitlines()
    for word in ("mindeye2-lite", "profile lite", "Python", "torch", "41 s"):
        assert word in line
