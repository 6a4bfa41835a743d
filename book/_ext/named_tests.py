"""The `test` role: the name of a test as the sentence that it is, linked to the test itself.

    {test}`test_prior.py::test_a_token_and_all_that_follow_share_bucket_zero`

becomes "a token and all that follow share bucket zero"; the full name shows when pointed at. A test
that does not exist is a warning, and so a failed build.
"""

import ast
import functools
import re
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxRole
from sphinx.util.logging import getLogger

logger = getLogger(__name__)


@functools.cache
def lines_of(file: Path) -> dict[str, int]:
    """The tests in a file and the lines they start at, without running it."""
    if not file.is_file():
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node.name: node.lineno for node in functions if node.name.startswith("test_")}


def sentence(test: str) -> str:
    """What a test of that name claims."""
    words = test.partition("::")[2].removeprefix("test_").replace("_", " ")
    return re.sub(r" s\b", "’s", words)


class NamedTest(SphinxRole):
    """A link to the test, in the words of its name."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The link, or a warning where there is no such test."""
        file, _, name = self.text.partition("::")
        lines = lines_of(Path(self.env.srcdir).parent / "tests" / file)
        if name not in lines:
            logger.warning("there is no test %s", self.text, location=self.get_location())
        base = self.config.html_theme_options["repository_url"]
        uri = f"{base}/blob/main/tests/{file}#L{lines.get(name, 1)}"
        told = f"tests/{self.text}"
        look = {"refuri": uri, "reftitle": told, "classes": ["test"]}
        return [nodes.reference("", sentence(self.text), **look)], []


def setup(app):
    """Register the role."""
    app.add_role("test", NamedTest())
    return {"parallel_read_safe": True}
