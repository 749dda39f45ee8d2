"""The contact sheet of a search: one HTML page that needs nothing but itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labelmill.operators.errors import RowError
from labelmill.operators.images.data_url import data_url
from labelmill.operators.images.decoded import decode
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.image_story import explain_image
from labelmill.pipelines.search.print import describe_index
from labelmill.pipelines.sheets import READERS, SIDE, render_sheet, write_page
from labelmill.pipelines.sources.base import in_order
from labelmill.pipelines.sources.storage import Storage
from labelmill.pipelines.sources.uri import as_location


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as a data URL; or why there is none."""

    url: str = ""
    problem: str = ""


def write_contact_sheet(found: dict[str, Any]) -> str:
    """Write a search's contact sheet into the run, in ``search/``. The same search has the same file.

    Args:
        found: What `pipelines.search.search.search_run` gave.

    Returns:
        The file's address.

    Raises:
        UserError: It cannot be written there.
    """
    return write_page(found["run"], f"search/{_file_name(found)}", lambda fetch: render(found, fetch))


def render(found: dict[str, Any], fetch: Callable[[str], bytes]) -> str:
    """The page.

    Args:
        found: What `pipelines.search.search.search_run` gave.
        fetch: Gives the bytes behind a uri, or raises RowError.
    """
    thumbnails = in_order(lambda row: _thumbnail(lambda: fetch(row["uri"])), found["results"], READERS)
    values = {
        "found": found,
        "title": _title(found["query"]),
        "lines": describe_index(found),
        "asked": _asked(found, fetch),
        "thumbnails": list(thumbnails),
    }
    return render_sheet("contact_sheet.html", values)


def _asked(found: dict[str, Any], fetch: Callable[[str], bytes]) -> Thumbnail | None:
    """The image that was asked for; None for a text."""
    query = found["query"]
    if "image" in query:
        return _thumbnail(lambda: Storage().read(as_location(query["image"])))
    if "key" in query:
        uri = explain_image(found["run"], query["key"])["uri"]
        return _thumbnail(lambda: fetch(uri))
    return None


def _thumbnail(read: Callable[[], bytes]) -> Thumbnail:
    try:
        return Thumbnail(url=data_url(decode(read()), max_side=SIDE))
    except (RowError, UserError) as error:
        return Thumbnail(problem=str(error))


def _title(query: dict[str, str]) -> str:
    if "text" in query:
        return f"“{query['text']}”"
    return f"like {query.get('image') or query['key']}"


def _file_name(found: dict[str, Any]) -> str:
    """Readable, safe anywhere, and another one for another search."""
    asked = next(iter(found["query"].values()))
    words = "-".join(re.findall(r"[a-z0-9]+", asked.lower()))[:48]
    content = json.dumps([found["query"], found["step"], found["everything"]], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{words}-{digest}.html".lstrip("-")
