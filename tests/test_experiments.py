"""Results over several seeds are put together rightly, and a wrong question costs one line."""

import numpy as np
import pytest
import torch

from mindeye2_lite import cli, experiments, metrics


def test_seeds_are_averaged_picture_by_picture_and_the_interval_is_over_pictures():
    a, b = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
    scores = [{"kind": metrics.score("kind", x, chance=c)} for x, c in ((a, 0.1), (b, 0.3))]
    found = experiments.pool_seeds(scores)["kind"]
    low, high = metrics.bootstrap((a + b) / 2)
    assert found.value == pytest.approx(0.625) and found.n == 4
    assert (found.low, found.high) == (low, high)
    assert found.chance == pytest.approx(0.2)


def test_a_departure_is_compared_picture_by_picture_with_the_first_way():
    ours, other = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
    scores = {
        way: {"kind": metrics.score("kind", x, chance=0.1)}
        for way, x in (("ours", ours), ("other", other))
    }
    found = experiments.compare_with_first(scores)["kind"]
    low, high = metrics.bootstrap(other - ours)
    assert found["ours"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["other"]["difference"] == {"value": 0.25, "low": low, "high": high}
    assert found["other"]["value"] == 0.75 and found["other"]["chance"] == 0.1


def test_tokens_of_the_mean_picture_have_an_error_of_one_and_true_tokens_none():
    true = torch.randn(50, 4, 8, generator=torch.Generator().manual_seed(0))
    mean = true.mean(0).expand_as(true)
    assert experiments._error(mean, true).value == pytest.approx(1, abs=1e-5)
    assert experiments._error(true, true).value == 0


def test_every_sampler_makes_tokens_of_the_brain_and_repeats_itself():
    from mindeye2_lite.prior import DiffusionPrior

    torch.manual_seed(0)
    prior, brain = DiffusionPrior(4, 32, depth=1, dim_head=16).eval(), torch.randn(2, 4, 32)
    made = {}
    for name, sample in experiments.SAMPLERS.items():
        first, again = (sample(prior, brain, torch.Generator().manual_seed(1)) for _ in range(2))
        assert first.shape == brain.shape and torch.equal(first, again), name
        made[name] = first
    assert len({x.sum().item() for x in made.values()}) == len(made), "four different walks"


@pytest.mark.parametrize("words", [["no_such"], ["prior_samplers", "--pictures"]])
def test_results_that_there_are_not_cost_one_line(words, capsys):
    assert cli.main(["results", *words]) == 1
    said = capsys.readouterr().err.strip()
    assert said and "\n" not in said
