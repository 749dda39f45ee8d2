"""Finds model cards: by name under conf/models, or by path."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from labelmill import CONF
from labelmill.pipelines.config.yaml_file import shipped
from labelmill.pipelines.errors import UserError, nearest

if TYPE_CHECKING:
    from labelmill.operators.models.card import ModelCard


def card_folders() -> list[Path]:
    """Where cards are looked for, first match wins: the working directory's conf/models, then labelmill's own."""
    return list(dict.fromkeys(folder for folder in (_here(), CONF / "models") if folder.is_dir()))


def _here() -> Path:
    return Path.cwd() / "conf" / "models"


def card_files() -> dict[str, Path]:
    """Every card by name."""
    found: dict[str, Path] = {}
    for folder in card_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_card(name: str) -> ModelCard:
    """Load a card.

    Args:
        name: The name of a card, or a path that ends in ``.yaml``. Weights that do not ship and are a file beside one
            of labelmill's cards may also lie where they would beside a card of the working directory: for
            ``path: ../../weights/NAME`` that is its ``weights/NAME``.

    Raises:
        UserError: There is none of that name, or it is not a valid card.
    """
    from labelmill.operators.models.card import ModelError, load_card

    if name.endswith((".yaml", ".yml")):
        path = shipped(name)
        if not path.is_file():
            like = nearest(path.name, (p.name for p in path.parent.glob("*.yaml")))
            raise UserError(f"there is no model card {name!r}{like}; `labelmill models` lists those that there are")
    else:
        cards = card_files()
        if name not in cards:
            if own := [f"{name}{ending}" for ending in (".yaml", ".yml") if Path(f"{name}{ending}").is_file()]:
                raise UserError(
                    f"model must be the name of a card below conf/models or a path to a card but is {name!r}; "
                    f"for the file here write {own[0]!r}"
                )
            alike = difflib.get_close_matches(name, cards, n=4, cutoff=0.4) or sorted(cards)[:4]
            raise UserError(
                f"model must be one of {', '.join(alike)}, … (`labelmill models` lists all {len(cards)}) or a path "
                f"to a card but is {name!r}{nearest(name, cards)}"
            )
        path = cards[name]
    try:
        return load_card(path, _here() if path.parent == CONF / "models" else None)
    except ModelError as error:
        raise UserError(str(error)) from error
