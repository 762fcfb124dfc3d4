"""The encoder that ships with the package: a small CLIP, trained from scratch on drawn pictures.

The folder is an ordinary open_clip ``local-dir`` (``open_clip_config.json`` beside
``open_clip_model.safetensors``) with a short list of BPE merges for open_clip's own tokenizer.
It is a real CLIP and knows nothing but the drawings of its training; see MODEL_CARD.md.
``pipelines/train_tiny.py`` makes the whole folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_clip import CLIP, SimpleTokenizer

FOLDER = Path(__file__).parent
CONFIG, WEIGHTS, MERGES = "open_clip_config.json", "open_clip_model.safetensors", "bpe.txt.gz"


def load_tiny(device: str = "cpu", folder: Path = FOLDER) -> tuple[CLIP, SimpleTokenizer]:
    """The model in evaluation mode on ``device`` in float32, and its tokenizer. No network.

    ``model.visual.preprocess_cfg`` says how pixels are prepared.
    """
    import open_clip
    import torch

    with torch.random.fork_rng(devices=[]):  # the random weights that the file then replaces
        model = open_clip.create_model(
            f"local-dir:{folder}", device=device, require_pretrained=True
        )
    return model.eval(), load_tokenizer(folder)


def load_tokenizer(folder: Path = FOLDER) -> SimpleTokenizer:
    """open_clip's byte-level BPE tokenizer with the folder's merges: any text has tokens."""
    import open_clip

    merges = str(folder / MERGES)
    return open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=merges)
