"""The candidate names that ship with the package, or a user's own list; and kinds of things.

Both files are made by ``pipelines/build_vocabulary.py``, which says from what.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from rrcluster.records import UserError

NOTICE = """\
Made by pipelines/build_vocabulary.py from WordNet 3.0 (Copyright 2006 by Princeton University, all
rights reserved; used under the WordNet licence, whose text is in LICENSE.wordnet beside this file),
the tag list of Recognize Anything (Apache-2.0) and word frequencies of SpLiCE (Apache-2.0)."""


def load_vocabulary(path: str | None = None) -> list[str]:
    """Names from a UTF-8 text file, one per line, in file order; None reads the shipped list.

    Blank lines and comments (from ``#`` at the start of a line or after a space) are left out, and
    so is a name that was there before in another case.
    """
    if path is None:
        text = resources.files("rrcluster.models").joinpath("vocabulary.txt").read_text("utf-8")
    else:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            remedy = f"cannot be read as a UTF-8 text file with one name per line ({error})"
            raise UserError("caption.vocabulary", path, remedy) from error
    names: dict[str, str] = {}
    for line in text.splitlines():
        name = " ".join(f" {line}".split(" #", 1)[0].split())
        if name:
            names.setdefault(name.casefold(), name)
    if not names:
        raise UserError("caption.vocabulary", path, "has no names; write one per line")
    return list(names.values())


@functools.cache
def load_kinds() -> Mapping[str, tuple[str, ...]]:
    """What a noun is a kind of, by names that people use, nearest first: beagle: hound, dog, ..."""
    text = resources.files("rrcluster.models").joinpath("kinds.txt").read_text("utf-8")
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: tuple(filter(None, above.strip().split(", "))) for name, _, above in lines}
