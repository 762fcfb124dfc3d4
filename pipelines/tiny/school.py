"""The two phases of the tiny encoder's training: shapes first, then words; and their settings."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.nn import functional

from pipelines.tiny.loss import match_all, name_all
from pipelines.tiny.pictures import Pictures, jitter, normalise
from pipelines.tiny.texts import KINDS, LISTS, claims_of, word


@dataclass(frozen=True)
class Schooling:
    """Everything that decides the weights."""

    shapes: int = 3000  # steps of the first phase
    words: int = 800  # steps of the second phase
    seed: int = 0
    pictures: int = 40_000
    width: int = 16  # of the image tower; the last stage is 32 times as wide
    layers: tuple[int, ...] = (1, 1, 1, 1)  # residual blocks in its four stages
    batch: int = 64  # many small steps learn shapes from fewer pictures than few large ones
    larger: int = 128  # batch of the second phase, where the texts cost the same for any batch
    alone: int = 100  # first steps of the second phase, in which only the text tower changes
    captions: int = 24
    distractors: int = 8
    caption_weight: float = 0.3  # of the matching loss, against 1 for naming the object
    rate: float = 2e-3
    text_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to 1% of ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


class School:
    """A model on its way through both phases; which pictures and words come when is seeded."""

    def __init__(
        self, model: CLIP, tokenizer: SimpleTokenizer, pictures: Pictures, schooling: Schooling
    ) -> None:
        self.model, self.tokenizer = model.train(), tokenizer
        self.pictures, self.schooling = pictures, schooling
        self._truth = np.stack([claims_of(facts) for facts in pictures.facts])
        self._rng = np.random.default_rng([schooling.seed, 1])
        self._generator = torch.Generator().manual_seed(schooling.seed)
        self._found: list[float] = []
        self._began = time.perf_counter()

    def learn_shapes(self) -> None:
        """The image tower names every attribute among free vectors."""
        width = self.model.visual.output_dim
        stand_ins = {
            kind: nn.Parameter(torch.randn(len(LISTS[kind]), width, generator=self._generator))
            for kind in KINDS
        }
        optimizer = _optimizer([*self._seeing(), *stand_ins.values()], self.schooling)
        for step in range(self.schooling.shapes):
            chosen = self._rng.choice(len(self._truth), self.schooling.batch, replace=False)
            names = {kind: functional.normalize(x, dim=-1) for kind, x in stand_ins.items()}
            scale = self.model.logit_scale.exp()
            nobody = torch.zeros(0, width)
            loss, share = name_all(self._see(chosen), names, nobody, self._truth[chosen], scale)
            self._update(step, loss, share, [optimizer])

    def learn_words(self) -> None:
        """The text tower's vectors take the free ones' place, and captions are matched as well."""
        reading = [p for n, p in self.model.named_parameters() if not n.startswith("visual.")]
        reading = [p for p in reading if p is not self.model.logit_scale]
        optimizers = [_optimizer(part, self.schooling) for part in (self._seeing(), reading)]
        for step in range(self.schooling.words):
            chosen = self._rng.choice(len(self._truth), self.schooling.larger, replace=False)
            shown = chosen[: self.schooling.captions]
            pairs = [(self.pictures.facts[i], self.pictures.web[i]) for i in shown]
            words = word(self._rng, pairs, self.schooling.distractors)
            with torch.set_grad_enabled(step >= self.schooling.alone):
                images = self._see(chosen)
            with torch.autocast("cpu", torch.bfloat16):
                read = self.model.encode_text(self.tokenizer(words.texts))
            texts, where = functional.normalize(read.float(), dim=-1), words.rows()
            names = {kind: texts[where[kind]] for kind in KINDS}
            strangers, captions = texts[where["distractor"]], texts[where["caption"].start :]
            scale, truth = self.model.logit_scale.exp(), self._truth[chosen]
            naming, share = name_all(images, names, strangers, truth, scale)
            matching = match_all(images, captions, words.claims, truth, scale)
            loss = naming + self.schooling.caption_weight * matching
            self._update(self.schooling.shapes + step, loss, share, optimizers)

    def _see(self, chosen: npt.NDArray[np.int64]) -> Tensor:
        """Unit rows (n, d) of these pictures, each a little changed."""
        look: dict[str, Any] = self.model.visual.preprocess_cfg
        pixels = torch.from_numpy(self.pictures.pixels[chosen])
        images = jitter(normalise(pixels, look["mean"], look["std"]), self._generator)
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.model.encode_image(images.to(memory_format=torch.channels_last))
        return functional.normalize(seen.float(), dim=-1)

    def _seeing(self) -> list[nn.Parameter]:
        return [*self.model.visual.parameters(), self.model.logit_scale]

    def _update(
        self, step: int, loss: Tensor, share: float, optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """One step of the image side at ``rate`` and, if there are two, the text side at its."""
        plan = self.schooling
        rates = [learning_rate(plan.rate, step, plan.shapes + plan.words, plan.warmup)]
        rates.append(learning_rate(plan.text_rate, step - plan.shapes, plan.words, plan.warmup))
        for optimizer, rate in zip(optimizers, rates, strict=False):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()
        for optimizer in optimizers:
            every = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(every, 1.0)
            optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self._found.append(share)
        if step % 100 == 99:
            print(
                f"step {step + 1} loss {loss.item():.3f} objects {np.mean(self._found[-100:]):.3f}"
                f" scale {self.model.logit_scale.exp().item():.1f}"
                f" {time.perf_counter() - self._began:.0f} s",
                flush=True,
            )


def _optimizer(parameters: list[nn.Parameter], schooling: Schooling) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schooling.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schooling.rate, betas=(0.9, 0.98), eps=1e-6)


def train(
    model: CLIP, tokenizer: SimpleTokenizer, pictures: Pictures, schooling: Schooling
) -> CLIP:
    """Both phases, on ``model`` in place."""
    school = School(model, tokenizer, pictures, schooling)
    school.learn_shapes()
    school.learn_words()
    return model.eval()
