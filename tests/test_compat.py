"""The public surface is the one that users know: every name of ``golden/api.json``, with its arguments and methods.

The file maps modules to names. A text is the module that a name comes from; otherwise it states what the name is:
arguments with defaults as :func:`inspect.signature` prints them, without annotations; bases; methods and properties
that the class has of its own; members of an enum.
"""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from detlib.data import DatasetCatalog
from detlib.utils.errors import MissingFileError

GOLDEN = Path(__file__).parent / "golden"
API = json.loads((GOLDEN / "api.json").read_text())
REGISTRIES = json.loads((GOLDEN / "registries.json").read_text())

# Where detlib is different on purpose.
EXCEPTIONS = {
    "detlib.data.datasets.lvis_v0_5_categories.LVIS_CATEGORIES": "read from the annotations, which must be there",
    "detlib.data.datasets.lvis_v1_categories.LVIS_CATEGORIES": "read from the annotations, which must be there",
    "detlib.data.datasets.lvis_v1_category_image_count.LVIS_CATEGORY_IMAGE_COUNT": "read from the annotations",
    "detlib.modeling.backbone.backbone.Backbone.forward": "states the input that every backbone takes",
    "detlib.modeling.backbone.fpn.FPN.__prepare_scriptable__": "TorchScript",
    "detlib.modeling.backbone.resnet.ResNet.__prepare_scriptable__": "TorchScript",
    "detlib.modeling.backbone.resnet.make_stage": "names the arguments that were *args, **kwargs",
    "detlib.utils.registry.Registry": "a subclass of fvcore's that suggests the nearest name",
}


def describe(function: Any, expected: str) -> str:
    """Arguments as text, without annotations; functions among the defaults by their name.

    Left out are optional arguments that are not expected and stand after all others, or are passed by name only: who
    calls with the known arguments does not notice them.
    """
    signature = inspect.signature(function)
    known = set(re.findall(r"\w+", expected))
    arguments = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    last = max((i for i, p in enumerate(arguments) if p.name in known and p.kind != p.KEYWORD_ONLY), default=-1)
    arguments = [
        p
        for i, p in enumerate(arguments)
        if p.name in known or p.default is p.empty or (p.kind != p.KEYWORD_ONLY and i < last)
    ]
    text = str(signature.replace(parameters=arguments, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (?:\w+\.)*(\w+) at 0x\w+>", r"<function \1>", text)


def find(path: str) -> Any:
    """The object at a dotted path, the longest part of which is a module."""
    module, _, name = path.rpartition(".")
    module = module or "builtins"
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(find(module), name)


def differences(where: str, found: Any, expected: dict | str) -> list[str]:
    if isinstance(expected, str):
        module, _, name = expected.removeprefix("from ").partition(" as ")
        source = find(f"{module}.{name or where.rpartition('.')[2]}")
        return [] if found is source else [f"{where} is not that of {module}"]
    wrong = []
    kind = {"class": inspect.isclass, "function": callable, "registry": lambda x: hasattr(x, "register")}
    if not kind.get(expected["kind"], lambda x: True)(found):
        wrong.append(f"{where} is no {expected['kind']}")
    elif "signature" in expected and (text := describe(found, expected["signature"])) != expected["signature"]:
        wrong.append(f"{where}{text} instead of {expected['signature']}")
    return wrong + _member_differences(where, found, expected)


def _member_differences(where: str, found: Any, expected: dict) -> list[str]:
    wrong = []
    cls = found if inspect.isclass(found) else type(found)
    for base in expected.get("bases", []):
        if not issubclass(cls, find(base)):
            wrong.append(f"{where} is no {base}")
    for name, signature in expected.get("methods", {}).items():
        wrong += _method_differences(f"{where}.{name}", cls, name, signature)
    for name in expected.get("properties", []):
        if not isinstance(inspect.getattr_static(cls, name, None), property):
            wrong.append(f"{where}.{name} is no property")
    for name, value in expected.get("class_attributes", {}).items():
        attribute = getattr(cls, name, None)
        if (type(attribute).__name__ != value["type"]) if isinstance(value, dict) else (attribute != value):
            wrong.append(f"{where}.{name} is {attribute!r} instead of {value!r}")
    for name, value in expected.get("members", {}).items():
        if getattr(getattr(found, name, None), "value", None) != value:
            wrong.append(f"{where}.{name} has not the value {value}")
    return wrong + _value_differences(where, found, expected)


def _method_differences(where: str, cls: type, name: str, expected: str) -> list[str]:
    method = inspect.getattr_static(cls, name, None)
    if method is None:
        return [f"{where} is missing"]
    kind = type(method).__name__ if isinstance(method, classmethod | staticmethod) else ""
    found = f"{kind} {describe(getattr(cls, name), expected)}".strip()
    return [] if found == expected else [f"{where} is {found} instead of {expected}"]


def _value_differences(where: str, found: Any, expected: dict) -> list[str]:
    wrong = []
    if "value" in expected and str(found) != str(expected["value"]):
        wrong.append(f"{where} is {found} instead of {expected['value']}")
    if "length" in expected and len(found) != expected["length"]:
        wrong.append(f"{where} has {len(found)} entries instead of {expected['length']}")
    if "name" in expected and found._name != expected["name"]:
        wrong.append(f"{where} calls itself {found._name} instead of {expected['name']}")
    if "type" in expected and expected["type"].rpartition(".")[2] not in [t.__name__ for t in type(found).__mro__]:
        wrong.append(f"{where} is of type {type(found).__name__} instead of {expected['type']}")
    return wrong


def differences_of_module(module: str) -> dict[str, str]:
    """What is different -> how."""
    wrong = []
    for name, expected in API[module].items():
        where = f"{module}.{name}"
        try:
            wrong += differences(where, find(where), expected)
        except (ImportError, AttributeError, MissingFileError) as error:
            wrong.append(f"{where} cannot be imported: {error}")
    return {re.split(r"[ (]", text)[0]: text for text in wrong}


@pytest.mark.parametrize("module", API)
def test_module_has_every_known_name_with_its_arguments_and_methods(module):
    assert [text for where, text in differences_of_module(module).items() if where not in EXCEPTIONS] == []


def test_exceptions_are_differences():
    modules = [module for module in API if any(where.startswith(f"{module}.") for where in EXCEPTIONS)]
    assert EXCEPTIONS.keys() <= {where for module in modules for where in differences_of_module(module)}


@pytest.mark.parametrize("name", sorted(REGISTRIES.keys() - {"DatasetCatalog"}))
def test_registry_knows_every_known_part(name):
    entries = [(f"{module}.{key}", entry) for module, names in API.items() for key, entry in names.items()]
    path = next(path for path, entry in entries if isinstance(entry, dict) and entry.get("name") == name)
    assert [part for part in REGISTRIES[name] if part not in find(path)] == []


def test_every_known_dataset_is_registered():
    assert sorted(set(REGISTRIES["DatasetCatalog"]) - set(DatasetCatalog.list())) == []
