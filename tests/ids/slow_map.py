"""The oracle of the bounded map: dictionaries and loops, all slots ranked anew at each eviction.

Exact for `lru`. For the other policies the order of evictions is that of the last ranking, which this does not copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stack.ids.config import ManagedConfig

SWEEPS_PER_AGE = 8


@dataclass
class SlowLru:
    """Keys to rows `first_row ...`, `capacity` of them; never forgets a count, as no waiting room is that large."""

    config: ManagedConfig
    capacity: int
    first_row: int = 1
    clock: int = 0
    slot: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    resets: set[int] = field(default_factory=set)

    def step(self, keys: list[int]) -> list[int]:
        """Rows of a training step's distinct keys."""
        self.clock += 1
        hits = [key for key in keys if key in self.slot]
        for key in hits:
            self.last[key] = self.clock
        age = self.config.max_age_steps
        if age and self.clock % max(age // SWEEPS_PER_AGE, 1) == 0:
            for key in [key for key, last in self.last.items() if last < self.clock - age]:
                self._evict(key)
        new = [key for key in keys if key not in self.slot and key not in hits]
        for key in new:
            self.seen[key] = self.seen.get(key, 0) + 1 if self.config.admit_after > 1 else 1
        ready = [key for key in new if self.seen[key] >= self.config.admit_after]
        for key in sorted(ready, key=lambda key: (-self.seen[key], keys.index(key))):
            slot = self._free_slot()
            if slot is None:
                break
            self.slot[key], self.last[key] = slot, self.clock
            del self.seen[key]
        return [self.slot[key] + self.first_row if key in self.slot else 0 for key in keys]

    def _free_slot(self) -> int | None:
        free = sorted(set(range(self.capacity)) - set(self.slot.values()))
        if free:
            return free[0]
        old = [key for key in self.slot if self.last[key] < self.clock]
        if not old:
            return None
        return self._evict(min(old, key=lambda key: (self.last[key], self.slot[key])))

    def _evict(self, key: int) -> int:
        slot = self.slot.pop(key)
        del self.last[key]
        self.resets.add(slot + self.first_row)
        return slot
