"""What the tiny encoder can do, measured on pictures of combinations it was never shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer

from pipelines.tiny_pictures import Pictures, normalise
from rrcluster.io.drawing_captions import backgrounds_in_words
from rrcluster.io.drawing_scenes import TEXTURES
from rrcluster.io.drawings import COLOURS, OBJECTS
from rrcluster.models.text import PromptedTexts

Rows = npt.NDArray[np.float32]


@torch.inference_mode()
def image_rows(model: CLIP, pixels: npt.NDArray[np.uint8], batch: int = 256) -> Rows:
    """Unit rows (n, d) of square uint8 pictures (n, s, s, 3)."""
    look = model.visual.preprocess_cfg
    parts = []
    for start in range(0, len(pixels), batch):
        images = normalise(
            torch.from_numpy(pixels[start : start + batch]), look["mean"], look["std"]
        )
        parts.append(model.encode_image(images, normalize=True))
    return torch.cat(parts).numpy()


def figures(model: CLIP, tokenizer: SimpleTokenizer, pictures: Pictures) -> dict[str, float]:
    """Zero-shot accuracies, nearest-neighbour purity and k-means agreement, all 0..1."""
    tower = PromptedTexts(model.encode_text, tokenizer, "cpu", torch.float32)
    rows = image_rows(model, pictures.pixels)

    def guesses(texts: Sequence[str]) -> npt.NDArray[np.int64]:
        nearest: npt.NDArray[np.int64] = np.argmax(rows @ tower.encode(texts).T, axis=1)
        return nearest

    objects = np.array([OBJECTS.index(facts.object) for facts in pictures.facts])
    colours = np.array([COLOURS.index(facts.colour) for facts in pictures.facts])
    textures = np.array([TEXTURES.index(facts.texture) for facts in pictures.facts])
    places = backgrounds_in_words()
    backgrounds = np.array([list(places).index(f.background) for f in pictures.facts])
    right = guesses(OBJECTS) == objects
    phrases = [f"{colour} {name}" for name in OBJECTS for colour in COLOURS]
    phrase = objects * len(COLOURS) + colours
    textured = textures > 0
    surfaces = guesses([f"{texture} thing" for texture in TEXTURES[1:]]) + 1
    return {
        "object": float(right.mean()),
        "object, mean over objects": float(
            np.mean([right[objects == i].mean() for i in np.unique(objects)])
        ),
        "colour": float((guesses([f"{c} thing" for c in COLOURS]) == colours).mean()),
        "background": float(
            (guesses([f"thing {place}" for place in places.values()]) == backgrounds).mean()
        ),
        "texture, where there is one": float((surfaces == textures)[textured].mean()),
        "colour and object": float((guesses(phrases) == phrase).mean()),
        "10 nearest neighbours, same object": _purity(rows, objects, 10),
        "10 nearest neighbours, same colour": _purity(rows, colours, 10),
        "k-means NMI with the object": _agreement(rows, objects, len(OBJECTS)),
    }


def _purity(rows: Rows, labels: npt.NDArray[np.int64], k: int) -> float:
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    nearest = np.argpartition(-similar, k, axis=1)[:, :k]
    return float((labels[nearest] == labels[:, None]).mean())


def _agreement(rows: Rows, labels: npt.NDArray[np.int64], k: int) -> float:
    """Normalised mutual information of k-means clusters (scikit-learn) with the labels."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    found = KMeans(k, n_init=4, random_state=0).fit_predict(rows)
    return float(normalized_mutual_info_score(labels, found))
