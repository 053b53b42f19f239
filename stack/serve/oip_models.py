"""A package as models of the Open Inference Protocol: which tensors they take, requests out of them, answers into them.

    users             the user half for B users: vector, tasks about the user, what an index is asked with
    score_<group>     candidates of a group, E of them, for one user: events as `users` takes them, or a vector

A feature of many owners (events, users, candidates) is a tensor of one id each. A multi-valued one is two: the ids of
all owners in one piece, `tags`, and how many each has, `tags.lengths`. Users' events are padded to the longest; what is
behind `num_events` is not read. A feature without a tensor counts as unknown; so does an id that is `NO_ID` or "".

Shape legend: B users, L events of the longest, E candidates, N ids of a multi-valued feature, R the vector's width,
K classes, F dense features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stack.data.schema import Feature, Group
from stack.export.answers import linked
from stack.export.package import USER_HALF, USER_VECTOR, Link, PackageManifest, Task, scorers_of
from stack.export.runs import MISSING
from stack.serve.oip_codec import Datatype, Given, Spec, Tensor, fit, take
from stack.serve.request import (
    MAX_SECONDS,
    Column,
    Limits,
    RequestError,
    Score,
    Single,
    User,
    Who,
    check_time_order,
)
from stack.serve.service import Served, Service

USERS = "users"
SCORE = "score_"
"""Before the name of a group."""
MAX_USERS = 64
"""In one request: the worker computes them one after the other, and answers nobody else meanwhile."""
NO_ID = MISSING
"""In a tensor of INT64 ids; in one of BYTES it is the empty text."""
LENGTHS = ".lengths"
_COUNTED = {"B": "users", "L": "events", "E": "candidates"}
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Model:
    """`group` is None for the user half; `required` are its inputs for a user with events."""

    name: str
    group: Group | None
    inputs: dict[str, Spec]
    outputs: dict[str, Spec]
    required: tuple[str, ...] = ("now", "num_events", "events.time")


def models_of(manifest: PackageManifest) -> dict[str, Model]:
    """All models of a package, by name."""
    users = Model(name=USERS, group=None, inputs=_named(_user_inputs(manifest, "B")), outputs=_user_outputs(manifest))
    return {USERS: users} | {SCORE + group.name: _scorer(manifest, group) for group in manifest.schema.groups}


def tensors_of(model: Model, given: Sequence[Given], limits: Limits) -> Tensors:
    """The inputs by name. Nothing of them is read before their lengths fit each other and the limits.

    Raises: `RequestError` 422.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for one in given:
        if one.name not in model.inputs:
            raise RequestError(422, f"model {model.name!r} has no input {one.name!r}: {', '.join(model.inputs)}")
        if one.name in shapes:
            raise RequestError(422, f"input {one.name!r} is given twice")
        fit(one, model.inputs[one.name])
        shapes[one.name] = one.shape
    _check_sizes(_sizes(model, shapes), limits)
    _check_bags(model, shapes, limits)
    return {one.name: take(one, model.inputs[one.name]) for one in given}


def users_of(model: Model, tensors: Tensors, manifest: PackageManifest, limits: Limits) -> list[User]:
    """B users at a moment each. Raises: `RequestError` 422."""
    missing = [name for name in model.required if name not in tensors]
    if missing:
        raise RequestError(422, f"model {model.name!r} needs the inputs {', '.join(missing)}")
    schema, length = manifest.schema, tensors["events.time"].shape[1]
    events = _columns("events", (*schema.event, *schema.property), tensors, limits)
    profile = _columns("profile", schema.profile, tensors, limits)
    query = _columns("query", schema.query, tensors, limits)
    users = []
    for number, (now, num_events) in enumerate(
        zip(tensors["now"].values, tensors["num_events"].values, strict=True)
    ):  # fmt: skip
        if not 0 <= num_events <= length:
            raise RequestError(
                422, f"`num_events` of user {number} is {num_events}: 0 to {length} are in `events.time`"
            )
        mine = slice(number * length, number * length + num_events)
        time = tensors["events.time"].values[mine]
        _check_times(number, now, time)
        users.append(
            User(
                now=now,
                time=time,
                events={name: None if column is None else column[mine] for name, column in events.items()},
                profile=_singles(profile, number),
                query=_singles(query, number),
            )
        )
    return users


def score_of(model: Model, tensors: Tensors, manifest: PackageManifest, limits: Limits, wanted: Sequence[str]) -> Score:
    """Candidates for the one user, and the `wanted` tasks. Raises: `RequestError` 422."""
    assert model.group is not None
    group = model.group
    about_user = [name for name in tensors if not name.startswith("candidates.") and name != "dense"]
    if USER_VECTOR in tensors:
        if about_user != [USER_VECTOR]:
            raise RequestError(422, "give either `vector`, or the user's events and what belongs to them, not both")
        who = Who(vector=tensors[USER_VECTOR].values)
    else:
        (user,) = users_of(model, tensors, manifest, limits)
        who = Who(user=user, query=user.query)
    candidates = _columns("candidates", group.candidate, tensors, limits)
    counts = [len(column) for column in candidates.values() if column is not None]
    dense: dict[str, list[float]] = {}
    if "dense" in tensors:
        counts.append(tensors["dense"].shape[0])
        dense = {name: tensors["dense"].values[at :: len(group.dense)] for at, name in enumerate(group.dense)}
    if not counts:
        raise RequestError(422, f"model {model.name!r} needs candidates: at least one tensor of them")
    return Score(
        who=who, group=group.name, tasks=list(wanted), num_candidates=counts[0], candidates=candidates, dense=dense
    )


def answer_users(
    served: Served, users: Sequence[User], wanted: Sequence[str]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, int]]:
    """The `wanted` outputs, B lines each, and how many ids of each feature were unknown."""
    computed = served.predictor.compute(users)
    tasks = {task.name: task for task in _tasks(served.predictor.manifest, USER_HALF)}
    found = {}
    for name in wanted:
        output = tasks[name].output if name in tasks else name
        raw = np.concatenate([one.outputs[output] for one in computed])
        found[name] = linked(raw, tasks[name].link if name in tasks else Link.IDENTITY)
    unknown: dict[str, int] = {}
    for one in computed:
        for feature, count in one.unknown.items():
            unknown[feature] = unknown.get(feature, 0) + count
    return found, unknown


def answer_score(
    service: Service, served: Served, score: Score
) -> tuple[dict[str, NDArray[np.float32]], dict[str, int]]:
    """By task values, E lines each, and how many ids of each feature were unknown."""
    answer = service.answer_score(served, score)
    found = {}
    for name, values in answer.scores.items():
        rows = [list(value.values()) if isinstance(value, dict) else value for value in values]
        found[name] = np.asarray(rows, dtype=np.float32)
    return found, answer.unknown


def _user_inputs(manifest: PackageManifest, users: int | str) -> Iterator[Spec]:
    schema = manifest.schema
    for name, dims in (("now", (users,)), ("num_events", (users,)), ("events.time", (users, "L"))):
        yield Spec(name=name, datatype=Datatype.INT64, dims=dims)
    for feature in (*schema.event, *schema.property):
        yield from _feature(manifest, "events", feature, (users, "L"))
    for place, features in (("profile", schema.profile), ("query", schema.query)):
        for feature in features:
            yield from _feature(manifest, place, feature, (users,))


def _feature(manifest: PackageManifest, place: str, feature: Feature, owners: tuple[int | str, ...]) -> Iterator[Spec]:
    name = f"{place}.{feature.name}"
    datatype = Datatype.BYTES if manifest.ids[feature.table].text else Datatype.INT64
    yield Spec(name=name, datatype=datatype, dims=(f"N of {name}",) if feature.multi else owners)
    if feature.multi:
        yield Spec(name=name + LENGTHS, datatype=Datatype.INT64, dims=owners)


def _user_outputs(manifest: PackageManifest) -> dict[str, Spec]:
    specs = [Spec(name=USER_VECTOR, datatype=Datatype.FP32, dims=("B", manifest.vector_dim))]
    specs += [_answered(task, "B") for task in _tasks(manifest, USER_HALF)]
    if manifest.retrieval is not None:
        dims = ("B", manifest.retrieval.dim)
        specs.append(Spec(name=manifest.retrieval.output, datatype=Datatype.FP32, dims=dims))
    return _named(specs)


def _scorer(manifest: PackageManifest, group: Group) -> Model:
    inputs = [*_user_inputs(manifest, 1)]
    if not manifest.scorer_needs_states:
        inputs.append(Spec(name=USER_VECTOR, datatype=Datatype.FP32, dims=(1, manifest.vector_dim)))
    for feature in group.candidate:
        inputs += _feature(manifest, "candidates", feature, ("E",))
    if group.dense:
        inputs.append(Spec(name="dense", datatype=Datatype.FP32, dims=("E", len(group.dense))))
    outputs = [_answered(task, "E") for task in _tasks(manifest, *scorers_of(manifest, group.name))]
    return Model(name=SCORE + group.name, group=group, inputs=_named(inputs), outputs=_named(outputs))


def _answered(task: Task, owners: str) -> Spec:
    """One value for each owner, or one for each class."""
    classes = (len(task.columns),) if task.columns else ("K",) if task.link is Link.SOFTMAX else ()
    return Spec(name=task.name, datatype=Datatype.FP32, dims=(owners, *classes))


def _named(specs: Sequence[Spec] | Iterator[Spec]) -> dict[str, Spec]:
    return {spec.name: spec for spec in specs}


def _tasks(manifest: PackageManifest, *graphs: str) -> list[Task]:
    return [task for task in manifest.tasks if task.graph in graphs]


def _sizes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Lengths by letter. Raises: `RequestError` 422 where two tensors differ in one."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        for dim, size in zip(model.inputs[name].dims, shape, strict=True):
            expected, of = sizes.setdefault(dim, (size, name)) if isinstance(dim, str) else (dim, "this model")
            if size != expected:
                raise RequestError(
                    422, f"input {name!r} has the shape {list(shape)}: {size} must be {expected}, by {of}"
                )  # fmt: skip
    return {dim: size for dim, (size, _) in sizes.items()}


def _check_sizes(sizes: Mapping[str, int], limits: Limits) -> None:
    most = {"B": (1, MAX_USERS), "L": (0, limits.num_events), "E": (1, limits.num_candidates)}
    for dim, (lowest, highest) in most.items():
        if dim in sizes and not lowest <= sizes[dim] <= highest:
            raise RequestError(422, f"{sizes[dim]} {_COUNTED[dim]}: {lowest} to {highest} are accepted")


def _check_bags(model: Model, shapes: Mapping[str, tuple[int, ...]], limits: Limits) -> None:
    for name in model.inputs:
        lengths = name + LENGTHS
        if lengths not in model.inputs or not {name, lengths} & shapes.keys():
            continue
        if not {name, lengths} <= shapes.keys():
            raise RequestError(422, f"give both of the inputs {name!r} and {lengths!r}, or neither")
        most = math.prod(shapes[lengths]) * limits.num_ids
        if shapes[name][0] > most:
            raise RequestError(422, f"input {name!r} has {shapes[name][0]} ids: at most {most} are of its owners")


def _columns(
    place: str, features: Sequence[Feature], tensors: Tensors, limits: Limits
) -> dict[str, Column]:  # fmt: skip
    return {feature.name: _column(f"{place}.{feature.name}", feature, tensors, limits) for feature in features}


def _column(name: str, feature: Feature, tensors: Tensors, limits: Limits) -> Column:
    """An id, or a bag of them, of every owner in turn."""
    if name not in tensors:
        return None
    values = tensors[name].values
    if feature.multi:
        return _bags(name, values, tensors[name + LENGTHS].values, limits)
    return [None if value == NO_ID or value == "" else value for value in values]


def _bags(name: str, ids_N: list[Any], lengths: list[int], limits: Limits) -> Column:
    if NO_ID in ids_N or "" in ids_N:
        raise RequestError(422, f"input {name!r} holds no id at {ids_N.index(NO_ID if NO_ID in ids_N else '')}: "
                           "leave it out, and count it out of its owner's length")  # fmt: skip
    if not 0 <= min(lengths, default=0) <= max(lengths, default=0) <= limits.num_ids:
        raise RequestError(422, f"input {name + LENGTHS!r} holds a length that is not 0 to {limits.num_ids}")
    if sum(lengths) != len(ids_N):
        raise RequestError(422, f"input {name!r} has {len(ids_N)} ids, {name + LENGTHS!r} add up to {sum(lengths)}")
    bags, end = [], 0
    for length in lengths:
        bags.append(ids_N[end : end + length])
        end += length
    return bags


def _singles(columns: Mapping[str, Column], owner: int) -> dict[str, Single]:
    return {name: None if column is None else column[owner] for name, column in columns.items()}


def _check_times(user: int, now: int, time: list[int]) -> None:
    if not all(0 <= one <= MAX_SECONDS for one in (now, *time)):
        raise RequestError(422, f"a time of user {user} is not 0 to {MAX_SECONDS} epoch seconds")
    try:
        check_time_order(time, now)
    except RequestError as error:
        raise RequestError(error.status, f"user {user}: {error}") from error
