from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from rrcluster.models.vocabulary import NOTICE, load_vocabulary
from rrcluster.records import UserError


def test_the_shipped_vocabulary_is_large_clean_and_general() -> None:
    names = load_vocabulary()
    assert 2000 <= len(names) <= 3000
    assert len({name.casefold() for name in names}) == len(names)
    assert all(name == name.strip() and len(name) < 40 for name in names)
    assert {"dog", "pizza", "screenshot", "living room", "bicycle", "stripe"} <= set(names)


def test_the_lists_name_their_sources_and_the_licence_lies_beside_them() -> None:
    folder = resources.files("rrcluster.models")
    for name in ("vocabulary.txt", "kinds.txt"):
        text = folder.joinpath(name).read_text("utf-8")
        assert all(f"# {line}" in text for line in NOTICE.splitlines())
    assert "Princeton University" in folder.joinpath("LICENSE.wordnet").read_text("utf-8")


def test_a_users_list_loses_comments_blanks_and_repeats(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    text = "# mine\nroter  Fuchs\n\n猫 # cat\nROTER FUCHS\nC# book\n"
    path.write_text(text, encoding="utf-8-sig")
    assert load_vocabulary(str(path)) == ["roter Fuchs", "猫", "C# book"]


@pytest.mark.parametrize("content", [None, b"", b"# only a comment\n", b"\xff\xfe\x00cat"])
def test_a_list_without_names_is_the_users_mistake(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"caption\.vocabulary"):
        load_vocabulary(str(path))
