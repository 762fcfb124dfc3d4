"""Trains the encoder that ships with the package, from scratch, on drawn pictures.

    python -m pipelines.train_tiny                        # the shipped weights, about 9 minutes
    python -m pipelines.train_tiny --shapes 200 --words 200 --out tiny
    python -m pipelines.train_tiny --eval-only

It learns in two phases. First shapes: the image tower alone learns to find each picture's object,
colour, background and texture among vectors that stand for all their values. Then words: those
vectors are thrown away and the text tower's take their place, in wordings drawn anew in every step;
and captions that tell several attributes are matched with pictures as CLIP does it, except that all
pictures that a caption is true of are its targets (UniCL, Yang et al. 2022, eq. 3), and that
captions compete only with captions that tell the same attributes. Some texts of every batch are
true of no picture, so that words it never learned stay far from all of them.

It runs on one thread: steps are so small that two threads were slower than one wherever other
programs share the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from pipelines.tiny.card import model_card
from pipelines.tiny.figures import figures
from pipelines.tiny.pictures import Pictures, draw_many
from pipelines.tiny.school import Schooling, train
from pipelines.tiny.texts import all_names, learn_merges, told, write_merges
from rrcluster.models.tiny import CONFIG, FOLDER, MERGES, WEIGHTS, load_tiny, load_tokenizer

MEASURING_SEED = 10_001  # of the pictures behind the figures; training must use another


def prepare(
    out: Path, config: dict[str, Any], pictures: Pictures, schooling: Schooling
) -> tuple[CLIP, SimpleTokenizer]:
    """A fresh model, with the merges and the configuration that fit it written to ``out``."""
    rng = np.random.default_rng([schooling.seed, 2])
    pairs = list(zip(pictures.facts, pictures.web, strict=True))[:20_000]
    texts = [told(rng, facts, web)[0] for facts, web in pairs]
    texts += [name for _ in range(100) for name in all_names(rng)]
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
    parser.add_argument("--shapes", type=int, default=defaults.shapes, help="steps, first phase")
    parser.add_argument("--words", type=int, default=defaults.words, help="steps, second phase")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--pictures", type=int, default=defaults.pictures)
    parser.add_argument("--measured", type=int, default=3000, help="pictures of the figures")
    parser.add_argument("--width", type=int, default=defaults.width)
    parser.add_argument("--layers", type=int, nargs=4, default=defaults.layers)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--eval-only", action="store_true", help="measure what is in --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
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
        arguments.shapes,
        arguments.words,
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
