"""The tests that every implementation of the seam passes."""

from __future__ import annotations

import torch


class ShardsContract:
    """What every implementation of the seam promises; ``make`` gives one over the blocks."""

    def make(self, blocks: list[torch.Tensor]):
        raise NotImplementedError

    def blocks(self) -> list[torch.Tensor]:
        g = torch.Generator().manual_seed(0)
        return [torch.randn(n, 4, generator=g).half() for n in (5, 1, 7)]

    def test_map_answers_in_block_order(self) -> None:
        blocks = self.blocks()
        with self.make(blocks) as shards:
            assert list(shards.map(len)) == [5, 1, 7]
            assert shards.num_rows == 13
            assert shards.width == 4

    def test_reduce_adds_over_blocks_in_order(self) -> None:
        blocks = self.blocks()
        expected = (blocks[0].float().sum(0) + blocks[1].float().sum(0)) + blocks[2].float().sum(0)
        with self.make(blocks) as shards:
            assert torch.equal(shards.reduce(column_sums)["sum"], expected)

    def test_head_is_the_first_rows_across_blocks(self) -> None:
        blocks = self.blocks()
        with self.make(blocks) as shards:
            assert torch.equal(shards.head(9), torch.cat(blocks)[:9])
            assert torch.equal(shards.head(100), torch.cat(blocks))


def column_sums(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"sum": x.float().sum(0)}
