"""Operations on names, without a mount."""

from voile.fuse.workers import WorkerPool
from voile.server.names import NameOperations


class Forgetful(NameOperations):
    def __init__(self):
        self.pool = WorkerPool()
        self._to_forget = []
        self.forgotten = []
        self.overlay = self.nodes = self
        self.shrunk = 0

    def shrink(self):
        self.shrunk += 1

    def _forget(self, nodeid, nlookup):
        self.forgotten.append((nodeid, nlookup))


def test_many_nodes_are_forgotten_in_steps():
    operations = Forgetful()
    many = [(number, 1) for number in range(5000)]
    operations.batch_forget(iter(many[:4500]))
    operations.batch_forget(iter(many[4500:4999]))
    operations.forget(*many[4999])
    steps = [len(operations.forgotten)]
    while operations.pool.outstanding:
        operations.pool.run_completions()
        steps.append(len(operations.forgotten))
    assert operations.forgotten == many  # in this order
    assert operations.shrunk == 1
    assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) < 3000
