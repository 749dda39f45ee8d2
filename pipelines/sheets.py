"""What contact sheets share: one HTML page that needs nothing but itself, written into the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.sources import Fetcher

SIDE = 320
"""Pixels of the longer side of a thumbnail."""

READERS = 4
"""Images read at once: enough to hide some of an object store's delay; each may be large while it is decoded."""


def render_sheet(template: str, values: dict[str, Any]) -> str:
    """The page.

    Args:
        template: A file in ``pipelines/templates`` that extends ``sheet.html``.
        values: What it shows, HTML-escaped; ``found`` with its ``run`` is among them.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("labelmill.pipelines", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(template).render(values)


def write_page(run: str, name: str, render: Callable[[Fetcher], str]) -> str:
    """Write a page into a run.

    Args:
        run: The run's directory.
        name: Of the file, below the run.
        render: Makes the page of what gives the bytes behind a uri.

    Returns:
        The file's address.

    Raises:
        UserError: It cannot be written there.
    """
    pipeline, layout, _ = reopen(run)
    page = render(Fetcher(dict(pipeline.settings.source.storage_options)))
    address = layout.store.address(name)
    try:
        layout.store.write(name, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"the contact sheet cannot be written to {address}: {error}") from error
    return address
