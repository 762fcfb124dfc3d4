"""Trains the encoder that ships with the package, from scratch, on drawn pictures.

    python -m pipelines.train_tiny                        # the shipped weights, about 12 minutes
    python -m pipelines.train_tiny --steps 200 --out /tmp/tiny
    python -m pipelines.train_tiny --eval-only

The loss is CLIP's with two changes. Several texts of a batch may be true of one picture: all of
them are its targets (UniCL, Yang et al. 2022, eq. 3). And texts compete only with texts that tell
the same attributes: "a star" with "a boat", not with "a red star". Some texts of every batch are
true of no picture, so that words it never learned stay far from all of them.

Where other programs share the cores, set OMP_WAIT_POLICY=PASSIVE: threads that spin while they
wait made steps eight times slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from pipelines.tiny_card import model_card
from pipelines.tiny_figures import figures
from pipelines.tiny_pictures import Pictures, draw_many, jitter, normalise
from pipelines.tiny_texts import (
    ANY,
    DISTRACTOR,
    OBJECT,
    claims_of,
    distractor,
    kinds_of,
    learn_merges,
    prompt,
    write_merges,
)
from rrcluster.models.tiny import CONFIG, FOLDER, MERGES, WEIGHTS, load_tiny, load_tokenizer

MEASURING_SEED = 10_001  # of the pictures behind the figures; training must use another


@dataclass(frozen=True)
class Schooling:
    """Everything that decides the weights."""

    steps: int = 3200
    seed: int = 0
    pictures: int = 20_000
    width: int = 16  # of the image tower; the last stage is 32 times as wide
    layers: tuple[int, ...] = (1, 1, 1, 1)  # residual blocks in its four stages
    batch: int = 80  # many small steps learn shapes from fewer pictures than few large ones
    texts: int = 64  # a text may speak for several pictures, so fewer texts than pictures
    distractors: int = 12
    object_weight: float = 3.0  # of texts that tell the object alone, against 1 for other kinds
    rate: float = 1.5e-3
    warmup: int = 150
    weight_decay: float = 0.05


def learning_rate(schooling: Schooling, step: int) -> float:
    """Linear warm-up, then half a cosine down to 1% of ``rate``."""
    if step < schooling.warmup:
        return schooling.rate * (step + 1) / schooling.warmup
    done = (step - schooling.warmup) / max(1, schooling.steps - schooling.warmup)
    return schooling.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def loss_of(
    images: Tensor, texts: Tensor, true: Tensor, kinds: Tensor, scale: Tensor
) -> dict[int, Tensor]:
    """Cross-entropies between unit rows, spread evenly over all true pairs, one per kind of text.

    ``images`` (n, d), ``texts`` (m, d), ``true`` (n, m) in 0/1, ``kinds`` (m,): texts of one kind
    tell the same attributes, so that they compete. Those of kind DISTRACTOR compete with every
    kind and are never the answer. Each entry is the mean of text-of-image and image-of-text.
    """
    logits = scale * images @ texts.T
    losses: dict[int, Tensor] = {}
    for kind in kinds.unique().tolist():
        if kind == DISTRACTOR:
            continue
        asked = (kinds == kind) & true.any(dim=0)
        offered = asked | (kinds == DISTRACTOR)
        told = true[:, asked].any(dim=1)  # images with a true text of this kind
        ways = (
            (logits[told][:, offered], true[told][:, offered]),
            (logits[:, asked].T, true[:, asked].T),
        )
        there, back = (
            functional.cross_entropy(scores, truth / truth.sum(dim=1, keepdim=True))
            for scores, truth in ways
        )
        losses[kind] = (there + back) / 2
    return losses


def train(
    model: CLIP, tokenizer: SimpleTokenizer, pictures: Pictures, schooling: Schooling
) -> CLIP:
    """Runs all steps on ``model`` in place; which pictures and words come when is seeded."""
    look: dict[str, Any] = model.visual.preprocess_cfg
    truth = np.stack([claims_of(facts) for facts in pictures.facts])
    optimizer = _optimizer(model, schooling)
    generator = torch.Generator().manual_seed(schooling.seed)
    rng = np.random.default_rng([schooling.seed, 1])
    model.train()
    began = time.perf_counter()
    for step in range(schooling.steps):
        chosen = rng.choice(len(truth), schooling.batch, replace=False)
        pairs = [prompt(rng, pictures.facts[i], pictures.web[i]) for i in chosen[: schooling.texts]]
        words = [text for text, _ in pairs]
        words += [distractor(rng) for _ in range(schooling.distractors)]
        claims = np.stack([claim for _, claim in pairs])  # (texts, attributes)
        agrees = (claims[None] == ANY) | (claims[None] == truth[chosen][:, None])
        true = np.zeros((schooling.batch, len(words)), dtype=np.float32)
        true[:, : len(pairs)] = agrees.all(axis=2)
        kinds = np.full(len(words), DISTRACTOR)
        kinds[: len(pairs)] = kinds_of(claims)
        images = normalise(torch.from_numpy(pictures.pixels[chosen]), look["mean"], look["std"])
        images = jitter(images, generator).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.encode_image(images)
            read = model.encode_text(tokenizer(words))
        rows = [functional.normalize(features.float(), dim=-1) for features in (seen, read)]
        losses = loss_of(
            rows[0],
            rows[1],
            torch.from_numpy(true),
            torch.from_numpy(kinds),
            model.logit_scale.exp(),
        )
        weights = {kind: schooling.object_weight if kind == OBJECT else 1.0 for kind in losses}
        total = torch.stack([losses[k] * weights[k] for k in losses]).sum()
        loss = total / sum(weights.values())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schooling, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0 or step == schooling.steps - 1:
            seconds = time.perf_counter() - began
            print(
                f"step {step} loss {loss.item():.3f} objects {losses.get(OBJECT, loss).item():.3f}"
                f" scale {model.logit_scale.exp().item():.1f} {seconds:.0f} s",
                flush=True,
            )
    return model.eval()


def _optimizer(model: CLIP, schooling: Schooling) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": schooling.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schooling.rate, betas=(0.9, 0.98), eps=1e-6)


def prepare(
    out: Path, config: dict[str, Any], pictures: Pictures, schooling: Schooling
) -> tuple[CLIP, SimpleTokenizer]:
    """A fresh model, with the merges and the configuration that fit it written to ``out``."""
    rng = np.random.default_rng([schooling.seed, 2])
    pairs = zip(pictures.facts, pictures.web, strict=True)
    texts = [prompt(rng, facts, web)[0] for facts, web in pairs]
    size = write_merges(out / MERGES, learn_merges(texts, most=600, seen=20))
    shape = config["model_cfg"]
    image = {"width": schooling.width, "layers": list(schooling.layers)}
    text = {"vocab_size": size}
    shape = shape | {
        "vision_cfg": shape["vision_cfg"] | image,
        "text_cfg": shape["text_cfg"] | text,
    }
    fitting = config | {"model_cfg": shape}
    (out / CONFIG).write_text(json.dumps(fitting, indent=2) + "\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schooling.seed)
        model = open_clip.create_model(f"local-dir:{out}", load_weights=False)
    return model.to(memory_format=torch.channels_last), load_tokenizer(out)


def save(model: CLIP, folder: Path) -> None:
    """The weights as float16 in one safetensors file."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)


def main() -> None:
    defaults = Schooling()
    parser = argparse.ArgumentParser(description="Train the encoder that ships with rrcluster.")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--pictures", type=int, default=defaults.pictures)
    parser.add_argument("--measured", type=int, default=3000, help="pictures of the figures")
    parser.add_argument("--width", type=int, default=defaults.width)
    parser.add_argument("--layers", type=int, nargs=4, default=defaults.layers)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--eval-only", action="store_true", help="measure what is in --out")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    config = json.loads((FOLDER / CONFIG).read_text())
    side = config["model_cfg"]["vision_cfg"]["image_size"]
    if arguments.seed == MEASURING_SEED:
        parser.error(f"--seed {MEASURING_SEED} belongs to the figures; choose another")
    heldout = draw_many(MEASURING_SEED, arguments.measured, "heldout", side)
    fresh = draw_many(MEASURING_SEED, arguments.measured, "train", side)
    if arguments.eval_only:
        print(json.dumps(figures(*load_tiny(folder=folder), heldout, fresh), indent=2))
        return
    schooling = Schooling(
        arguments.steps,
        arguments.seed,
        arguments.pictures,
        arguments.width,
        tuple(arguments.layers),
    )
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw_many(schooling.seed, schooling.pictures, "train", side)
    with TemporaryDirectory() as workshop:
        new = Path(workshop)
        model, tokenizer = prepare(new, config, pictures, schooling)
        began = time.perf_counter()
        save(train(model, tokenizer, pictures, schooling), new)
        seconds = time.perf_counter() - began
        measured = figures(*load_tiny(folder=new), heldout, fresh)  # as shipped: after float16
        print(json.dumps(measured, indent=2))
        for name in (MERGES, CONFIG, WEIGHTS):
            shutil.copyfile(new / name, folder / f"{name}.part")
            os.replace(folder / f"{name}.part", folder / name)
    card = model_card(schooling, seconds, arguments.measured, MEASURING_SEED, measured)
    (folder / "MODEL_CARD.md").write_text(card)


if __name__ == "__main__":
    main()
