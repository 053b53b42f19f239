"""Options that cannot be used are refused in one line."""

from __future__ import annotations

import pytest

from stack.base.errors import ConfigError
from stack.ids.config import IdMode, IdsConfig, Implementation, ManagedConfig, id_specs

NUM_ROWS = {"item": 100, "shop": 9}


def test_tables_are_direct_by_default_with_the_rows_of_their_vocabularies() -> None:
    specs = id_specs(IdsConfig(), names=["item", "shop"], num_rows=NUM_ROWS)
    assert [(spec.name, spec.mode, spec.num_rows) for spec in specs] == [
        ("item", IdMode.direct, 100),
        ("shop", IdMode.direct, 9),
    ]


def test_modes_and_rows_are_by_table_with_defaults() -> None:
    config = IdsConfig(mode=IdMode.hashed, modes={"shop": IdMode.managed}, default_rows=50, rows={"shop": 7})
    specs = id_specs(config, names=["item", "shop"], num_rows=NUM_ROWS)
    assert [(spec.mode, spec.num_rows) for spec in specs] == [(IdMode.hashed, 50), (IdMode.managed, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"default_rows": 0}, "ids.default_rows=0 must be from 4 to 2,147,483,647"),
        ({"modes": {"item": IdMode.hashed}, "rows": {"item": 3}}, "ids.rows.item=3 must be from 4"),
        ({"modes": {"item": IdMode.hashed}, "rows": {"item": 2**31}}, "ids.rows.item=2147483648 must be from 4"),
        ({"rows": {"item": 50}}, "ids.rows.item=50 has no effect on a direct table: set ids.modes.item to hashed"),
    ],
)
def test_rows_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IdsConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"admit_after": 0}, "ids.managed.admit_after=0 must be 1 or more"),
        ({"max_age_steps": -1}, "ids.managed.max_age_steps=-1 must be 0 or more"),
        ({"interval_steps": 0}, "ids.managed.interval_steps=0 must be 1 or more"),
        ({"decay": 0.0}, "ids.managed.decay=0.0 must be above 0"),
        ({"decay": float("nan")}, "ids.managed.decay=nan must be above 0"),
        ({"waiting_per_row": 0.0}, "ids.managed.waiting_per_row=0.0 must be above 0"),
        ({"implementation": Implementation.hash_zch}, "does not train on a CPU"),
    ],
)
def test_managed_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ManagedConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IdsConfig(modes={"itme": IdMode.hashed}), "ids.modes names 'itme'; the tables are: item, shop"),
        (IdsConfig(mode=IdMode.hashed, rows={"user": 5}), "ids.rows names 'user'; the tables are: item, shop"),
        (IdsConfig(mode=IdMode.managed), "table 'item' is managed and has no number of rows: set ids.rows.item"),
    ],
)
def test_tables_that_do_not_fit_the_options_are_refused(config: IdsConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        id_specs(config, names=["item", "shop"], num_rows=NUM_ROWS)
