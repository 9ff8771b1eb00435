"""A run's record as one HTML file that opens offline.

Style sheet and script are written into the page, and its content security policy names their hashes: nothing else is
loaded or run, whatever the names in the record hold.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from edgewise.records.run import Run
from edgewise.report.view import page


def render(run: Run) -> str:
    """Return the report of `run`: a whole HTML document without any external resource.

    Raises:
        ContractError: If the run has no default on its ladder.
    """
    style, script = _text("style.css"), _text("script.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page(run),
            # Both files are ours, and neither holds a closing tag (a test says so).
            style=Markup(style),  # noqa: S704 - trusted text of this package
            script=Markup(script),  # noqa: S704 - trusted text of this package
            policy=_policy(style, script),
        )
    )


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(name: str) -> str:
    text = files("edgewise.report").joinpath("templates", name).read_text(encoding="utf-8")
    # A checkout may have turned line ends; browsers turn them back before they hash.
    return text.replace("\r\n", "\n")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=DictLoader({"report.html.j2": _text("report.html.j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Charts are markup made by `charts`, which escapes every text that it is given.
    environment.filters["svg"] = Markup
    return environment
