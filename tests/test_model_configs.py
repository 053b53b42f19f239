"""Every YAML of the groups model and tasks fits its dataclass."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from torch import nn

from stack.base.errors import ConfigError
from stack.job import CHOICES, Composer, Job
from stack.tasks import TASKS, TasksConfig
from stack.tasks.follow import FollowConfig
from stack.towers.config import ModelConfig
from tests.batches import small_model

CONFIGS = Path(__file__).parents[1] / "configs"


def _load(group: str, name: str, schema: type) -> object:
    """The choice over the defaults it names, checked against the dataclass, as Hydra would compose it."""
    values = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
    assert isinstance(values, DictConfig)
    bases = [base for base in values.pop("defaults", []) if base != "_self_"]
    parts = [OmegaConf.load(CONFIGS / group / f"{base}.yaml") for base in bases]
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), *parts, values))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml")))
def test_model_choice_fits(name: str) -> None:
    config = Composer(root=Job, choices=CHOICES, folder=CONFIGS).compose([f"model={name}"]).model
    if name == "dupn":
        assert config == ModelConfig()


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml")))
def test_tasks_choice_fits(name: str) -> None:
    config = _load("tasks", name, TasksConfig)
    assert isinstance(config, TasksConfig)
    if name == "joint":
        assert config == TasksConfig()
    if name in TASKS:
        assert [task for task in TASKS if getattr(config, task).enabled.name != "never"] == [name]


def test_a_tasks_own_dropout_goes_before_the_models() -> None:
    model = small_model(ModelConfig(dropout=0.25), tasks=TasksConfig(follow=FollowConfig(dropout=0.5)))
    shares = {
        name: {part.p for part in model.task(name).modules() if isinstance(part, nn.Dropout)} for name in model.tasks
    }
    assert shares == {"ctr": {0.25}, "rank": {0.25}, "power": {0.25}, "follow": {0.5}}


def test_a_tasks_dropout_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^task dropout is 1\.0: it must be at least 0 and below 1, or null$"):
        FollowConfig(dropout=1.0)
