"""Views: frozen dataclasses whose fields name the parameters that they are read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from engine.shared.parameter import Value

T = TypeVar("T")


def parameter(name: str) -> Any:
    """Declare a field that holds the value of one parameter. A ``{}`` in the name stands for the view's number."""
    return field(metadata={"parameter": name})


def each(view: type[Any], count: int) -> Any:
    """Declare a field that holds views numbered from 1 to ``count``, as a tuple."""
    return field(metadata={"view": view, "count": count})


def read(view: Callable[..., T], values: Mapping[str, Value], number: int = 0) -> T:
    """Build a view from values by parameter name; ``number`` replaces ``{}`` in the names. Raises KeyError.

    A field that names no parameter holds another view, of its annotated type.
    """
    arguments: list[Any] = []
    for metadata, annotation in _fields(view):
        if "parameter" in metadata:
            arguments.append(values[metadata["parameter"].format(number)])
        elif "count" in metadata:
            arguments.append(tuple(read(metadata["view"], values, i) for i in range(1, metadata["count"] + 1)))
        else:
            arguments.append(read(annotation, values, number))
    return view(*arguments)


@cache
def _fields(view: Callable[..., Any]) -> list[tuple[Mapping[str, Any], type[Any]]]:
    """Return metadata and type of each field of a view."""
    types = get_type_hints(view)
    return [(entry.metadata, types[entry.name]) for entry in fields(view)]  # type: ignore[arg-type]
