"""Every setting of a method, its value in each preset, and what it means: `unpaired methods munit`.

What a setting means is said once, by the comment beside it in the source: `config.py` and the method's `Config`.
"""

from __future__ import annotations

import inspect
import io
import re
import tokenize
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from unpaired.config import Data, Decay, Optim, Train, flat, load
from unpaired.registry import find_method

UNLABELLED = ("data.labels", "data.labelled", "data.jitter", "data.hue")  # of that layout alone


def notes(section: type[BaseModel]) -> dict[str, str]:
    """What the comments say of each setting of a section: those above it and the one at the end of its line."""
    found: dict[str, str] = {}
    comments: list[str] = []
    words: list[str] = []
    for kind, text, *_ in tokenize.generate_tokens(
        io.StringIO(inspect.getsource(section)).readline
    ):
        if kind == tokenize.COMMENT:
            comments.append(text.lstrip("# "))
        elif kind == tokenize.NEWLINE:
            if len(words) > 1 and words[1] == ":" and words[0] in section.model_fields:
                found[words[0]] = " ".join(comments)
            comments, words = [], []
        elif text.strip():
            words.append(text)
    return found


def choices(section: type[BaseModel], key: str, note: str) -> str:
    """The words that a setting may be, in brackets; nothing where it has no such, or the note names them all."""
    kind = section.model_fields[key].annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [str(w) for k in kinds if get_origin(k) is Literal for w in get_args(k)]
    named = all(re.search(rf"\b{re.escape(word)}\b", note, re.IGNORECASE) for word in words)
    return "" if named else f" ({', '.join(words)})"


def reference(name: str) -> str:
    """A line for each setting: key, value in each preset, meaning. Raises ConfigProblem for no such method."""
    cls = find_method(name)
    presets = list(cls.presets) or ["paper"]
    values = {
        p: flat(load(method={"name": name}, preset=p).model_dump(mode="json")) for p in presets
    }
    sections: dict[str, type[BaseModel]] = {
        "method": cls.Config,
        "data": Data,
        "optim.default": Optim,
        "optim.default.decay": Decay,
        "train": Train,
    }
    said = {
        f"{part}.{key}": note + choices(s, key, note)
        for part, s in sections.items()
        for key, note in notes(s).items()
    }
    idle = () if cls.layout == "unlabelled" else UNLABELLED
    keys = dict.fromkeys(
        key for v in values.values() for key in v if own(key, values) and key not in idle
    )
    rows = [("setting", *presets, "")]
    for key in keys:
        note = said.get(key, "")
        cells = (shown(v.get(key)) for v in values.values())
        rows.append((key, *cells, note[:1].upper() + note[1:]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = [
        "  ".join(c.ljust(n) for c, n in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    card = cls.card or {"title": name}
    about = dict.fromkeys(str(card[k]) for k in ("authors", "venue", "year") if card.get(k))
    head = [card["title"], ", ".join(about), card.get("url") or ""]
    return "\n".join([*filter(None, head), "", *table])


def own(key: str, values: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it is a setting to choose: of one network's optimizer, what differs from all networks' in some preset."""
    section, *rest = key.split(".")
    if section != "optim" or rest[0] == "default":
        return bool(rest) and key != "method.name"
    default = ".".join(["optim", "default", *rest[1:]])
    return any(key in v and v[key] != v[default] for v in values.values())


def shown(value: Any) -> str:
    """A value as it is written in a config; nothing for none."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
