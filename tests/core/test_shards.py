from shards_contract import ShardsContract

from rrcluster.core.shards import MemoryShards


class _Open:
    def __init__(self, shards) -> None:
        self.shards = shards

    def __enter__(self):
        return self.shards

    def __exit__(self, *_) -> None:
        pass


class TestOneThread(ShardsContract):
    def make(self, blocks):
        return _Open(MemoryShards(blocks))


class TestTwoThreads(ShardsContract):
    def make(self, blocks):
        return _Open(MemoryShards(blocks, workers=2))
