"""The `plan` directive: what full-size training takes, computed while the book is built.

The table is `mindeye2_lite.plan` in the book's clothes, so no number on the page is typed.

    ```{plan} paper
    :sessions: 1
    ```
"""

from docutils import nodes
from docutils.parsers.rst import directives
from results_table import table
from sphinx.util.docutils import SphinxDirective

from mindeye2_lite import plan as planning
from mindeye2_lite.config import Config

PARTS = ("weights", "gradients", "optimizer", "activations")
COLUMNS = ["GB on the GPU", *PARTS, "all", "smallest card"]


def rows(planned: planning.Planned) -> list[dict]:
    """A record per way to train: gigabytes by what holds them, and the smallest card that fits."""
    return [_row(need) for need in planned.needs]


def _row(need: planning.Need) -> dict:
    parts = {part: getattr(need, part) for part in PARTS}
    if need.offload:  # only the widest layer is on the GPU
        parts |= {"weights": need.layer, "gradients": 0.0, "optimizer": 0.0}
    fits = [card for card in planning.CARDS if need.gpu <= card]
    record = {"GB on the GPU": need.name} | {part: f"{gb:.1f}" for part, gb in parts.items()}
    card = f"{fits[0]} GB" if fits else f"over {planning.CARDS[-1]} GB"
    return record | {"all": f"{need.gpu:.1f}", "smallest card": card}


def summary(planned: planning.Planned) -> str:
    """One line: who, how long, how many parameters."""
    who = ", ".join(map(str, planned.subjects))
    return (
        f"Profile {planned.config.profile}, subject{'s' * (len(planned.subjects) > 1)} {who}: "
        f"{planned.parameters['all']:,} parameters, of which {planned.trained:,} are trained; "
        f"batch {planned.batch}, {planned.steps:,} steps. "
        f"{planning.NOT_MEASURED[0].upper()}{planning.NOT_MEASURED[1:]}."
    )


class Plan(SphinxDirective):
    """Put the plan of the profile named in the argument on the page."""

    required_arguments = 1
    option_spec = {"sessions": directives.positive_int, "pretrain": directives.flag}

    def run(self):
        """A line that says what is planned, and the table."""
        planned = planning.plan(
            Config.of(self.arguments[0]),
            gpu_gb=planning.CARDS[-1],
            sessions=self.options.get("sessions"),
            pretrain="pretrain" in self.options,
        )
        return [nodes.paragraph("", summary(planned)), table(COLUMNS, rows(planned))]


def setup(app):
    """Register the directive."""
    app.add_directive("plan", Plan)
    return {"parallel_read_safe": True}
