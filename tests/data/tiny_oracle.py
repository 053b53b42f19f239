"""The same timelines, worked out with loops over plain rows: slow and obvious."""

from __future__ import annotations

from typing import Any

from tests.data.tiny_log import Rows

DAY = 86_400


def vocabularies(events: Rows, items: Rows) -> dict[str, dict[object, int]]:
    """Rows of item, shop, brand and category: in the order (day first met, raw id)."""
    first: dict[str, dict[object, int]] = {"user": {}, "item": {}, "shop": {}, "type": {}, "scenario": {}}
    for event in events:
        day = event["time"] // DAY
        for name, seen in first.items():
            if event[name] is not None:
                seen[event[name]] = min(seen.get(event[name], day), day)
    for name in ("brand", "category", "tags"):
        seen = first.setdefault(name, {})
        for version in items:
            if version["item"] not in first["item"]:
                continue
            day = max(first["item"][version["item"]], version["since"] // DAY)
            later = [v["since"] for v in items if v["item"] == version["item"] and v["since"] > version["since"]]
            if later and min(later) <= day * DAY:
                continue
            for raw in version[name] if name == "tags" else [version[name]]:
                seen[raw] = min(seen.get(raw, day), day)
    last = max(event["time"] for event in events) // DAY
    return {
        name: {
            raw: row
            for row, (raw, day) in enumerate(sorted(seen.items(), key=lambda pair: (pair[1], str(pair[0]))), start=1)
            if day <= last
        }
        for name, seen in first.items()
    }


def version_at(items: Rows, item: str, time: int) -> dict[str, Any] | None:
    """The side information of an item that was valid at a time."""
    valid = [version for version in items if version["item"] == item and version["since"] <= time]
    return max(valid, key=lambda version: version["since"], default=None)


def timelines(events: Rows, items: Rows, day: int, max_history: int) -> dict[int, dict[str, Any]]:
    """Timelines of a day by user row: events with item, shop, brand, category, tags; moments with positions."""
    words = vocabularies(events, items)
    found: dict[int, dict[str, Any]] = {}
    for user in {event["user"] for event in events}:
        own = [(event["time"], place, event) for place, event in enumerate(events) if event["user"] == user]
        own.sort(key=lambda one: one[:2])
        before = [event for time, _, event in own if time < day * DAY][-max_history:]
        today = [event for time, _, event in own if time // DAY == day]
        if not today:
            continue
        row = before + today
        moments = sorted({event["time"] for event in today if event["type"] == "buy"})
        sides = [version_at(items, event["item"], event["time"]) for event in row]
        found[words["user"][user]] = {
            "num_carried": len(before),
            "event_time": [event["time"] for event in row],
            **{f"event_{name}": [words[name].get(e[name], 0) for e in row] for name in ("item", "shop", "type")},
            "event_brand": [words["brand"][side["brand"]] if side else 0 for side in sides],
            "event_category": [words["category"][side["category"]] if side else 0 for side in sides],
            "event_tags": [sorted({words["tags"][tag] for tag in side["tags"]}) if side else [] for side in sides],
            "moment_time": moments,
            "moment_position": [sum(event["time"] < time for event in row) for time in moments],
        }
    return found
