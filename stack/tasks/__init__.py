"""Tasks by name; this list is the table of contents."""

from dataclasses import dataclass, field

from stack.tasks.ctr import CtrConfig, CtrTask
from stack.tasks.follow import FollowConfig, FollowTask
from stack.tasks.next_item import NextItemConfig, NextItemTask
from stack.tasks.power import PowerConfig, PowerTask
from stack.tasks.rank import RankConfig, RankTask
from stack.tasks.shop import ShopConfig, ShopTask
from stack.tasks.task import TASKS, Enabled, Scorer, Task, TaskConfig, TaskInputs, TaskOutput

__all__ = [
    "TASKS",
    "CtrTask",
    "Enabled",
    "FollowTask",
    "NextItemTask",
    "PowerTask",
    "RankTask",
    "Scorer",
    "ShopTask",
    "Task",
    "TaskConfig",
    "TaskInputs",
    "TaskOutput",
    "TasksConfig",
]


@dataclass(kw_only=True)
class TasksConfig:
    """Which tasks are trained together, one field for each registered task."""

    ctr: CtrConfig = field(default_factory=CtrConfig)
    # click-through on impressions
    rank: RankConfig = field(default_factory=RankConfig)
    # learning to rank on impressions
    power: PowerConfig = field(default_factory=PowerConfig)
    # purchasing power: the price tier of the next purchase
    follow: FollowConfig = field(default_factory=FollowConfig)
    # response to a campaign
    shop: ShopConfig = field(default_factory=lambda: ShopConfig(enabled=Enabled.never))
    # the shop visited next; kept for the transfer study
    next_item: NextItemConfig = field(default_factory=lambda: NextItemConfig(enabled=Enabled.never))
    # the item taken next, for retrieval from an index
