"""The server's description as one page of plain HTML: no script, nothing from elsewhere."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from marl.core.look import tokens

STYLE = """
main.text table { display: block; overflow-x: auto; }
main.text th { padding: 5px 11px; }
main.text td { vertical-align: top; white-space: normal; }
"""


def page(description: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI description, operation by operation."""
    about = description["info"]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(about['title'])}</title><style>{tokens.style()}{STYLE}</style>",
        f'<header class="text"><h1>{escape(about["title"])}</h1></header><main class="text">',
        f"<p>{escape(about['description'])}</p>",
        "<p>The same for programs: <code>/openapi.json</code>.</p>",
    ]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('summary', ''))}</p>")
            if operation.get("description"):
                parts.append(f"<p>{escape(operation['description'])}</p>")
            parts += [*_parameters(operation), *_bodies(operation), *_answers(operation)]
    return "\n".join([*parts, "</main>"])


def _parameters(operation: Mapping[str, Any]) -> list[str]:
    rows = [
        f"<tr><td><code>{escape(each['name'])}</code><td>{escape(each['in'])}<td>{escape(each.get('description', ''))}"
        f"<td><code>{escape(_kind(each.get('schema', {})))}</code>"
        for each in operation.get("parameters", ())
    ]
    return ["<table><tr><th>parameter<th>in<th><th>type", *rows, "</table>"] if rows else []


def _bodies(operation: Mapping[str, Any]) -> list[str]:
    parts = []
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body as <code>{escape(kind)}</code></p>")
        schema = content.get("schema", {})
        if "properties" not in schema:
            continue
        needed = schema.get("required", ())
        rows = [
            f"<tr><td><code>{escape(name)}</code>{' (needed)' if name in needed else ''}"
            f"<td>{escape(each.get('description', ''))}<td><code>{escape(_kind(each))}</code>"
            for name, each in schema["properties"].items()
        ]
        parts += ["<table><tr><th>key<th><th>type", *rows, "</table>"]
    return parts


def _answers(operation: Mapping[str, Any]) -> list[str]:
    rows = [f"<li>{escape(status)}: {escape(answer.get('description', ''))}"
            for status, answer in operation.get("responses", {}).items() if status != "422"]  # fmt: skip
    return ["<ul>", *rows, "<li>4xx, 503: {&quot;error&quot;: one sentence}", "</ul>"]


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema's type in short."""
    if "anyOf" in schema:
        return " | ".join(_kind(each) for each in schema["anyOf"])
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], Mapping):
        return f"{{name: {_kind(schema['additionalProperties'])}}}"
    if "items" in schema:
        return f"[{_kind(schema['items'])}]"
    return str(schema.get("type", json.dumps(dict(schema), default=str)[:80]))
