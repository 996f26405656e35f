"""The YAML of a specification, read as if a stranger had written it: no code, no bombs, no hidden characters.

What is refused here is refused before anything is built: the parser's events are counted, with every alias as large as
what it stands for. See :func:`read_yaml`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from study.errors import HIDDEN, InputError

_LARGEST_FILE = 1 << 20  # bytes
_MOST_VALUES = 20_000  # keys and values, aliases written out
_DEEPEST = 32  # lists and mappings in each other


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number (YAML 1.2) and a key given twice is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Raises a YAML error with a line where Python's own conversion fails, e.g. of a number of 5,000 digits."""
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{str(node.value)[:40]!r} cannot be read as {kind}", node.start_mark
            ) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    marks: dict[Any, yaml.Mark] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
        key = loader.construct_object(key_node)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", marks[key])
        marks[key] = key_node.start_mark
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """The values of the file at ``path``, and its nodes, which know their lines.

    Raises :class:`InputError`, in one line: no such file, not YAML, a tag that is not plain data, larger or deeper than
    a specification can be, or a character that a terminal would obey instead of showing.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise InputError(f"larger than {_LARGEST_FILE >> 20} MiB; a specification is a page", file=path)
        text = content.decode()
        _check_events(path, yaml.parse(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader), yaml.compose(text, Loader=_Loader)
    except FileNotFoundError:
        raise InputError("no such specification; see search_spaces/ for those that come with it", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid"
        line = mark.line + 1 if mark else 1
        raise InputError(f"not valid YAML: {problem}", file=path, line=line) from None


@dataclass
class _Open:
    """A node under way: its anchor, and how many values it holds by now."""

    anchor: str | None
    values: int = 1


def _check_events(path: Path, events: Iterable[yaml.Event]) -> None:
    """Raises :class:`InputError` at the first event with which the specification is too much, or hides something."""
    sizes: dict[str, int] = {}  # anchor -> values that an alias of it stands for
    under_way = [_Open(None)]
    for event in events:
        line = event.start_mark.line + 1  # type: ignore[union-attr]
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            under_way.append(_Open(event.anchor))
            if len(under_way) > _DEEPEST:
                raise InputError(f"lists and mappings are nested deeper than {_DEEPEST}", file=path, line=line)
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            ended = under_way.pop()
            anchor, values = ended.anchor, ended.values
        elif isinstance(event, yaml.ScalarEvent):
            _check_characters(path, line, event.value)
            anchor, values = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            anchor, values = None, sizes.get(event.anchor or "", 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = values
        under_way[-1].values += values
        if sum(node.values for node in under_way) > _MOST_VALUES:
            raise InputError(
                f"more than {_MOST_VALUES} values, aliases (*name) written out; make it smaller", file=path, line=line
            )


def _check_characters(path: Path, line: int, text: str) -> None:
    for character in text:
        if unicodedata.category(character) in HIDDEN:
            raise InputError(
                f"the value {text[:40]!r} holds U+{ord(character):04X}, which cannot be seen", file=path, line=line
            )
