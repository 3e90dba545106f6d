"""What a configuration field may hold: strict conversion of YAML values and of texts, and validators.

Owns the step from one value to one typed value, with an error text that says what to write instead. Must
not know files, the environment or any process's keys. Strict, because YAML turns `on`, `007` and `12:30`
into something else than was written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import attrs
import yaml
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from shared.units import (
    Duration,
    Endpoint,
    Size,
    format_size,
    parse_duration,
    parse_size,
    split_endpoint,
)

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def between(low: float, high: float, show: Callable[[Any], str] = str) -> Validator:
    """Field validator: low <= value <= high; `show` renders the limits and the value."""

    def validate(_: object, __: attrs.Attribute[Any], value: Any) -> None:
        if not low <= value <= high:
            raise ValueError(f"must be between {show(low)} and {show(high)}, not {show(value)}")

    return validate


def size_between(low: int, high: int) -> Validator:
    """`between` for sizes."""
    return between(low, high, format_size)


def matching(pattern: str, expected: str) -> Validator:
    """Field validator: the whole text matches `pattern`; `expected` says what that means."""
    compiled = re.compile(pattern)

    def validate(_: object, __: attrs.Attribute[Any], value: str) -> None:
        if compiled.fullmatch(value) is None:
            raise ValueError(f"must be {expected}, not {value!r:.80}")

    return validate


name_like = matching(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
    "1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit",
)


def connectable(endpoint: Endpoint) -> bool:
    """Whether an endpoint names a host and a port, rather than "any"."""
    host, port = split_endpoint(endpoint)
    return port != 0 and host not in ("*", "0.0.0.0", "::")


def stores_to_ask(stores: Sequence[Endpoint]) -> Iterator[tuple[str, str]]:
    """What is wrong with the field `stores` of who finds a cluster by them: (path, text)."""
    if not stores:
        yield "stores", "must name at least one store, such as tcp://127.0.0.1:7200"
    for index, endpoint in enumerate(stores):
        if endpoint in stores[:index]:
            yield f"stores[{index}]", f"{endpoint} is there twice"
        if not connectable(endpoint):
            yield f"stores[{index}]", f"{endpoint} is no address to connect to: name host and port"


def address_or_none(_: object, __: attrs.Attribute[str], value: str) -> None:
    """Field validator: "", or an endpoint that others can connect to."""
    if value and not connectable(Endpoint(value)):
        raise ValueError(f"{value} is no address to connect to: name host and port")


class Text(str):
    """A value from the environment or the command line: its type is still to be read from the text."""

    __slots__ = ()


class Loader(yaml.SafeLoader):
    """YAML without its worst surprises: a key twice is an error; `007`, `12:30` and dates stay text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    text = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if node.tag.endswith(":int"):
            return int(text) if re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,18})", text) else text
        return text if ":" in text or "_" in text else self.construct_yaml_float(node)


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_number)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)
Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return f"{str(value).lower()} (YAML reads on, off, yes and no without quotes as true and false)"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section with keys"
    if isinstance(value, list):
        return "a list"
    return f"the text {value!r:.80}" if isinstance(value, str) else f"the number {value!r:.80}"


def _structure_str(value: object, _: object = None) -> str:
    if isinstance(value, str):
        return str(value)
    quote = ": quote it" if isinstance(value, bool | int | float) else ""
    raise ValueError(f"expected text, got {shown(value)}{quote}")


def _structure_int(value: object, _: object = None) -> int:
    if type(value) is int:
        return value
    if isinstance(value, Text) and re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", value):
        return int(value)
    digits = ": write it in digits, without quotes" if isinstance(value, str | float) else ""
    raise ValueError(f"expected a whole number, got {shown(value)}{digits}")


def _structure_float(value: object, _: object = None) -> float:
    if isinstance(value, Text) and re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", value):
        return float(value)
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return float(value)
    raise ValueError(f"expected a number, got {shown(value)}")


def _structure_bool(value: object, _: object = None) -> bool:
    if type(value) is bool:
        return value
    if isinstance(value, Text) and value in ("true", "false"):
        return value == "true"
    raise ValueError(f"expected true or false, got {shown(value)}")


def _structure_size(value: object, _: object = None) -> Size:
    if type(value) is int:
        return parse_size(str(value))
    if isinstance(value, str):
        return parse_size(value)
    raise ValueError(f"expected a size such as 64MiB, got {shown(value)}")


def _structure_duration(value: object, _: object = None) -> Duration:
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return parse_duration(str(value))
    raise ValueError(f"expected a duration such as 250ms or 5s, got {shown(value)}")


def _structure_endpoint(value: object, _: object = None) -> Endpoint:
    text = _structure_str(value)
    split_endpoint(text)
    return Endpoint(text)


def _structure_literal(value: object, choices: Any) -> Any:
    allowed = get_args(choices)
    if isinstance(value, str) and value in allowed:
        return str(value)
    quote = ": quote it" if isinstance(value, bool) else ""
    raise ValueError(f"expected one of {', '.join(map(str, allowed))}, got {shown(value)}{quote}")


def _structure_tuple(value: object, kind: Any) -> tuple[Any, ...]:
    """Lists only: a lone text would otherwise become the tuple of its characters."""
    if isinstance(value, Text):
        value = _read_list(value)
    item_kind = get_args(kind)[0]
    if type(value) is not list:
        raise ValueError(f"expected a list, got {shown(value)}")
    items = converter.structure(value, list[item_kind])  # type: ignore[valid-type]
    return tuple(items)


def _read_list(text: str) -> object:
    """`a,b` or, for lists of anything but plain values, a YAML list in brackets."""
    if not text.startswith("["):
        return [Text(item) for item in text.split(",")]
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        raise ValueError(f"expected a list such as [a, b], got {text!r:.80}") from None


def _section_hook(cls: type[Any]) -> Callable[[Any, Any], Any]:
    """Structure one attrs class, running each field's validator with its field: its problem has that path."""
    attrs.resolve_types(cls)
    checked: dict[str, Any] = {
        field.name: override(struct_hook=_validating(field))
        for field in attrs.fields(cls)
        if field.validator is not None
    }
    structure = make_dict_structure_fn(cls, converter, **checked)

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, Text):
            raise ValueError("is a section: set its keys one by one")
        if value is None:  # a section whose keys are all commented out
            value = {}
        if type(value) is not dict:
            raise ValueError(f"expected a section with keys, got {shown(value)}")
        return structure(value, cls)

    return hook


def _validating(field: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
    def hook(value: Any, kind: Any) -> Any:
        structured = converter.structure(value, kind)
        assert field.validator is not None
        field.validator(None, field, structured)
        return structured

    return hook


def _is_literal(kind: object) -> bool:
    return get_origin(kind) is Literal


def _is_tuple(kind: object) -> bool:
    return get_origin(kind) is tuple


def _makeconverter() -> Converter:
    made = Converter(detailed_validation=True, forbid_extra_keys=True)
    hooks: dict[Any, Callable[[Any, Any], Any]] = {
        str: _structure_str,
        int: _structure_int,
        float: _structure_float,
        bool: _structure_bool,
        Size: _structure_size,
        Duration: _structure_duration,
        Endpoint: _structure_endpoint,
    }
    for kind, hook in hooks.items():
        made.register_structure_hook(kind, hook)
    made.register_structure_hook_func(_is_literal, _structure_literal)
    made.register_structure_hook_func(_is_tuple, _structure_tuple)
    made.register_structure_hook_factory(attrs.has, _section_hook)
    return made


converter = _makeconverter()
