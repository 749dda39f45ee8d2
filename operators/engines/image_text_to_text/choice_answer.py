"""Answers out of a list, read from what a model writes and from the probabilities of its tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

Token = tuple[str, Sequence[tuple[str, float]]]
"""What was written at one place, and the likeliest tokens there with their log-probabilities, that one included."""

_AROUND = " \t\r\n\"'`*"
"""What models put around a word."""

_BEHIND = ".,;:!\n"
"""What they put behind an answer, perhaps with more to follow."""


class ChoiceAnswer:
    """Reads a model's text as one of several choices.

    Capitals don't matter, unless some choices differ by nothing else.

    Args:
        choices: Two or more different texts.
    """

    def __init__(self, choices: Sequence[str]) -> None:
        self._exact = len({choice.casefold() for choice in choices}) < len(choices)
        self._choices = {self._folded(choice): choice for choice in choices}

    @property
    def instruction(self) -> str:
        """What to tell the model besides the prompt."""
        named = ", ".join(json.dumps(choice, ensure_ascii=False) for choice in self._choices.values())
        return f"Answer with exactly one of these and nothing else: {named}"

    def read(self, text: str) -> str:
        """The choice that a text is, or that it begins with in front of a full stop or the like.

        Raises:
            ValueError: It is none of them.
        """
        said = self._folded(text).strip(_AROUND)
        begun = (choice for choice in self._choices if _ends(said, choice, _BEHIND))
        for found in (said, said.strip(_AROUND + _BEHIND), max(begun, key=len, default="")):
            if found in self._choices:
                return self._choices[found]
        raise ValueError(f"the answer must be one of {', '.join(self._choices.values())} but is {text[:100]!r}")

    def probability(self, answer: str, tokens: Sequence[Token]) -> float | None:
        """How likely an answer was among the choices.

        Wherever the tokens that the model thought of lead to different choices, the share of those that lead to the
        answer; the product of these shares. Tokens that lead to no choice do not count.

        Args:
            answer: A choice.
            tokens: Of the text that gave it, in order.

        Returns:
            0…1; None if the tokens don't tell the answer from another choice.
        """
        wanted, alive, said, share = self._folded(answer), set(self._choices), "", 1.0
        for token, alternatives in tokens:
            leading = of_all = 0.0
            for text, logarithm in alternatives:
                leads_to = self._leads_to(said + text, alive)
                weight = math.exp(min(0.0, logarithm)) if leads_to else 0.0
                of_all += weight
                leading += weight if wanted in leads_to else 0.0
            alive = self._leads_to(said + token, alive)
            if wanted not in alive or not of_all > 0:
                return None
            share *= leading / of_all
            if alive == {wanted}:
                return share
            said += token
        return None

    def _leads_to(self, text: str, alive: set[str]) -> set[str]:
        """Choices that a text may still become; else the longest that it is, with something behind."""
        said = self._folded(text).lstrip(_AROUND)
        coming = {choice for choice in alive if choice.startswith(said)}
        if coming:
            return coming
        behind = {choice for choice in alive if _ends(said, choice)}
        return {max(behind, key=len)} if behind else set()

    def _folded(self, text: str) -> str:
        return text if self._exact else text.casefold()


def _ends(said: str, choice: str, behind: str | None = None) -> bool:
    """Whether a text begins with a choice and goes on with no letter or digit, or with one of some characters."""
    if not said.startswith(choice) or len(said) == len(choice):
        return False
    after = said[len(choice)]
    return not after.isalnum() if behind is None else after in behind
