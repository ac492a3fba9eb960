"""click commands and flags made from the table of options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import click

from backpropagate.screen import Screen
from backpropagate.wishes.options import BY_KEY, OPTIONS, NotAccepted, Option, Value, parse
from backpropagate_protocol.errors import InvalidSettingError

_ALIASES = {
    alias.removeprefix("--"): next(flag for flag in reversed(option.flags[0].split("/")) if flag.startswith("--"))
    if alias.startswith("--no-")
    else next(flag for flag in "/".join(option.flags).split("/") if flag.startswith("--"))
    for option in OPTIONS
    for alias in option.aliases
}

F = TypeVar("F", bound=Callable[..., object])


def normalise(token: str) -> str:
    """`max_steps`, `max-steps` → `steps`: underscores are dashes, and the spellings of other tools are ours."""
    dashed = token.replace("_", "-") if not token.startswith("_") else token
    return _ALIASES.get(dashed, dashed).removeprefix("--")


class _Accepts(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    """A value of one option, checked by the table."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = {"str": "text", "int": "integer", "float": "number", "bool": "boolean", "list": "names"}[
            option.kind
        ]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        if self.option.choices:
            return "[" + "|".join(self.option.shown_choices) + "]"
        return {"str": "TEXT", "int": "N", "float": "X", "bool": "", "list": "A,B"}[self.option.kind]

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        try:
            return parse(self.option, value)
        except NotAccepted as error:
            flag = max(param.opts, key=len) if param else self.option.argument
            raise InvalidSettingError(f"{flag}: {error}", suggestion=f"Give {self.option.accepted_now}.") from None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(choice) for choice in self.option.shown_choices if choice.startswith(incomplete)]


def _default_in_words(option: Option) -> str:
    if option.default is None or option.kind == "bool":
        return "  [default: on]" if option.default is True else ""
    default = ",".join(option.default) if isinstance(option.default, tuple) else option.default
    return f"  [default: {default}]" if default != "" else ""


def from_table(
    *keys: str,
    shorter: Mapping[str, str] | None = None,
    helps: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
) -> Callable[[F], F]:
    """Adds the flags of these options, in this order; a value that was not given is None.

    shorter: by key, a flag that means the option in this command, besides its own. helps: what it says here, where that is
    not what the table says. hidden: keys that are accepted and not shown.
    """

    def decorate(function: F) -> F:
        for key in reversed(keys):
            option = BY_KEY[key]
            text = (helps or {}).get(key, option.help) + _default_in_words(option)
            flags = (shorter[key], *option.flags) if shorter and key in shorter else option.flags
            unseen = option.hidden or key in hidden
            if option.kind == "bool":
                click.option(*flags, option.argument, is_flag=True, default=None, help=text, hidden=unseen)(function)
            else:
                click.option(*flags, option.argument, type=_Accepts(option), default=None, help=text, hidden=unseen)(function)  # fmt: skip
        return function

    return decorate


class Command(click.Command):
    """A command that every user can ask for --json and --verbose."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # handed through as click's decorator gives them
        self.params.append(_switch("json", "Exactly one JSON document on stdout."))
        self.params.append(_switch("verbose", "Full tracebacks of faults and of unexpected errors.", short="-v"))


def _switch(name: str, text: str, short: str | None = None) -> click.Option:
    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        screen = ctx.find_object(Screen)
        if value and screen is not None:
            setattr(screen, name, True)

    flags = [f"--{name}"] if short is None else [short, f"--{name}"]
    return click.Option(flags, is_flag=True, expose_value=False, callback=remember, help=text)
