"""A chain's whole life in an object store, against a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stack.checkpoint.chain import Chain
from stack.checkpoint.compact import compact
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.restore import restore
from stack.checkpoint.retain import prune
from stack.checkpoint.store import Store, open_store
from stack.checkpoint.verify import verify
from tests.checkpoint.chains import Toy, check
from tests.checkpoint.object_server import new_bucket, object_server


@pytest.fixture
def store() -> Iterator[Store]:
    with object_server():
        yield open_store(f"{new_bucket()}/run/checkpoints", for_writing=True)


def test_a_chain_in_an_object_store_is_compacted_pruned_swept_verified_and_restored(store: Store) -> None:
    chain = Chain(store)
    toy = Toy(tables={"item": (40, 4)}, managed={"user": (9, 2)})
    for number in range(1, 5):
        toy.train()
        head = toy.save(chain, world_size=2, day=f"2017-11-{number:02d}", blocks={"item": (1, 3)})
    base = compact(chain, head)
    assert base is not None
    for name in ("manifest.json", "file"):
        with store.create(f"data/dead/{name}") as file:
            file.write(b"1")
    done = prune(chain, CheckpointConfig(keep_days=1, keep_last=1))
    assert (done.goes, done.abandoned) == ((1, 2, 3), ("dead",))
    assert {name.split("/")[1] for name in store.list("data")} == {head.data, base.data}
    check(chain, head, toy)
    check(chain, restore(chain, head), toy)
    report = verify(chain, deep=True)
    assert (report.findings, report.last_good) == ((), 5)
    store.delete(f"data/{base.data}/manifest.json")
    store.delete(f"data/{head.data}/dense.safetensors")
    assert {one.breaks for one in verify(chain).findings} == {(), (4,)}
