"""The tiny encoder's model card: what was done and what was measured, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.tiny.school import Schooling

_CARD = """# tiny

A small CLIP in open_clip's architecture (ModifiedResNet image tower, transformer text tower),
trained from scratch on pictures that `rrcluster.io.drawings` draws. It is a real model on drawn
pictures and nothing more: it has never seen a photograph, and its English is the few dozen words
of the drawings' captions. It exists so that the demo and the tests go through the real open_clip
code without a network.

## Training

    {command}

Seed {seed}, from a pool of {pictures} pictures (split "train"), in bfloat16 autocast on one thread.
{minutes:.1f} minutes of training on two AMD EPYC cores that other programs used too. Weights are
stored as float16, and the figures below are those of the stored weights. Rounding differs between
machines and library versions, so the command gives a model with like figures, not the same bytes.

The loss is not open_clip's ClipLoss. Each picture must find its object, colour, background and
texture among texts for all values of that attribute (softmax of picture over texts), and captions
that tell several attributes are matched with pictures both ways as in CLIP, except that every
picture a caption is true of counts as its pair and that only captions telling the same attributes
compete. In the first {shapes} steps ({batch} pictures each) free vectors stand where the texts
will be and the image tower learns alone; in the last {words} ({larger} each) the text tower's
vectors take their place: for {alone} steps it learns alone, then both towers learn.

## Figures

Accuracies are on {measured} pictures of split "heldout" (seed {measuring_seed}): combinations of
object, colour and background that never occur in training. Objects are long-tailed there as in
training. Zero-shot means the nearest of all names, each name averaged over the package's prompt
templates. Neighbours of the held-out pictures are looked up among {measured} new pictures of split
"train" (same seed, not used in training), so no neighbour shares all three; k-means runs on those.

| | 0..1 |
|---|---|
{rows}

## Limits

- The held-out pictures come from the same generator as the training pictures. The figures say
  nothing about any other picture.
- Several small objects are told less well than one large one.
- The vectors group pictures by object long before they do so by colour.
- Words outside the drawings' captions were only ever trained as wrong answers.
- Counts and positions are in some training captions; how well they are known was not measured.
"""
_NAMES = {
    "object": "object, zero-shot (24 names)",
    "object, mean over objects": "object, zero-shot, mean of the 24 accuracies",
    "object, one in the picture": "the same, pictures with one of it",
    "object, two to four in the picture": "the same, pictures with two to four of it",
    "colour": 'colour, zero-shot (10 names, "red thing")',
    "background": 'background, zero-shot (10 names, "thing on grass")',
    "texture, where there is one": 'texture, zero-shot (3 names, "striped thing"; plain left out)',
    "colour and object": 'colour and object together, zero-shot (240 names, "red star")',
    "10 nearest neighbours, same object": "share of the 10 nearest with the same object",
    "10 nearest neighbours, same colour": "share of the 10 nearest with the same colour",
    "k-means NMI with the object": "k-means (24 clusters), NMI with the object",
    "k-means NMI with the colour": "the same 24 clusters, NMI with the colour",
    "k-means NMI with colour and object": "k-means (100 clusters), NMI with colour and object",
}


def model_card(
    schooling: Schooling,
    seconds: float,
    pictures: int,
    measuring_seed: int,
    values: dict[str, float],
) -> str:
    """The card as Markdown."""
    command = (
        f"python -m pipelines.train_tiny --shapes {schooling.shapes} --words {schooling.words}"
        f" --seed {schooling.seed}"
        f" --pictures {schooling.pictures} --width {schooling.width}"
        f" --layers {' '.join(map(str, schooling.layers))}"
    )
    return _CARD.format(
        command=command,
        shapes=schooling.shapes,
        words=schooling.words,
        batch=schooling.batch,
        larger=schooling.larger,
        alone=schooling.alone,
        pictures=schooling.pictures,
        seed=schooling.seed,
        minutes=seconds / 60,
        measured=pictures,
        measuring_seed=measuring_seed,
        rows="\n".join(f"| {_NAMES[key]} | {value:.3f} |" for key, value in values.items()),
    )
