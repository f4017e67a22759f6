"""Layers of settings, read from YAML: what a preset says, then a file of the user's, then overrides; and which layer said what.

One rule of merging. A group of settings, such as `train`, is merged key by key. The value of a setting is replaced, be it a number, a
list or a mapping (`mix.weights={web: 1}`); the dotted key of one entry of a mapping (`mix.weights.web=2`) leaves its other entries.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_origin

import yaml
from pydantic.fields import FieldInfo

from contract.config import Frozen
from contract.errors import ConfigError

Path = tuple[str | int, ...]


class Origin(NamedTuple):
    """Where a value was written."""

    layer: str
    line: int | None = None

    def __str__(self) -> str:
        return self.layer if self.line is None else f"{self.layer} line {self.line}"


class _Strict(yaml.SafeLoader):
    """Refuses aliases (nine lists of nine aliases each are a billion values when they are printed or checked) and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not taken: write the value out", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def read_yaml(text: str | bytes, what: str) -> Any:
    return read_with_lines(text, what)[0]


def read_with_lines(text: str | bytes, what: str) -> tuple[Any, dict[Path, int]]:
    """The value, and the line of every key and item in it. Raises ConfigError."""
    try:
        loader = _Strict(text)
        node = loader.get_single_node()
        return (None, {}) if node is None else (loader.construct_document(node), dict(_lines(node)))
    except Exception as error:  # besides YAMLError, Python's own for 2001-99-99, !!int "", !!bool x or a thousand brackets
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            cause = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise ConfigError(f"{what} cannot be read as YAML ({cause}); correct it") from error


def _lines(node: yaml.Node, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value.start_mark.line + 1
            yield from _lines(value, (*path, i))


@dataclass
class Layers:
    """Settings of a model, put one over the other."""

    model: type[Frozen]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    """By dotted key, of settings and of single entries of their mappings. What is absent has its default."""
    replaced: dict[str, set[str]] = field(default_factory=dict)
    """Keys of a mapping that a whole mapping took the place of."""

    def put_all(self, values: Mapping[Any, Any], layer: str, lines: Mapping[Path, int]) -> None:
        """A whole file."""
        for name, value in values.items():
            self._put(tuple(str(name).split(".")), value, layer, (str(name),), lines)

    def put(self, key: str, value: object, layer: str) -> None:
        """One override, by its dotted key."""
        self._put(tuple(key.split(".")), value, layer, (), {})

    def _put(self, path: tuple[str, ...], value: Any, layer: str, written: Path, lines: Mapping[Path, int]) -> None:
        """`written`: where the value stands in its file, as a key may be dotted there too."""
        if group_at(self.model, path) is not None and (isinstance(value, dict) or (value is None and lines)):
            for name, each in (value or {}).items():  # a group of a file with nothing in it says nothing
                self._put((*path, *str(name).split(".")), each, layer, (*written, str(name)), lines)
            return
        *groups, last = path
        inner: Any = self.values
        for depth, name in enumerate(groups, 1):
            inner = inner.setdefault(name, self._default(path[:depth]))
            if not isinstance(inner, dict):
                raise ConfigError(f"{'.'.join(path)}: {name} is not a group of settings")
        if isinstance(value, dict) and _is_mapping(setting_at(self.model, path)):
            before = inner.get(last, self._default(path))
            self.replaced[".".join(path)] = set(before) if isinstance(before, dict) else set()
        inner[last] = copy.deepcopy(value)
        key = ".".join(path)
        self.origins = {name: origin for name, origin in self.origins.items() if not name.startswith(key + ".")}
        self.origins[key] = Origin(layer, lines.get(written))

    def _default(self, path: tuple[str, ...]) -> Any:
        """What a lower layer left at `path`, where an entry is put into it: nothing of a group, the default of a mapping."""
        setting = setting_at(self.model, path)
        if group_at(self.model, path) is None and _is_mapping(setting):
            assert setting is not None
            return copy.deepcopy(setting.get_default(call_default_factory=True, validated_data={}))
        return {}

    def value(self, key: str) -> Any:
        """What was written for a key of `origins`."""
        found: Any = self.values
        for name in key.split("."):
            found = found[name]
        return found

    def origin(self, key: str) -> Origin | None:
        """Of a key, or of what it is an entry of."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return None


def _is_mapping(setting: FieldInfo | None) -> bool:
    return setting is not None and get_origin(setting.annotation) is dict


def inner_group(setting: FieldInfo | None) -> type[Frozen] | None:
    """The model of a setting that is a group."""
    kind = setting.annotation if setting is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, Frozen) else None


def setting_at(model: type[Frozen], path: tuple[str, ...]) -> FieldInfo | None:
    *groups, last = path
    inner = group_at(model, tuple(groups))
    return inner.model_fields.get(last) if inner else None


def group_at(model: type[Frozen], path: tuple[str, ...]) -> type[Frozen] | None:
    """The model of the group at `path`; None where there is a setting, or nothing."""
    found: type[Frozen] | None = model
    for name in path:
        found = inner_group(found.model_fields.get(name)) if found else None
    return found
