"""The vocabulary: the values that travel between layers, and the user's-mistake error.

Shape letters, everywhere in the package: ``n`` rows, ``d`` embedding width, ``e`` width of the
refined features, ``k`` clusters at hand, ``r`` rank, ``L`` levels, ``m`` candidate texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

BadReason = Literal["decode", "truncated", "too_large", "unsupported", "missing_image", "read"]


@dataclass(frozen=True)
class Shard:
    """One input file (or group of image files) of the corpus, as the manifest lists it."""

    index: int
    uri: str
    format: str
    num_bytes: int
    etag: str

    @property
    def name(self) -> str:
        """The shard's name in every folder of the run."""
        return f"{self.index:06d}"


@dataclass(frozen=True)
class Sample:
    """One readable image (or ready vector) of a shard, before embedding."""

    shard: int
    row: int  # position in the input shard, bad rows included
    key: str
    caption: str | None
    width: int
    height: int
    sample_id: bytes  # 16 bytes, see DESIGN: uid of the json, else XXH3-128 of the image bytes
    pixels: npt.NDArray[np.uint8]  # RGB as the encoder sees it: (size, size, 3)
    further: int = 0  # images of the same key, which are passed over


@dataclass(frozen=True)
class Bad:
    """One row that cannot be used, and why: it is counted, never dropped in silence."""

    shard: int
    row: int
    key: str
    reason: BadReason
    detail: str
    further: int = 0  # images of the same key, which are passed over


class UserError(Exception):
    """A mistake that the user can mend: names the setting, its value, and what would work."""

    def __init__(self, setting: str, value: object, remedy: str) -> None:
        super().__init__(setting, value, remedy)
        self.setting, self.value, self.remedy = setting, value, remedy

    def __str__(self) -> str:
        line = f"{self.setting}={self.value}: {self.remedy}"
        if "storage_options" in self.setting:  # its value may be a secret, also in the remedy
            line = f"{self.setting}=***: {self.remedy}".replace(str(self.value), "***")
        return " ".join(line.split())


def setting(default: Any, help: str) -> Any:
    """A dataclass field of the configuration with the sentence that ``--help`` prints."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})
