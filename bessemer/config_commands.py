"""The commands `config`, which prints the whole effective configuration, and `init`, which writes a file of settings to start from."""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from bessemer.config import DEFAULT_PRESET, Asked, Config, ask, parse_set
from bessemer.layers import inner_group
from contract.config import Frozen
from contract.errors import InputError
from store.config import usable_uri

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
Configured = Callable[[argparse.ArgumentParser], argparse.ArgumentParser]
COLUMN, WIDTH = 60, 110


def add_config_commands(command: Command, configured: Configured) -> None:
    show = configured(command("config", _config, "Print the whole configuration of a run, and where each value comes from."))
    show.add_argument("--json", action="store_true", help="the same as JSON")
    init = command("init", _init, "Write a file of settings to start from, for --config.")
    init.add_argument("file", metavar="FILE", help="such as my.yaml; it must not be there yet")
    init.add_argument("--from", dest="preset", default=DEFAULT_PRESET, metavar="PRESET", help=f"its base (default: {DEFAULT_PRESET})")
    init.add_argument("--all", action="store_true", help="with every setting that there is: those with their defaults as comments")


def _config(arguments: argparse.Namespace) -> int:
    asked = ask(arguments.preset, arguments.config, dict(parse_set(text) for text in arguments.set))
    if arguments.json:
        settings = asked.config.model_dump(mode="json")
        settings["storage"]["root"] = _root(asked)[0]
        print(json.dumps({"settings": settings, "from": dict(_origins(asked))}, indent=1, ensure_ascii=False))
    else:
        print(f"# All settings, by {asked.title}. This can be used as a file of your own.")
        print("\n".join(_shown(asked, asked.config, "", "")))
    return 0


def _root(asked: Asked) -> tuple[str, str]:
    """Where artifacts go, and what says so. Raises ValueError for an address with credentials, which is not printed."""
    root, what = asked.config.root()
    try:
        return usable_uri(root), what or _origin(asked, "storage.root")
    except ValueError as error:
        raise InputError(f"storage.root ({what}): {error}") from error


def _origin(asked: Asked, key: str) -> str:
    origin = asked.layers.origin(key)
    return "--set" if origin and origin.layer == "override" else str(origin or "default")


def _origins(asked: Asked, model: type[Frozen] = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Where each setting comes from, and each entry of a mapping that was set by its own key."""
    for name, setting in model.model_fields.items():
        key = prefix + name
        if inner := inner_group(setting):
            yield from _origins(asked, inner, f"{key}.")
            continue
        yield key, _root(asked)[1] if key == "storage.root" else _origin(asked, key)
        yield from ((entry, _origin(asked, entry)) for entry in asked.layers.origins if entry.startswith(f"{key}."))


def _shown(asked: Asked, config: Frozen, prefix: str, indent: str) -> Iterator[str]:
    for name, setting in type(config).model_fields.items():
        key, value = prefix + name, getattr(config, name)
        if inner_group(setting):
            yield f"{indent}{name}:"
            yield from _shown(asked, value, f"{key}.", indent + "  ")
            continue
        entries = [entry.removeprefix(f"{key}.") for entry in asked.layers.origins if entry.startswith(f"{key}.")]
        origin = _origin(asked, key)
        if key == "storage.root":
            value, origin = _root(asked)
        elif entries:
            origin += "; " + ", ".join(f"{entry}: {_origin(asked, f'{key}.{entry}')}" for entry in entries)
        yield from _written(name, _plain(value), indent, origin)


def _plain(value: Any) -> Any:
    """As YAML has it; of the items of a list, what is not their default."""
    if isinstance(value, Frozen):
        return value.model_dump(mode="json", exclude_defaults=True)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _written(name: str, value: Any, indent: str, note: str = "") -> Iterator[str]:
    """`name: value  # note`; a list of mappings has a line for each."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        yield f"{f'{indent}{name}:':<{COLUMN}}  # {note}" if note else f"{indent}{name}:"
        yield from (f"{indent}  - {_flow(item)}" for item in value)
        return
    line = f"{indent}{name}: {_flow(value)}"
    yield f"{line:<{COLUMN}}  # {note}" if note else line


def _flow(value: Any) -> str:
    """The value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


HEAD = """\
# Settings of a run, over the preset {preset}. What the preset sets is written out below; change what you like, and leave out the rest.
#
#     bessemer plan --config {file}       # which stages would run
#     bessemer run pretrain --config {file}
#     prefect deployment run pretrain/full -p config=/whole/path/{file}
#
# A group, such as train, is merged with the preset's key by key; the value of a setting is replaced, be it a list or a mapping.
# `bessemer config --config {file}` prints the whole configuration, and where each value comes from. {more}
base: {preset}
"""


def _init(arguments: argparse.Namespace) -> int:
    asked = ask(arguments.preset)
    if "://" in arguments.file:
        raise InputError(f"{arguments.file}: give a path on this machine; copy the file to S3 when it is as you want it")
    path = Path(arguments.file)
    more = (
        "A line that begins\n# with # and no space is a setting with its default: take the # away to change it."
        if arguments.all
        else f"Every setting\n# that there is: bessemer init ANOTHER-FILE --from {arguments.preset} --all"
    )
    text = HEAD.format(preset=arguments.preset, file=path.name, more=more) + "\n".join(_blocks(asked, arguments.all)) + "\n"
    if path.is_symlink() or path.exists():
        raise InputError(f"{path} is there already, and is left as it is; name another file")
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} is there already, and is left as it is; name another file") from None
    own = "sources and storage.root are yours to set" if "YOUR-BUCKET" in text else "storage.root is where its runs go"
    print(f"{path} stands on the preset {arguments.preset}; {own}. Then: bessemer plan --config {path}")
    return 0


def _blocks(asked: Asked, whole: bool) -> Iterator[str]:
    """Every group with a line of what it is for."""
    for name, setting in Config.model_fields.items():
        lines = list(_commented(asked, name, setting, name, "", whole))
        if lines:
            yield ""
            yield from lines


def _commented(asked: Asked, name: str, setting: FieldInfo, key: str, indent: str, whole: bool) -> Iterator[str]:
    """A setting, or a group with all in it, each under what its docstring says; nothing where nothing of it is set or asked for."""
    kind = inner_group(setting)
    if kind is None:
        is_set = asked.layers.origin(key) is not None
        if not (is_set or whole or key == "storage.root"):
            return
        yield from _prose(setting.description, indent, whole)
        value = _raw(asked, key) if is_set else _plain(setting.get_default(call_default_factory=True, validated_data={}))
        for line in _written(name, value, indent):
            yield line if is_set else re.sub("^ *", r"\g<0>#", line)
        return
    inner = [_commented(asked, each, field, f"{key}.{each}", indent + "  ", whole) for each, field in kind.model_fields.items()]
    if lines := [line for found in inner for line in found]:
        yield from _prose(kind.__doc__ if kind.__doc__ != Frozen.__doc__ else None, indent, whole)
        active = any(not line.lstrip().startswith("#") for line in lines)
        yield f"{indent}{name}:" if active or not indent or whole else f"{indent}#{name}:"
        yield from lines


def _raw(asked: Asked, key: str) -> Any:
    """The value as the preset writes it."""
    value: Any = asked.layers.values
    for name in key.split("."):
        value = value[name]
    return value


def _prose(text: str | None, indent: str, whole: bool) -> Iterator[str]:
    """A docstring as a comment; its first sentence alone in the short form."""
    words = " ".join((text or "").split())
    if not whole:
        words = re.split(r"(?<=[a-z0-9)`]\.) (?=[A-Z])", words, maxsplit=1)[0]
    line = ""
    for word in words.split():
        if line and len(indent) + len(line) + len(word) > WIDTH:
            yield f"{indent}# {line}"
            line = ""
        line = f"{line} {word}".strip()
    if line:
        yield f"{indent}# {line}"
