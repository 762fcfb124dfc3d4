"""The tiny encoder's model card: what was done and what was measured, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.train_tiny import Schooling

_CARD = """# tiny

A small CLIP in open_clip's architecture (ModifiedResNet image tower, transformer text tower),
trained from scratch on pictures that `rrcluster.io.drawings` draws. It is a real model on drawn
pictures and nothing more: it has never seen a photograph, and its English is the few dozen words
of the drawings' captions. It exists so that the demo and the tests go through the real open_clip
code without a network.

## Training

    {command}

{steps} steps of {batch} pictures from a pool of {pictures} (split "train"), seed {seed}, bfloat16
autocast, {minutes:.1f} minutes of training on 2 CPU cores (AMD EPYC). Weights are stored as
float16. Rounding differs between machines and library versions, so the command gives a model with
like figures, not the same bytes.

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
- Which object it is, the vectors tell less well than its colour and background: compare the rows
  above before relying on any of them.
- Words outside the drawings' captions were only ever trained as wrong answers.
- Counts and positions are in some training captions; how well they are known was not measured.
"""
_NAMES = {
    "object": "object, zero-shot (24 names)",
    "object, mean over objects": "object, zero-shot, mean of the 24 accuracies",
    "colour": 'colour, zero-shot (10 names, "red thing")',
    "background": 'background, zero-shot (10 names, "thing on grass")',
    "texture, where there is one": 'texture, zero-shot (3 names, "striped thing"; plain left out)',
    "colour and object": 'colour and object together, zero-shot (240 names, "red star")',
    "10 nearest neighbours, same object": "share of the 10 nearest with the same object",
    "10 nearest neighbours, same colour": "share of the 10 nearest with the same colour",
    "k-means NMI with the object": "k-means (24 clusters), NMI with the object",
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
        f"python -m pipelines.train_tiny --steps {schooling.steps} --seed {schooling.seed}"
        f" --pictures {schooling.pictures} --width {schooling.width}"
        f" --layers {' '.join(map(str, schooling.layers))}"
    )
    return _CARD.format(
        command=command,
        steps=schooling.steps,
        batch=schooling.batch,
        pictures=schooling.pictures,
        seed=schooling.seed,
        minutes=seconds / 60,
        measured=pictures,
        measuring_seed=measuring_seed,
        rows="\n".join(f"| {_NAMES[key]} | {value:.3f} |" for key, value in values.items()),
    )
