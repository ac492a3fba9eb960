"""Where each value comes from: argument, environment, `.env`, `backpropagate.toml`, preset, default, in this order.

A value is looked up and checked when it is asked for, so that a wrong learning rate in a
`.env` file does not keep `list-runs` from working.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backpropagate.doors.environ import environment
from backpropagate.wishes.options import BY_ARGUMENT, BY_KEY, OPTIONS, PREFIX, NotAccepted, Option, Value, parse
from backpropagate.wishes.presets import (
    FULL_GRACE,
    LEARNING_RATES,
    LORA,
    MODELS,
    TRACE_LENGTH,
    TrainingPreset,
    get_preset,
)
from backpropagate.wishes.suggest import did_you_mean
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.mlx_rules import ALLOW_CPU

CONFIG_FILE = "backpropagate.toml"
DOTENV_FILE = ".env"
CONFIG_VARIABLE = PREFIX + "CONFIG"

# Ours, but not settings, with what each is for.
OTHER_VARIABLES = {
    CONFIG_VARIABLE: f"The TOML file to read instead of `{CONFIG_FILE}`.",
    ALLOW_CPU: "1: `--backend mlx` trains on MLX's CPU build, too, which is for tests.",
    PREFIX + "RUN_ID": "Set by a supervisor for its children, which are recognised by it. Nothing reads yours.",
}
# Names that others know them by, and what there is instead.
INSTEAD = {
    PREFIX + "LOG_LEVEL": f"{PREFIX}DEBUG=1, or --verbose, is the one other level there is",
    PREFIX + "LOG_JSON": "--json prints JSON, and events.jsonl in each run directory has a line of it for every event",
    PREFIX + "UI__OUTPUT_DIR": "there is no web UI yet",
}

_OF_TRAINING_PRESETS = (
    "lora.r", "training.learning_rate", "training.warmup_steps", "training.max_steps", "campaign.runs", "campaign.samples",
    "campaign.replay",
)  # fmt: skip
_BY_VARIABLE = {name: option for option in OPTIONS for name in option.all_variables}
_BY_FOREIGN_VARIABLE = {name: option for option in OPTIONS for name in option.foreign}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from. A smaller rank is a stronger source; `named` is the user's own name for it."""

    option: Option
    value: Value
    source: str
    rank: int

    @property
    def explicit(self) -> bool:
        """The user set it, rather than a preset or the default."""
        return self.rank < _PRESETS

    @property
    def given(self) -> bool:
        """The user said it now, as a flag or an argument."""
        return self.rank == _ARGUMENTS


@dataclass(frozen=True, slots=True)
class _Layer:
    """Raw values of one source, by key, each with the words that name its place."""

    source: str
    values: Mapping[str, tuple[object, str]] = field(default_factory=dict)


_ARGUMENTS, _ENVIRONMENT, _DOTENV, _TOML, _PRESETS, _DEFAULT = range(6)


class Settings:
    """All sources together. `warnings` are for the user's eyes, once.

    arguments: by the names of `Trainer`'s keywords; None means not given. A name that does not exist is a UserInputError.
    """

    def __init__(
        self,
        arguments: Mapping[str, object] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        environ = environment() if environ is None else environ
        folder = Path.cwd() if folder is None else folder
        self.warnings: list[str] = []
        self._strays: list[str] = []
        self._layers: tuple[_Layer, ...] = (
            _Layer("argument", _from_arguments(arguments or {})),
            _Layer("environment", self._from_variables(environ, "")),
            _Layer(DOTENV_FILE, self._from_variables(_read_dotenv(folder / DOTENV_FILE), f"{DOTENV_FILE}: ")),
            _Layer(CONFIG_FILE, self._from_toml(folder, environ.get(CONFIG_VARIABLE))),
        )

    def with_argument(self, name: str, value: object) -> Settings:
        """The same, but for one argument."""
        other = copy.copy(self)
        arguments = _Layer("argument", {**self._layers[_ARGUMENTS].values, **_from_arguments({name: value})})
        other._layers = (arguments, *self._layers[1:])
        return other

    def _from_variables(self, variables: Mapping[str, str], place: str) -> dict[str, tuple[object, str]]:
        found: dict[str, tuple[object, str]] = {}
        for name, text in variables.items():
            upper = name.upper()  # Windows has no case in variable names
            option = _BY_VARIABLE.get(upper)
            if option is not None:
                # The field's own name wins over its older ones.
                if option.key not in found or upper == option.variable:
                    found[option.key] = (text, place + upper)
            elif upper in _BY_FOREIGN_VARIABLE and text:
                found.setdefault(_BY_FOREIGN_VARIABLE[upper].key, (text, place + upper))
            elif upper in INSTEAD:
                self.warnings.append(f"{place}{upper} has no effect: {INSTEAD[upper]}")
            elif upper.startswith(PREFIX) and upper not in OTHER_VARIABLES:
                self.warnings.append(f"{place}{upper} is not a setting{did_you_mean(upper, _BY_VARIABLE, PREFIX)}")
        return found

    def _from_toml(self, folder: Path, named: str | None) -> dict[str, tuple[object, str]]:
        found = _from_toml(folder, named)
        for key in [key for key in found if key not in BY_KEY]:
            _, place = found.pop(key)
            group = key.rpartition(".")[0] + "." if "." in key else ""
            self._strays.append(f"{place} is not a setting{did_you_mean(key, BY_KEY, group)}")
        self.warnings += self._strays
        return found

    def check_known(self) -> None:
        """Raises InvalidSettingError for a key of the TOML file that is no setting: a training must not begin without it."""
        if self._strays:
            raise InvalidSettingError(self._strays[0], suggestion="Correct the key, or take it out of the file.")

    def __getitem__(self, key: str) -> Setting:
        """Raises InvalidSettingError if the strongest source has a value that cannot be used."""
        option = BY_KEY[key]
        for rank, layer in enumerate(self._layers):
            if key in layer.values:
                raw, place = layer.values[key]
                return Setting(option, _checked(option, raw, place), _label(layer.source, place), rank)
        preset = self._from_presets(key)
        if preset is not None:
            value, source = preset
            return Setting(option, value, source, _PRESETS)
        return Setting(option, option.default, "default", _DEFAULT)

    def _from_presets(self, key: str) -> tuple[Value, str] | None:
        """What the method, an adapter preset that was asked for, the training preset or the model's preset says, in this order."""
        method = self._from_method(key)
        if method is not None:
            return method
        if key in ("lora.r", "lora.target_modules"):
            chosen = self["lora.preset"]
            lora = LORA[str(chosen.value)]
            value: Value = lora.r if key == "lora.r" else lora.targets
            if chosen.explicit or key == "lora.target_modules":
                return value, f"LoRA preset {lora.name}"
            return (
                self._from_training_preset(key) or self._from_model_preset(key) or (value, f"LoRA preset {lora.name}")
            )
        return self._from_training_preset(key) or self._from_model_preset(key)

    def _from_method(self, key: str) -> tuple[Value, str] | None:
        """Presets are made for adapters that learn answers; other methods need other learning rates, traces more room."""
        if key == "training.learning_rate":
            name = "full" if self["training.mode"].value == "full" else str(self["training.method"].value)
            rate = LEARNING_RATES.get(name)
            return None if rate is None else (rate, f"{'mode' if name == 'full' else 'method'} {name}")
        if key == "model.max_seq_length" and self.flag("data.reasoning_trace"):
            return TRACE_LENGTH, "reasoning trace"
        if key == "safety.grace" and self["training.mode"].value == "full":
            return FULL_GRACE, "mode full"
        return None

    def _from_training_preset(self, key: str) -> tuple[Value, str] | None:
        if key not in _OF_TRAINING_PRESETS:
            return None
        preset = self.training_preset()
        if preset is None:
            return None
        values: dict[str, Value] = {
            "lora.r": preset.lora_r,
            "training.learning_rate": preset.learning_rate,
            "training.warmup_steps": preset.warmup_steps,
            "training.max_steps": preset.steps,
            "campaign.runs": preset.runs,
            "campaign.samples": preset.samples,
            "campaign.replay": preset.replay or None,  # none of its own: what is best as a rule
        }
        return values[key], f"preset {preset.name}"

    def _from_model_preset(self, key: str) -> tuple[Value, str] | None:
        if key not in ("lora.r", "model.max_seq_length"):
            return None
        preset = MODELS.get(str(self["model.name"].value).lower())
        if preset is None:
            return None
        return (preset.lora_r if key == "lora.r" else preset.max_length), f"model preset {preset.name}"

    def training_preset(self) -> TrainingPreset | None:
        name = self["training.preset"].value
        return None if name is None else get_preset(str(name))

    def all(self) -> list[Setting]:
        """Every setting, in the order of the table."""
        return [self[option.key] for option in OPTIONS]

    # Typed readers: the table guarantees the kinds, these say so to the type checker.

    def text(self, key: str) -> str:
        value = self[key].value
        assert isinstance(value, str), key
        return value

    def text_or_none(self, key: str) -> str | None:
        value = self[key].value
        assert value is None or isinstance(value, str), key
        return value

    def whole(self, key: str) -> int:
        value = self[key].value
        assert isinstance(value, int), key
        return value

    def whole_or_none(self, key: str) -> int | None:
        value = self[key].value
        assert value is None or isinstance(value, int), key
        return value

    def number(self, key: str) -> float:
        value = self[key].value
        assert isinstance(value, int | float), key
        return float(value)

    def flag(self, key: str) -> bool:
        return self[key].value is True

    def flag_or_none(self, key: str) -> bool | None:
        value = self[key].value
        return None if value is None else value is True


def _label(source: str, place: str) -> str:
    return place if source in (DOTENV_FILE, CONFIG_FILE) else f"{source} {place}"


def _checked(option: Option, raw: object, place: str) -> Value:
    try:
        return parse(option, raw)
    except NotAccepted as error:
        raise InvalidSettingError(f"{place}: {error}", suggestion=f"Give {option.accepted_now}; `backprop config` shows each value and where it came from.") from None  # fmt: skip


def _from_arguments(arguments: Mapping[str, object]) -> dict[str, tuple[object, str]]:
    found: dict[str, tuple[object, str]] = {}
    for name, value in arguments.items():
        if name not in BY_ARGUMENT:
            raise UserInputError(f"there is no argument {name!r}{did_you_mean(name, BY_ARGUMENT)}")
        if value is not None:
            found[BY_ARGUMENT[name].key] = (value, name)
    return found


def _read_dotenv(path: Path) -> dict[str, str]:
    """`NAME=value` lines; comments, `export`, and quotes around the value are understood. Only names of ours count."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettingError(f"{path} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.upper().startswith(PREFIX):
            continue
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        else:
            value = value.partition(" #")[0].rstrip()
        found[name] = value
    return found


def _from_toml(folder: Path, named: str | None) -> dict[str, tuple[object, str]]:
    path = folder / (named or CONFIG_FILE)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if named:
            raise InvalidSettingError(f"{CONFIG_VARIABLE}: {path} does not exist") from None
        return {}
    except OSError as error:
        raise InvalidSettingError(f"{path} cannot be read: {error.strerror or error}") from error

    import tomllib

    try:
        tables: dict[str, object] = tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingError(f"{path} is not TOML: {error}") from None
    found: dict[str, tuple[object, str]] = {}
    for group, content in tables.items():
        fields = (
            {f"{group}.{name}": value for name, value in content.items()}
            if isinstance(content, dict)
            else {group: content}
        )
        for key, value in fields.items():
            found[key] = (value, f"{path.name}: {key}")
    return found
