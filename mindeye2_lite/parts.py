"""One step's batch in parts: processes side by side, micro-batches one after the other.

Whatever the number of parts, the step is that of one process with the whole batch. Every random
draw (mixing, dropout, times and noise of the prior) is made for all trials and cut to the part's
own. Terms that are means over trials are weighted by how many the part has. The contrastive terms
compare all trials with each other, so each part puts its own embeddings, with their gradient,
between those of all others, which stand there as constants: the gradients of all parts then add up
to the gradient of the whole. Official: every process contrasts its own trials only, and draws its
own noise, so that the result depends on how many there are.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Part(NamedTuple):
    """Which trials of the whole batch these are, and the targets of all of them.

    `whole` trials are spread over `world` processes.
    """

    rows: Int[Tensor, " part"]
    whole: int
    world: int
    targets: dict[str, Tensor]

    def spread(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(part, …) to (whole, …): own values in their places, without gradient, zero elsewhere."""
        nothing = {name: x.new_zeros(self.whole, *x.shape[1:]) for name, x in values.items()}
        return self.among(nothing, {name: x.detach() for name, x in values.items()})

    def among(
        self, others: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """(whole, …): own values, with their gradient, between those of the others."""
        return {n: others[n].to(x.dtype).index_copy(0, self.rows, x) for n, x in values.items()}


def rows_of(subjects: int, each: int, *, rank: int, world: int, cut: int) -> list[Tensor]:
    """The rows of each of one process's `cut` micro-batches in the whole batch.

    The whole batch holds the subjects' trials end to end, `each` times `world` of every subject.
    ValueError where there are fewer trials than micro-batches.
    """
    if cut > each:
        raise ValueError(
            f"accumulate={cut} cuts a batch into more parts than it has trials per subject "
            f"({each}): take {each} at most"
        )
    starts = torch.arange(subjects)[:, None] * (each * world) + rank * each
    return [(starts + own).flatten() for own in torch.arange(each).tensor_split(cut)]


def add_up(values: Sequence[Mapping[str, Tensor]], world: int) -> dict[str, Tensor]:
    """Sums by name over a process's parts, and over processes."""
    sums = {name: sum(each[name] for each in values) for name in values[0]}
    if world > 1:
        for name in sums:
            torch.distributed.all_reduce(sums[name])
    return sums


def shared_dropout(part: Part | None) -> AbstractContextManager:
    """Inside, dropout draws for the whole batch and a part takes its own rows."""
    return nullcontext() if part is None else _SharedDropout(part)


class _SharedDropout(TorchFunctionMode):
    def __init__(self, part: Part):
        super().__init__()
        self.part = part

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.dropout:
            return function(*args, **kwargs)
        x, how = args[0], dict(zip(("p", "training", "inplace"), args[1:], strict=False)) | kwargs
        mask = F.dropout(x.new_ones(self.part.whole, *x.shape[1:]), how["p"], how["training"])
        return x * mask[self.part.rows.to(x.device)]


def weigh(
    terms: Mapping[str, Tensor], part: Part | None, contrastive: Collection[str], *, parts: int
) -> dict[str, Tensor]:
    """Terms that add up to the whole batch's over `parts` parts: a mean by how many trials it has.

    Every part has the whole batch's contrastive terms, so these count 1 / parts.
    """
    if part is None:
        return dict(terms)
    share = len(part.rows) / part.whole
    return {n: term / parts if n in contrastive else term * share for n, term in terms.items()}
