"""The candidate names that ship with the package, or a user's own list."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rrcluster.records import UserError


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
