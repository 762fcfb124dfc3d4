"""What the tiny encoder can do, measured on pictures of combinations it was never shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer

from pipelines.tiny.pictures import Pictures, normalise
from rrcluster.io.drawing_captions import backgrounds_in_words
from rrcluster.io.drawing_scenes import TEXTURES
from rrcluster.io.drawings import COLOURS, OBJECTS
from rrcluster.models.text import PromptedTexts

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
NEIGHBOURS = 10


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


def figures(
    model: CLIP, tokenizer: SimpleTokenizer, pictures: Pictures, fresh: Pictures
) -> dict[str, float]:
    """Zero-shot accuracies, nearest-neighbour purity and k-means agreement, all 0..1.

    ``pictures`` are held out; ``fresh`` are of the split "train" under a seed that training did
    not use. A held-out picture's neighbours are looked up among the fresh ones: none of them has
    its object, colour and background together, so a neighbour with the same object was found by
    the object.
    """
    tower = PromptedTexts(model.encode_text, tokenizer, "cpu", torch.float32)
    rows, others = image_rows(model, pictures.pixels), image_rows(model, fresh.pixels)
    nearest = np.argpartition(-rows @ others.T, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]

    def guesses(texts: Sequence[str]) -> Labels:
        best: Labels = np.argmax(rows @ tower.encode(texts).T, axis=1)
        return best

    objects, colours = _objects(pictures), _colours(pictures)
    textures = np.array([TEXTURES.index(facts.texture) for facts in pictures.facts])
    places = backgrounds_in_words()
    backgrounds = np.array([list(places).index(f.background) for f in pictures.facts])
    right = guesses(OBJECTS) == objects
    phrases = [f"{colour} {name}" for name in OBJECTS for colour in COLOURS]
    phrase = objects * len(COLOURS) + colours
    textured, single = textures > 0, np.array([facts.count == 1 for facts in pictures.facts])
    kinds = _clusters(others, len(OBJECTS))
    surfaces = guesses([f"{texture} thing" for texture in TEXTURES[1:]]) + 1
    return {
        "object": float(right.mean()),
        "object, mean over objects": float(
            np.mean([right[objects == i].mean() for i in np.unique(objects)])
        ),
        "object, one in the picture": float(right[single].mean()),
        "object, two to four in the picture": float(right[~single].mean()),
        "colour": float((guesses([f"{c} thing" for c in COLOURS]) == colours).mean()),
        "background": float(
            (guesses([f"thing {place}" for place in places.values()]) == backgrounds).mean()
        ),
        "texture, where there is one": float((surfaces == textures)[textured].mean()),
        "colour and object": float((guesses(phrases) == phrase).mean()),
        "10 nearest neighbours, same object": _purity(nearest, objects, _objects(fresh)),
        "10 nearest neighbours, same colour": _purity(nearest, colours, _colours(fresh)),
        "k-means NMI with the object": _agreement(kinds, _objects(fresh)),
        "k-means NMI with the colour": _agreement(kinds, _colours(fresh)),
        "k-means NMI with colour and object": _agreement(
            _clusters(others, 100), _objects(fresh) * len(COLOURS) + _colours(fresh)
        ),
    }


def _objects(pictures: Pictures) -> Labels:
    return np.array([OBJECTS.index(facts.object) for facts in pictures.facts])


def _colours(pictures: Pictures) -> Labels:
    return np.array([COLOURS.index(facts.colour) for facts in pictures.facts])


def _purity(nearest: Labels, mine: Labels, theirs: Labels) -> float:
    """The share of neighbours (n, k) with the label of the picture that asks."""
    return float((theirs[nearest] == mine[:, None]).mean())


def _clusters(rows: Rows, k: int) -> Labels:
    """k-means (scikit-learn, the best of four)."""
    from sklearn.cluster import KMeans

    found: Labels = KMeans(k, n_init=4, random_state=0).fit_predict(rows)
    return found


def _agreement(found: Labels, labels: Labels) -> float:
    """Normalised mutual information of clusters with labels."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels, found))
