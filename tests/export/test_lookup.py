"""Serving finds the rows that training gave to raw ids without a vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stack.data.keys import keys_of
from stack.data.schema import RawIds
from stack.export.lookup import KeyLookup, write_map
from stack.export.package import Vocabulary
from stack.export.rows import VocabularyReader
from stack.ids.config import IdMode, IdSpec, ManagedConfig
from stack.ids.hashing import HashVariant
from stack.ids.maps import IdMaps, frozen

NUM_IDS = 20_000
INTEGERS = [0, -1, 2**40, -(2**63), 2**63 - 1, *np.random.default_rng(0).integers(-(2**62), 2**62, NUM_IDS).tolist()]
TEXTS = ["", "ä", "0", *(f"https://shop.example/item/{number}?page={number % 7}" for number in range(NUM_IDS))]


@pytest.mark.parametrize("raw", [INTEGERS, TEXTS], ids=["integers", "texts"])
def test_served_rows_are_the_trained_ones(tmp_path: Path, raw: list[int] | list[str]) -> None:
    text = raw is TEXTS
    variants = {"managed": HashVariant.modulo, "modulo": HashVariant.modulo, "double": HashVariant.double}
    maps = IdMaps(
        [
            IdSpec(
                name=name, mode=IdMode.managed if name == "managed" else IdMode.hashed, num_rows=1 + NUM_IDS // 2,
                hash=variant, managed=ManagedConfig(admit_after=1),
            )
            for name, variant in variants.items()
        ]
    )  # fmt: skip
    keys = torch.from_numpy(keys_of(pa.array(raw, pa.string() if text else pa.int64())).copy())
    trained = {name: maps(name, torch.unique(keys))[torch.unique(keys, return_inverse=True)[1]] for name in variants}
    for name, rows in trained.items():
        held = frozen(maps.state()[name]) if name == "managed" else maps.hashed(name)
        described = write_map(tmp_path, RawIds(table=name, text=text), held)
        if name == "managed":
            assert described == Vocabulary(num_ids=NUM_IDS // 2, text=text)
            held = VocabularyReader(tmp_path / "vocab", name).as_map()
        else:
            assert described == Vocabulary(num_ids=0, text=text, hash=variants[name])
        served = KeyLookup(held, text=text)
        np.testing.assert_array_equal(served.rows([*raw, None])[:-1], rows.numpy())
        assert not served.rows([None]).any()
        assert len(served.rows([])) == 0
