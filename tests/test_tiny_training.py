"""How the tiny encoder learns: its losses, its texts, and both phases in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.tiny.loss import matching_loss, naming_loss
from pipelines.tiny.pictures import draw_many
from pipelines.tiny.school import Schooling, learning_rate, train
from pipelines.tiny.texts import KINDS, LISTS, all_names, learn_merges, word, write_merges
from pipelines.train_tiny import prepare
from rrcluster.io.drawing_captions import Facts
from rrcluster.models.text import TEMPLATES
from rrcluster.models.tiny import CONFIG, FOLDER


class TestTraining:
    def test_texts_true_of_several_pictures_share_the_target(self) -> None:
        """Two equal pictures, one text true of both and one of none: log 2 for the choice of
        picture, nothing for the choice of text when it is certain."""
        images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        true = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        losses = matching_loss(images, texts, true, torch.tensor([1, 0]), torch.tensor(100.0))
        assert list(losses) == [1]
        assert losses[1].item() == pytest.approx(np.log(2) / 2)

    def test_a_name_competes_with_all_names_of_its_kind_and_with_strangers(self) -> None:
        """Three texts at equal distance: log 3, of which the stranger is never the guess."""
        images, names = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
        strangers, scale = torch.tensor([[0.0, 1.0]]), torch.tensor(10.0)
        for spread in (0.0, 0.1):
            loss, guess = naming_loss(images, names, strangers, torch.tensor([0]), scale, spread)
            assert loss.item() == pytest.approx(np.log(3))
            assert guess.item() < len(names)

    def test_a_spread_target_is_met_by_a_finite_margin(self) -> None:
        """With 0.1 spread over two names the best share of the right one is 0.95."""
        images, none = torch.tensor([[1.0, 0.0]]), torch.zeros(0, 2)
        names, answer = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0])
        best = float(np.log(0.95 / 0.05))
        losses = [
            naming_loss(images, names, none, answer, torch.tensor(scale), 0.1)[0].item()
            for scale in (best - 0.5, best, best + 0.5)
        ]
        assert losses[1] == min(losses)

    def test_every_step_reads_every_name_of_every_kind_then_captions_then_strangers(self) -> None:
        rng = np.random.default_rng(0)
        red_star = Facts("star", "red", "solid", "grass", 1, "centre")
        words = word(rng, [(red_star, None), (red_star, "a star")], distractors=3)
        where = words.rows()
        for kind in KINDS:
            assert len(words.texts[where[kind]]) == len(LISTS[kind])
        assert len(words.texts[where["caption"]]) == len(words.claims) == 2
        assert len(words.texts[where["distractor"]]) == 3

    def test_names_are_worded_in_the_packages_templates_too(self) -> None:
        rng = np.random.default_rng(0)
        texts = {text for _ in range(60) for text in all_names(rng)}
        for template in TEMPLATES:
            asked = {template.format(w) for w in ("star", "red things", "things on grass")}
            assert asked < texts

    def test_merges_learn_the_frequent_words_whole(self, tmp_path: Path) -> None:
        merges = learn_merges(["a star"] * 9 + ["a kite"], most=50, seen=2)
        assert merges[-1][0] + merges[-1][1] == "star</w>"
        assert write_merges(tmp_path / "bpe.txt.gz", merges) == 512 + len(merges) + 2

    def test_both_phases_run_and_the_seed_decides_the_weights(self, tmp_path: Path) -> None:
        pictures = draw_many(77, 130, "train", 64, workers=1)
        schooling = Schooling(shapes=2, words=3, alone=1, seed=5, width=8)
        config = json.loads((FOLDER / CONFIG).read_text())
        before = torch.random.get_rng_state()
        twins = []
        for _ in range(2):
            model, tokenizer = prepare(tmp_path, config, pictures, schooling)
            twins.append(train(model, tokenizer, pictures, schooling).state_dict())
        assert all(torch.equal(twins[0][name], twins[1][name]) for name in twins[0])
        assert torch.equal(before, torch.random.get_rng_state())

    def test_the_rate_rises_then_falls(self) -> None:
        rates = [learning_rate(2e-3, step, 100, 10) for step in range(100)]
        assert rates.index(max(rates)) in (9, 10)
        assert rates[-1] < 0.02 * 2e-3
