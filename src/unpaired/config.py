"""A run's config: method + data + optim + train. One way to say a setting everywhere: `optim.F.lr=5e-7`.

From weak to strong: the defaults here, the method's preset, the YAML file, `key=value` from the command line. The
resolved config says everything; it is written into the run folder and into every model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
)
from torch.overrides import TorchFunctionMode

from unpaired.errors import ConfigProblem
from unpaired.method import Method, MethodConfig, Section, Shape, whole_path
from unpaired.registry import find_method


def absolute(root: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """Folders by their whole path, so that a run goes on from anywhere; "scenes" are built in."""
    if root is None or root == "scenes":
        return root
    return whole_path(root) if isinstance(root, str) else tuple(map(whole_path, root))


def distinct(domains: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if domains and len(set(domains)) < len(domains):
        raise ValueError("a domain is named twice")
    return domains


def label_file(labels: str | None) -> str | None:
    return labels if labels in (None, "folders") else whole_path(labels)


def folder_name(domain: Any) -> Any:
    """YAML reads a folder's name of digits as a number."""
    return str(domain) if type(domain) is int else domain


Side = Annotated[int, Field(ge=8)]
Domain = Annotated[str, BeforeValidator(folder_name)]


class Data(Section):
    """Where the images come from and how they are cut."""

    # A folder, a list, several folders, or scenes: docs/data.md
    root: Annotated[str | tuple[str, ...] | None, AfterValidator(absolute)] = None
    # Which domains, in which order; default: all that are found
    domains: Annotated[tuple[Domain, ...] | None, AfterValidator(distinct)] = None
    follow_links: bool = False  # also where links lead out of the folder
    size: Side | tuple[Side, Side] = 256  # side of the square crop, or (height, width)
    zoom: float = Field(1.0, ge=1, le=8)  # images are resized to zoom * size before the random crop
    flip: bool = True  # mirror half of the images
    # Unlabelled data: second views differ in colour (off where colour is the domain) ...
    jitter: bool = True
    # ... and in hue by at most this share of the circle: 0.5 where found domains should ignore hue
    hue: float = Field(0.125, ge=0, le=0.5)
    # Unlabelled data: "folders", or a CSV of path,label
    labels: Annotated[str | None, AfterValidator(label_file)] = None
    labelled: float = Field(1.0, gt=0, le=1)  # the share of these that training sees
    channels: Literal[1, 3] = 3  # 1 for grey images
    # Images of each domain in a step; many domains: of all together
    batch: int = Field(1, ge=1, le=65_536)
    # Processes that read; auto: none on a CPU
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    # GiB of decoded images that stay on this machine, for the next epoch and run; auto: 4, at most a
    # tenth of the free disk
    cache: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    # The share of images that cannot be used above which training refuses
    max_bad: float = Field(0.05, ge=0, le=1)
    count: int = Field(2000, ge=1)  # scenes of each domain

    @property
    def hw(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def mirrors(self) -> bool:
        """Whether images are mirrored: of scenes that would be another style, light from the other side."""
        return self.flip and self.root != "scenes"


class Decay(Section):
    """How the learning rate falls, in fractions of the run."""

    kind: Literal["constant", "linear", "steps"] = "constant"  # how the learning rate falls
    start: float = Field(0.5, ge=0, le=1)  # linear: full until here, then down to 0 at the end
    every: float = Field(0.1, gt=0, le=1)  # steps: times `factor` after each such fraction
    factor: float = Field(0.5, gt=0, le=1)  # steps: see every

    def at(self, fraction: float) -> float:
        """The factor on the learning rate when `fraction` of the run is done."""
        if self.kind == "linear":
            return min(1.0, (1 - fraction) / max(1 - self.start, 1e-9))
        if self.kind == "steps":
            return self.factor ** int(fraction / self.every + 1e-9)
        return 1.0


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optim(Section):
    """One network's optimizer; `default` says what a network leaves out."""

    kind: Literal["adam", "rmsprop"] = "adam"  # which optimizer
    lr: float = Field(1e-4, gt=0)  # learning rate
    betas: tuple[Beta, Beta] = (0.5, 0.999)  # Adam's momenta
    weight_decay: float = Field(0.0, ge=0)  # added to the gradient
    clip: float | None = Field(None, gt=0)  # the largest norm of a network's gradient
    decay: Decay = Decay()


class Train(Section):
    """The run itself."""

    steps: int = Field(100_000, ge=1, le=10**9)  # how often every network moves
    # Decay of the averaged networks, at step s at most (1 + s) / (10 + s); 0: no average
    ema: float = Field(0.999, ge=0, lt=1)
    accumulate: int = Field(1, ge=1)  # microbatches that a batch is split into, to save memory
    # Auto: bf16 where the machine has units for it
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    compile: bool = False  # networks compiled by torch
    checkpointing: bool = False  # blocks run again in the backward pass: more time, less memory
    seed: int = Field(0, ge=0, lt=2**32)  # of everything that is random
    log_every: int = Field(50, ge=1)  # steps between two lines of log.jsonl
    sample_every: int = Field(1000, ge=1)  # steps between two pages of samples
    save_every: int = Field(1000, ge=1)  # steps between two checkpoints
    evaluate_every: int = Field(1000, ge=1)  # steps between two looks at validation images
    # The figure that decides which checkpoint is kept as the best
    best: Literal["SWD", "cycle error", "paired error", "style gap"] = "SWD"
    keep: int = Field(2, ge=1)  # checkpoints that are kept
    tensorboard: bool = False  # needs the extra `log`


# What reading YAML raises; a ValueError where 2024-13-45 looks like a date
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


class Uninitialised(TorchFunctionMode):
    """While it lasts, parameters are not initialised: most of the time that building networks takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        initial = getattr(func, "__module__", "") == "torch.nn.init"
        drawn = func in (torch.Tensor.normal_, torch.Tensor.uniform_)  # by what has no such hook
        if initial or (drawn and isinstance(args[0], torch.nn.Parameter)):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class Run(Section):
    """A complete run. `load` makes one."""

    method: SerializeAsAny[MethodConfig]
    preset: str = "paper"
    data: Data = Data()
    optim: dict[str, Optim] = Field(default_factory=lambda: {"default": Optim()})
    train: Train = Train()

    def optimizer(self, net: str) -> Optim:
        return self.optim.get(net, self.optim["default"])

    def method_class(self) -> type[Method]:
        return find_method(self.method.name)

    def precision(self, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
        """What `train.precision` means there; auto: bf16 where the machine has matrix units for it."""
        if self.train.precision != "auto":
            return self.train.precision
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
            fast = device.type == "cpu" and units
        return "bf16-mixed" if fast else "32-true"

    def build(self, domains: tuple[str, ...], initialise: bool = True) -> Method:
        """The method's networks, initialised from `train.seed`; if not, for weights to be loaded, without averages."""
        with ExitStack() as stack:
            if initialise:
                torch.manual_seed(self.train.seed)
            else:  # some layers draw all the same, from the caller's numbers
                stack.enter_context(torch.random.fork_rng(devices=[]))
                stack.enter_context(Uninitialised())
            shape = Shape(*self.data.hw, self.data.channels)
            method = self.method_class()(self.method, domains, shape)
        if initialise:
            method.start_averages()
        return method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to_yaml(self) -> str:
        return yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110
        )


def load(path: str | Path | None = None, overrides: Iterable[str] = (), **base: Any) -> Run:
    """A run's config from a YAML file, `key=value` words and nested dictionaries (`method={"name": "munit"}`)."""
    said = merge(named(read_yaml(path)) if path else {}, base)
    for word in overrides:
        said = merge(said, named(override(word)))
    return resolve(said)


def named(tree: dict[str, Any]) -> dict[str, Any]:
    """`method: munit` is short for `method: {name: munit}`."""
    return (
        tree | {"method": {"name": name}} if isinstance(name := tree.get("method"), str) else tree
    )


def resolve(said: Mapping[str, Any]) -> Run:
    """The complete config from what was said, over the method's preset."""
    section = said.get("method")
    name = section.get("name") if isinstance(section, Mapping) else section
    if not isinstance(name, str):
        raise ConfigProblem(
            "The config names no method: say --method munit, or `method: {name: munit}` in the file."
        )
    said = {**said, "method": section if isinstance(section, Mapping) else {"name": name}}
    method = find_method(name)
    preset = said.get("preset", "paper")
    if not method.presets and preset != "paper":
        raise ConfigProblem(
            f"preset: {name} has none: give the class `presets`, or leave preset out and say data.size and the rest."
        )
    if not isinstance(preset, str) or (method.presets and preset not in method.presets):
        raise ConfigProblem(
            f"preset: {name} has no preset '{preset}': {nearest(str(preset), method.presets)}"
        )
    tree = merge(method.presets.get(preset, {}), said)
    settings = {"name": name, **tree["method"]}
    optim = tree.get("optim", {})
    default = optim.get("default", {}) if isinstance(optim, Mapping) else {}
    if isinstance(optim, Mapping) and isinstance(default, Mapping):
        optim = {
            net: merge(default, own) if isinstance(own, Mapping) else own
            for net, own in optim.items()
        }
        optim = {"default": default, **optim}
    try:
        config = method.Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigProblem(sentence(error, method.Config, ("method",))) from None
    try:
        run = Run.model_validate({**tree, "method": config, "preset": preset, "optim": optim})
    except ValidationError as error:
        raise ConfigProblem(sentence(error, Run, method=method.Config)) from None
    if run.data.batch % run.train.accumulate:
        raise ConfigProblem(
            f"train.accumulate: {run.train.accumulate} equal parts cannot be made of data.batch={run.data.batch}: "
            "choose a divisor of it."
        )
    return run


SAFE: tuple[str, ...] = (
    "train.log_every",
    "train.sample_every",
    "train.save_every",
    "train.keep",
    "train.evaluate_every",
    "train.best",
    "train.steps",
)
SAFE += (
    "train.tensorboard",
    "train.compile",
    "train.checkpointing",
    "train.precision",
    "data.workers",
    "data.cache",
    "data.max_bad",
    "data.root",  # what lies there is compared
    "data.labels",  # and so are these
)


def changes(old: Run, new: Run) -> list[str]:
    """What differs and may not change within a run: `method.dim: 16 -> 32`. Files of weights may have moved."""
    a, b = (
        flat(run.model_dump(mode="json") | {"method": portable(run.method)}) for run in (old, new)
    )
    keys = [k for k in a | b if a.get(k) != b.get(k) and k not in SAFE]
    return [f"{k}: {a.get(k)} -> {b.get(k)}" for k in keys]


def refuse_changes(old: Run, new: Run, folder: Path) -> None:
    """Refuses to go on with the run in `folder`, begun as `old`, as `new`."""
    if changed := changes(old, new):
        raise ConfigProblem(
            f"--resume cannot change what the run is made of ({'; '.join(changed)}): set it back, also in "
            f"{folder}/config.yaml, or start a new run from its networks by --init {quote(str(folder))}."
        )


def portable(method: MethodConfig) -> dict[str, Any]:
    """A method's settings as JSON, of files of weights the names alone and not where they lie."""
    settings = method.model_dump(mode="json")
    for key, value in method:
        if isinstance(value, Path):
            settings[key] = value.name
        elif isinstance(value, tuple) and any(isinstance(v, Path) for v in value):
            settings[key] = [Path(v).name for v in value]
    return settings


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"steps": 1}} -> {"train.steps": 1}"""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return leaves


def merge(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    """`weak` with what `strong` says over it, section by section."""
    merged = dict(weak)
    for key, value in strong.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def override(word: str) -> dict[str, Any]:
    """`optim.F.lr=5e-7` -> {"optim": {"F": {"lr": 5e-7}}}"""
    key, sign, value = word.partition("=")
    if not sign or not key:
        raise ConfigProblem(
            f"'{word}' is not a setting: write key=value, such as train.steps=1000."
        )
    try:
        tree: Any = yaml.safe_load(value)
    except NOT_YAML:
        tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigProblem(
            f"There is no config file {path}: give a YAML file, or --method and --data."
        ) from None
    except IsADirectoryError:
        is_run = (Path(path) / "config.yaml").is_file()
        remedy = f"go on with this run by --resume {path}" if is_run else f"say --data {path}"
        raise ConfigProblem(f"{path} is a folder and not a config: {remedy}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigProblem(f"{path} cannot be read as a config: {error}.") from None
    except NOT_YAML as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ConfigProblem(f"{path} is not valid YAML{line}: mend it there.") from None
    if not isinstance(tree, dict):
        raise ConfigProblem(
            f"{path} is not a config: it should hold `method:`, `data:`, `optim:`, `train:`."
        )
    return tree


def nearest(word: str, known: Iterable[str]) -> str:
    """ "did you mean lr?", or the list to choose from."""
    known = list(known)
    scores = {k: likeness(word, k) for k in known}
    best = [
        k for k in known if scores[k] == max(scores.values()) >= 0.5
    ]  # one, or equally near ones
    return f"did you mean {best[0]}?" if len(best) == 1 else f"choose from {', '.join(known)}."


def likeness(a: str, b: str) -> float:
    """1 for words that differ in case alone, 0 for those without a letter in common."""
    return difflib.SequenceMatcher(None, a.casefold(), b.casefold().rpartition(".")[2]).ratio()


def sentence(
    error: ValidationError,
    model: type[BaseModel],
    prefix: tuple[str, ...] = (),
    method: type[BaseModel] = MethodConfig,
) -> str:
    """The first fault of a validation, the innermost where a value may be of several kinds, in one sentence that names
    the key and the remedy."""
    faults = error.errors()
    fault = max(faults, key=lambda f: len(f["loc"]) if f["loc"][:2] == faults[0]["loc"][:2] else 0)
    location = [str(part) for part in fault["loc"]]
    if location[:1] == ["optim"] and len(location) == 2 and location[1] in Optim.model_fields:
        return f"optim.{location[1]}: say which network, or all: optim.default.{location[1]}."
    if fault["type"] == "extra_forbidden":
        *above, word = location
        fields = [".".join([*prefix, *above, field]) for field in fields_at(model, above)]
        if model is Run and not above:  # a setting without its section
            sections: dict[str, type[BaseModel]] = {
                "method": method,
                "data": Data,
                "train": Train,
                "optim.default": Optim,
            }
            fields = [
                f"{s}.{word}" for s, c in sections.items() if word in c.model_fields
            ] or fields
        return f"{'.'.join([*prefix, *location])}: there is no such key: {nearest(word, fields)}"
    steps = [
        part
        for part in location
        if part.isidentifier() and "[" not in part and part not in ("int", "str")
    ]
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    key, said = ".".join([*prefix, *steps]), fault["input"]
    cut = isinstance(said, str) and said.startswith("[")  # by the shell, at a space
    remedy = f"put the list in quotes, as in '{key}=[a, b]'." if cut else "correct it."
    if fault["type"] == "tuple_type" and not cut:
        message, remedy = "it is a list", f"write one, as in '{key}=[a,b]'."
    if fault["type"] == "missing" and isinstance(said, list | tuple):
        message, remedy = "a number is lacking", "write both."
    if fault["type"] == "string_type" and not isinstance(said, list | dict):
        remedy = "put it in double quotes, and on the command line the setting in single ones."
    return f"{key}: {message}, not {said!r}: {remedy}"


def fields_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """The keys of the section that `location` leads to."""
    sections: dict[str, type[BaseModel]] = {
        "data": Data,
        "optim": Optim,
        "train": Train,
        "decay": Decay,
    }
    for part in location:
        model = sections.get(part, model)
    return list(model.model_fields)
