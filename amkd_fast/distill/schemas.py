"""What comes from outside (words, YAML, checkpoints, run files, torchrun's variables) as typed models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)

from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.settings import LARGEST, MOST, Settings, choices, default_of

Format = Literal[2]  # of checkpoints
FORMAT: int = get_args(Format)[0]
M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound=Settings)

_known: dict[type[Settings], type[BaseModel]] = {}  # the models of settings
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "values by name",
    "model": "values by name",
}


class Stored(BaseModel):
    """A part of a file: strictly typed; what this version does not know is let be."""

    model_config = ConfigDict(strict=True, extra="allow")


class Network(Stored):
    """How a checkpoint's network is built."""

    name: str
    channels: int = Field(ge=1, le=MOST)
    classes: int = Field(ge=1, le=MOST)


class About(Stored):
    """What every checkpoint says about itself."""

    format: Format
    network: Network


class Evaluable(About):
    """What it must say so that its data can be found again; mean and std are looked at with that data."""

    method: str
    settings: dict[str, Any]


class Named(Evaluable):
    """What it must say so that its network's answers have names."""

    classes: list[str]


class FitLoop(Stored):
    """Lightning's place in a training."""

    fit_loop: dict[str, Any] = Field(min_length=1)


class Group(Stored):
    """What an optimiser does with some parameters."""

    momentum: float | None = None  # of SGD
    betas: tuple[float, float] | None = None  # of AdamW


class Optimizer(Stored):
    """SGD's or AdamW's state, by the number of the parameter."""

    state: dict[int, dict[str, Any]]
    param_groups: list[Group] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_its_averages(self) -> Optimizer:
        group = self.param_groups[0]
        if group.momentum is None and group.betas is None:
            raise ValueError("must hold the momentum of SGD or the betas of AdamW")
        what, names = (
            ("averages", ("step", "exp_avg", "exp_avg_sq")) if group.betas else ("momentum", ("momentum_buffer",))
        )
        kept = [entry.get(name) is not None for entry in self.state.values() for name in names]
        if (group.betas or group.momentum) and not (kept and all(kept)):
            raise ValueError(f"must hold the {what} of every parameter")
        return self


class Scheduler(Stored):
    """Where the learning rate stands."""

    last_epoch: int = Field(ge=0)


class Rows(Stored):
    """The log of the epochs."""

    rows: list[dict[str, int | float]]


class Callbacks(Stored):
    """The state of those that have any; beside these two Lightning's checkpoints, best and last."""

    Journal: Rows  # of EpochLog, under its first name

    @model_validator(mode="after")
    def _knows_the_best(self) -> Callbacks:
        if sum(name.startswith("ModelCheckpoint") for name in self.model_extra or ()) != 2:
            raise ValueError("must hold the state of the best and of the last checkpoint")
        return self


class Training(Stored):
    """What a checkpoint needs so that its training goes on as if nothing had happened."""

    epoch: int = Field(ge=0)
    global_step: int = Field(ge=0)
    loops: FitLoop
    optimizer_states: list[Optimizer] = Field(min_length=1, max_length=1)
    lr_schedulers: list[Scheduler] = Field(min_length=1, max_length=1)
    callbacks: Callbacks
    state_dict: dict[str, Any] = Field(min_length=1)

    @model_validator(mode="after")
    def _tells_every_epoch(self) -> Training:
        if len(self.callbacks.Journal.rows) != self.epoch + 1:
            raise ValueError("must have a row in its log for every epoch")
        return self


class RunFile(Stored):
    """run.json. ``command`` is missing in those of earlier versions."""

    command: Literal["train", "compare", None] = None
    settings: dict[str, Any]


class FinishedRun(Stored):
    """One run of a comparison."""

    rows: list[dict[str, int | float]]
    qualities: dict[str, float | None] | None
    classes: list[float] | None = None  # missing in those of earlier versions
    diverged: dict[str, Any] | None = None


class Trained(Stored):
    """One run in results.json."""

    method: str
    last: int | float | None


class Result(Stored):
    """results.json of train or compare; what else is called so has another kind."""

    kind: str
    settings: dict[str, Any]
    teacher_accuracy: int | float | None = None
    method: str | None = None  # of train
    last: int | float | None = None
    runs: list[Trained] = []  # of compare

    def trained(self) -> list[Trained]:
        """Its runs, of either command."""
        return self.runs if self.method is None else [Trained(method=self.method, last=self.last)]


class Torchrun(BaseModel):
    """The variables that torchrun sets."""

    WORLD_SIZE: int = Field(1, ge=1, le=MOST)
    RANK: int | None = Field(None, ge=0, le=MOST)
    LOCAL_RANK: int | None = Field(None, ge=0, le=MOST)
    LOCAL_WORLD_SIZE: int | None = Field(None, ge=1, le=MOST)
    MASTER_ADDR: str | None = None
    MASTER_PORT: int | None = Field(None, ge=0, le=65535)


def check(model: type[M], values: object, where: str) -> M:
    """The values as the model.

    Raises:
        UserError: They are not; the message begins with ``where`` and names the value and its rule.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {first(error)}") from error


def settings(kind: type[S], values: object, where: str) -> S:
    """Settings of stored values; those that this version does not know are left out."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: settings={short(values)}: must be values by name")
    known = {field.name for field in fields(kind)}
    found = check(of_settings(kind), {name: value for name, value in values.items() if name in known}, where)
    return kind(**found.model_dump(exclude_unset=True))


def of_settings(kind: type[Settings]) -> type[BaseModel]:
    """The model of a settings dataclass: every field with its type, choices and limits."""
    if kind not in _known:
        hints = get_type_hints(kind)
        members: dict[str, Any] = {
            field.name: (
                _member(hints[field.name], field.metadata),
                default_of(field),
            )
            for field in fields(kind)
        }
        _known[kind] = create_model(kind.__name__, __config__=ConfigDict(strict=True, extra="forbid"), **members)
    return _known[kind]


def checked(kind: type[Settings], name: str, value: object) -> Any:
    """One setting's value in its type.

    Raises:
        ValueError: It breaks the rule, which the message is.
    """
    try:
        return getattr(of_settings(kind).model_validate({name: value}), name)
    except ValidationError as error:
        raise ValueError(rule(error.errors()[0])) from error


def first(error: ValidationError) -> str:
    """``name=value: rule`` of the first thing that is wrong."""
    # Of int | float the second says what both want.
    found = next((one for one in error.errors() if one["loc"][-1:] == ("float",)), error.errors()[0])
    name = ".".join(str(part) for part in found["loc"] if not (isinstance(part, str) and part in ("int", "float")))
    if found["type"] in ("missing", "value_error"):
        return f"{name} {rule(found)}".strip()
    return f"{name or 'content'}={short(found['input'])}: {rule(found)}"


def rule(found: Mapping[str, Any]) -> str:
    """What a value must be, in the words of the command line."""
    kind, limits = found["type"], found.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(limits["error"])
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "literal_error":
        return f"must be one of {limits['expected']}".replace("'", "").replace(" or ", ", ")
    for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most")):
        if name in limits:
            return f"must be {word} {limits[name]:g}" if limits[name] < 1e6 else f"must be {word} {limits[name]}"
    if kind in ("int_from_float", "int_parsing", "int_parsing_size"):
        return f"must be {_TYPES['int']}"
    of, _, what = kind.rpartition("_")
    if what == "type" and of in _TYPES:
        return f"must be {_TYPES[of]}"
    if kind == "string_pattern_mismatch":
        return "must be text without control characters"
    return found["msg"].replace("Input should", "must").replace("should", "must")


def _member(hint: Any, rules: Mapping[str, Any]) -> Any:
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)
    if choices(hint):
        return Annotated[hint, BeforeValidator(_text)]
    if get_origin(hint) is dict:
        return Annotated[hint, AfterValidator(rules["rule"])]
    inner: Any
    if kind is str:
        inner = Annotated[
            str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=4096), BeforeValidator(_text)
        ]
        if rules["rule"] is not None:
            inner = Annotated[inner, AfterValidator(rules["rule"])]
    elif kind is bool:
        inner = bool
    else:
        most = rules["most"] if rules["most"] is not None else MOST if kind is int else LARGEST
        finite = None if kind is int else False
        inner = Annotated[kind, Field(ge=rules["least"], gt=rules["above"], le=most, allow_inf_nan=finite)]
    return inner if kind is hint else inner | None


def _text(value: object) -> object:
    """``precision: 32``."""
    return str(value) if type(value) in (int, float) else value
