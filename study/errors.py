"""What is wrong with the user's input, in one line."""

from __future__ import annotations

import unicodedata

#: Unicode categories of characters that a terminal obeys or does not show: controls, direction marks, halves of pairs.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LONGEST_LINE = 1000


class InputError(ValueError):
    """The user's input cannot be used. The message is one line: what is wrong, where, what to do."""


class InsufficientResourcesError(InputError):
    """A trial asks for more than the cluster has; ``resource`` is what is missing: ``CPU`` or ``GPU``."""

    def __init__(self, message: str, *, key: str, resource: str) -> None:
        super().__init__(f"{key}: {message}")
        self.resource = resource


def one_line(text: str) -> str:
    """One line, its middle left out where it is long, hidden characters as codes: no file's text moves the cursor."""
    words = " ".join(text.split())
    cut = words if len(words) <= _LONGEST_LINE else words[: _LONGEST_LINE // 2] + " … " + words[-_LONGEST_LINE // 2 :]
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in cut)
