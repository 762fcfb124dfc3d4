"""From ``corpus.uri`` to files: folders, globs, brace ranges, single files, on any filesystem."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem

from rrcluster.io.retry import briefly, of_storage
from rrcluster.io.source import etag_of, one_line
from rrcluster.io.store import LOCAL_PROTOCOLS, filesystem
from rrcluster.records import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_NO_CREDENTIALS = ("NoCredentials", "PartialCredentials", "CredentialRetrieval", "SSOToken",
                   "TokenRetrieval", "UnauthorizedSSO", "ProfileNotFound",
                   "DefaultCredentials")  # fmt: skip
FEW = 16  # names in one folder that are asked for one by one
MAX_RANGE = 10_000_000  # names that a brace range may stand for


@dataclass(frozen=True)
class Found:
    """One file, with what tells whether it is still the same one."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class Listing:
    """What one entry of ``corpus.uri`` stands for.

    ``pattern`` is the glob that the files match, or "". ``exact`` says that the user named these
    very files, so that their names need no known extension.
    """

    fs: AbstractFileSystem
    root: str
    files: list[Found]
    pattern: str = ""
    exact: bool = False


def uri_of(fs: AbstractFileSystem, path: str) -> str:
    """The address that the manifest keeps: a plain path for local files, else with its protocol."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return path if set(protocols) & set(LOCAL_PROTOCOLS) else str(fs.unstrip_protocol(path))


def list_files(uri: str, options: Mapping[str, Any]) -> list[Listing]:
    """The files that ``uri`` stands for; raises UserError when there are none or no access."""
    if not uri:
        raise UserError("corpus.uri", "''", "set it to a folder, glob or list of image shards")
    try:
        fs, path = filesystem(uri, options)
        found = briefly(lambda: list(_resolve(fs, path.rstrip("/") or path, uri)))
    except UserError:
        raise
    except Exception as error:
        raise access_error(uri, error) from error
    if not any(listing.files for listing in found):
        raise UserError("corpus.uri", uri, "there are no files; point it at image shards")
    return found


def list_addresses(addresses: Sequence[str], options: Mapping[str, Any], uri: str) -> list[Listing]:
    """The files that the lines of the list ``uri`` stand for; each folder is listed once."""
    found: list[Listing] = []
    plain: dict[AbstractFileSystem, list[str]] = defaultdict(list)
    for address in addresses:
        if _is_glob(address) or next(iter(expand_braces(address))) != address:
            found += list_files(address, options)
        else:
            fs, path = filesystem(address, options)
            plain[fs].append(path.rstrip("/") or path)
    for fs, names in plain.items():
        try:
            found += briefly(partial(_all_named, fs, names, uri))
        except UserError:
            raise
        except Exception as error:
            raise access_error(uri, error) from error
    if not any(listing.files for listing in found):
        raise UserError("corpus.uri", uri, "lists folders that hold no files")
    return found


def access_error(uri: str, error: Exception) -> Exception:
    """What the user can do about ``error``, or ``error`` itself if it is no matter of access."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    text = one_line(str(error)) or kinds[0]
    if isinstance(error, FileNotFoundError):
        return UserError("corpus.uri", uri, "no such file or folder; check the spelling")
    if any(kind.startswith(_NO_CREDENTIALS) for kind in kinds):
        return UserError(
            "corpus.uri",
            uri,
            "no credentials for this store; set corpus.storage_options={key: ..., secret: ...}, "
            "or {anon: true} for a public bucket, or the store's environment variables",
        )
    if isinstance(error, PermissionError):
        return UserError(
            "corpus.uri", uri, f"permission denied ({text}); check corpus.storage_options"
        )
    if isinstance(error, ImportError):
        return UserError("corpus.uri", uri, f"this kind of store needs another package: {text}")
    if isinstance(error, ValueError) and "rotocol" in text:
        return UserError("corpus.uri", uri, f"{text}; use a local path, s3://, gs:// or az://")
    if of_storage(error):
        return UserError(
            "corpus.uri", uri, f"cannot be listed ({text}); check corpus.storage_options"
        )
    return error


def _resolve(fs: AbstractFileSystem, path: str, uri: str) -> Iterator[Listing]:
    info = _info(fs, path)  # first, because a real name may contain brackets or braces
    if info is not None:
        yield _listing(fs, path, info)
        return
    names = list(expand_braces(path))
    if names != [path]:
        globs = [name for name in names if _is_glob(name)]
        for name in globs:
            yield from _glob(fs, name)
        yield from _named(fs, [name for name in names if not _is_glob(name)], uri)
    elif _is_glob(path):
        yield from _glob(fs, path)
    else:
        raise FileNotFoundError(path)


def _info(fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = fs.info(path)
    except FileNotFoundError:
        return None
    return info


def _listing(fs: AbstractFileSystem, path: str, info: Mapping[str, Any]) -> Listing:
    """A folder with all that is below, or the one file."""
    if info["type"] != "directory":
        return Listing(fs, posixpath.dirname(path), [_found(path, info)], exact=True)
    entries = fs.find(path, detail=True)
    if not entries:
        fs.ls(path, detail=False)  # find() keeps quiet about a folder that it may not read
    return Listing(fs, path, _files(entries))


def _glob(fs: AbstractFileSystem, pattern: str) -> Iterator[Listing]:
    """The files that match, and each folder that matches with all that is below."""
    before = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    root = before.rpartition("/")[0]
    entries = fs.glob(pattern, detail=True)
    yield Listing(fs, root, _files(entries), pattern)
    if "**" not in pattern:  # which has gone into the folders already
        for path, info in entries.items():
            if info["type"] == "directory" and path.rstrip("/") != root:
                yield _listing(fs, path.rstrip("/"), info)


def _all_named(fs: AbstractFileSystem, names: list[str], uri: str) -> list[Listing]:
    return list(_named(fs, names, uri))


def _present(fs: AbstractFileSystem, parent: str, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """What there is of the wanted names: asked one by one where that is less than a listing."""
    if len(wanted) <= FEW:
        infos = {name: _info(fs, name) for name in wanted}
        return {name: info for name, info in infos.items() if info is not None}
    try:
        return {e["name"].rstrip("/"): e for e in fs.ls(parent, detail=True)}
    except FileNotFoundError:
        return {}


def _named(fs: AbstractFileSystem, names: list[str], uri: str) -> Iterator[Listing]:
    """The files and folders with these very names; each parent folder is listed once."""
    by_parent: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_parent[posixpath.dirname(name)].append(name)
    for parent, wanted in by_parent.items():
        present = _present(fs, parent, wanted)
        missing = [name for name in wanted if name not in present]
        if missing:
            first = uri_of(fs, missing[0])
            raise UserError(
                "corpus.uri", uri, f"{len(missing)} of {len(names)} are missing, first: {first}"
            )
        files = []
        for name in wanted:
            if present[name]["type"] == "directory":
                yield _listing(fs, name, present[name])
            else:
                files.append(_found(name, present[name]))
        if files:
            yield Listing(fs, parent, files, exact=True)


def expand_braces(text: str) -> Iterator[str]:
    """``a{08..10}`` → a08, a09, a10; ``a{x,y}`` → ax, ay; leading zeros give the width."""
    match = _RANGE.search(text) or _CHOICE.search(text)
    if match is None:
        yield text
        return
    head, tail = text[: match.start()], text[match.end() :]
    choices: Iterable[str]
    if match.re is _RANGE:
        first, last = int(match[1]), int(match[2])
        width = len(match[1]) if match[1].startswith("0") else 0
        if not 0 <= last - first < MAX_RANGE:
            raise UserError("corpus.uri", text, f"{match[0]} must count upwards, from low to high")
        choices = (f"{number:0{width}d}" for number in range(first, last + 1))
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from expand_braces(head + choice + tail)


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _files(entries: Mapping[str, Mapping[str, Any]]) -> list[Found]:
    return [
        _found(path, info)
        for path, info in entries.items()
        if info["type"] == "file" and not path.endswith("/")  # consoles make "folders" of no bytes
    ]


def _found(path: str, info: Mapping[str, Any]) -> Found:
    return Found(path, int(info.get("size") or 0), etag_of(info))
