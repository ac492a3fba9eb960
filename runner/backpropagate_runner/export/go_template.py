"""Renders the subset of Go's text/template that our Ollama templates are written in, so that they can be tried before use.

Text, `{{ "…" }}`, `{{ .Field }}`, `{{ $.Field }}`, `{{ if E }} … {{ else if E }} … {{ else }} … {{ end }}`,
`{{ range $i, $_ := .Field }}`, `eq`, `or`, `and`, parentheses, numbers, and the trimming `{{-` and `-}}`. Anything else is
refused with ValueError rather than guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Value = str | int | bool | Sequence[Mapping[str, str]]

_ACTION = re.compile(r'\{\{(-\s)?((?:"(?:[^"\\]|\\.)*"|[^"}]|\}(?!\}))*?)(\s-)?\}\}')
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\$?\.[A-Za-z]\w*|\$\w+|[a-z]+|\d+|:=|[(),])')


@dataclass
class _Branch:
    """One arm of an `if`, or a `range`'s body; `test` is empty for `else`."""

    test: list[str]
    body: list[_Node] = field(default_factory=list)


@dataclass
class _Node:
    kind: str  # text, show, if, range
    text: str = ""
    tokens: list[str] = field(default_factory=list)
    branches: list[_Branch] = field(default_factory=list)


def render(template: str, data: Mapping[str, Value]) -> str:
    """What the template says of `data`. Raises ValueError for anything outside the subset."""
    nodes, rest = _parse(_pieces(template))
    if rest:
        raise ValueError("an {{ end }} or {{ else }} too many")
    return _run(nodes, data, data, {})


def _pieces(template: str) -> list[tuple[bool, str]]:
    """(is an action, text) in order, trimming done."""
    found: list[tuple[bool, str]] = []
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        found.append((False, text.rstrip() if match[1] else text))
        found.append((True, match[2].strip()))
        at, trim = match.end(), bool(match[3])
    tail = template[at:]
    if "{{" in tail:
        raise ValueError("an action is not closed")
    found.append((False, tail.lstrip() if trim else tail))
    return found


def _tokens(action: str) -> list[str]:
    found, at = [], 0
    while at < len(action):
        match = _TOKEN.match(action, at)
        if match is None:
            raise ValueError(f"{action!r} is outside the subset")
        found.append(match[1])
        at = match.end()
    return found


def _parse(pieces: list[tuple[bool, str]]) -> tuple[list[_Node], list[tuple[bool, str]]]:
    """Nodes up to an `end` or `else` of an outer action, and the pieces from there on."""
    nodes: list[_Node] = []
    while pieces:
        is_action, text = pieces[0]
        tokens = _tokens(text) if is_action else []
        if is_action and tokens[:1] in (["end"], ["else"]):
            return nodes, pieces
        pieces = pieces[1:]
        if not is_action:
            nodes.append(_Node("text", text))
        elif tokens[:1] in (["if"], ["range"]):
            node = _Node(tokens[0])
            branch = _Branch(tokens[1:])
            while True:
                branch.body, pieces = _parse(pieces)
                node.branches.append(branch)
                if not pieces:
                    raise ValueError(f"{text!r} has no end")
                closing = _tokens(pieces[0][1])
                pieces = pieces[1:]
                if closing == ["end"]:
                    break
                branch = _Branch(closing[2:] if closing[1:2] == ["if"] else [])
            nodes.append(node)
        else:
            nodes.append(_Node("show", tokens=tokens))
    return nodes, pieces


def _run(nodes: list[_Node], dot: Mapping[str, Value], root: Mapping[str, Value], names: Mapping[str, Value]) -> str:
    out: list[str] = []
    for node in nodes:
        if node.kind == "text":
            out.append(node.text)
        elif node.kind == "show":
            out.append(str(_value(node.tokens, dot, root, names)))
        elif node.kind == "if":
            for branch in node.branches:
                if not branch.test or _value(branch.test, dot, root, names):
                    out.append(_run(branch.body, dot, root, names))
                    break
        else:
            match node.branches[0].test:
                case [str(index), ",", str(), ":=", str(what)]:
                    items = _value([what], dot, root, names)
                case test:
                    raise ValueError(f"range {test} is outside the subset")
            if isinstance(items, str | int):
                raise ValueError(f"{what} cannot be ranged over")
            for number, item in enumerate(items):
                out.append(_run(node.branches[0].body, item, root, {**names, index: number}))
    return "".join(out)


def _value(tokens: list[str], dot: Mapping[str, Value], root: Mapping[str, Value], names: Mapping[str, Value]) -> Value:
    values: list[Value] = []
    function = ""
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token == "(":
            depth, end = 1, at + 1
            while depth and end < len(tokens):
                depth += {"(": 1, ")": -1}.get(tokens[end], 0)
                end += 1
            values.append(_value(tokens[at + 1 : end - 1], dot, root, names))
            at = end
            continue
        if at == 0 and token in ("eq", "or", "and"):
            function = token
        elif token.startswith('"'):
            values.append(json.loads(token))
        elif token.isdigit():
            values.append(int(token))
        elif token.startswith("$."):
            values.append(root[token[2:]])
        elif token.startswith("."):
            values.append(dot[token[1:]])
        elif token in names:
            values.append(names[token])
        else:
            raise ValueError(f"{token!r} is outside the subset")
        at += 1
    if function == "eq" and len(values) == 2:
        return values[0] == values[1]
    if function == "or" and values:
        return next((value for value in values if value), values[-1])
    if function == "and" and values:
        return next((value for value in values if not value), values[-1])
    if function or len(values) != 1:
        raise ValueError(f"{' '.join(tokens)!r} is outside the subset")
    return values[0]
