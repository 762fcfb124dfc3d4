"""The text side of the shared space: a CLIP text tower, or vectors that somebody else computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rrcluster.models.encoder import autocast
from rrcluster.records import UserError

# Several wordings of one name, averaged (Radford et al. 2021, section 3.1.4): few and neutral,
# since every wording costs a pass of the text tower per candidate.
TEMPLATES = (
    "a photo of {}.",
    "a close-up photo of {}.",
    "{}",
)


class TextTower(ABC):
    """Texts in, unit vectors of the images' space out."""

    fixed: list[str] | None = None  # the only texts it knows; None: it takes any text

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit rows (m, d)."""


class FixedTexts(TextTower):
    """Ready vectors of given names."""

    fixed: list[str]

    def __init__(self, names: Sequence[str], x: npt.NDArray[Any]) -> None:
        if x.ndim != 2 or len(names) != len(x):
            remedy = f"has {len(names)} names for x of shape {x.shape}; one row per name is needed"
            raise UserError("encoder.text", "vectors", remedy)
        rows = np.asarray(x, dtype=np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        self._x: npt.NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
        self.fixed = list(names)
        # The first of equal names counts.
        self._row = {name: i for i, name in reversed(list(enumerate(names)))}

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        unknown = [text for text in texts if text not in self._row]
        if unknown:
            remedy = f"has no vector for {unknown[0]!r} and {len(unknown) - 1} more; use its names"
            raise UserError("encoder.text", "vectors", remedy)
        rows = np.array([self._row[text] for text in texts], dtype=np.int64)
        return self._x[rows]


class PromptedTexts(TextTower):
    """A text tower asked with several templates per text; their unit vectors are averaged."""

    def __init__(
        self,
        encode_tokens: Callable[[Tensor], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        device: str,
        dtype: torch.dtype,
        templates: Sequence[str] = TEMPLATES,
        batch_size: int = 64,
    ) -> None:
        self.fixed = None
        self._encode_tokens, self._tokenize = encode_tokens, tokenize
        self._device, self._dtype = torch.device(device), dtype
        self._templates, self._batch_size = templates, batch_size

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        assert len(texts), "a text tower was asked for no texts"
        prompts = [t.format(text.replace("_", " ")) for text in texts for t in self._templates]
        rows = self._unit(prompts).reshape(len(texts), len(self._templates), -1).mean(axis=1)
        unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    @torch.inference_mode()
    def _unit(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        parts: list[Tensor] = []
        for start in range(0, len(prompts), self._batch_size):
            part = list(prompts[start : start + self._batch_size])
            # Constant shapes, as for images: a text's vector does not depend on its neighbours.
            padded = part + [""] * (self._batch_size - len(part))
            tokens = self._tokenize(padded).to(self._device)
            with autocast(self._device, self._dtype):
                rows = self._encode_tokens(tokens)
            parts.append(nn.functional.normalize(rows[: len(part)].float(), dim=-1))
        return torch.cat(parts).cpu().numpy()
