"""The page of reference: a Sphinx extension that lets autodoc read the docstrings of the library.

Besides their text (`docstrings`), it changes what autodoc would make of registries, which get a list of their keys; of
classes with fields, whose signatures it shortens; and it links each entry to its source in the repository.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import typing
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.preserve_defaults import DefaultValue
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

from docstrings import convert, inline, parameters_of

PACKAGES = ("wellcond.", "study.")
# where a name may be meant
FACES = ("wellcond", "wellcond.methods", "wellcond.compression", "wellcond.adaptation", "study")
FOLDER = "lib"  # of the packages, in the repository


def definition(name: str, value: Any) -> tuple[str, int, int]:
    """Where the packages define a function, a class or an annotated variable: module, first and last line.

    Raises LookupError if it does not.
    """
    if inspect.isroutine(value) or inspect.isclass(value):
        value = inspect.unwrap(value)
        lines, first = inspect.getsourcelines(value)
        if value.__module__.startswith(PACKAGES):
            return value.__module__, first, first + len(lines) - 1
    for module in [module for module in sys.modules if module.startswith(PACKAGES)]:
        if vars(sys.modules[module]).get(name) is value:
            for node in ast.parse(ModuleAnalyzer.for_module(module).code).body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                    return module, node.lineno, node.end_lineno or node.lineno
    raise LookupError(f"neither package defines {name}")


def keys(registry: Mapping[str, object]) -> list[str]:
    """The keys of a registry, with the summaries that its entries may have, as reStructuredText."""
    summaries = {key: getattr(entry, "summary", "") for key, entry in registry.items()}
    if all(summaries.values()):
        return [line for key, summary in summaries.items() for line in (f"* ``{key}``: {inline(summary)}", "")]
    return [f"Keys: {', '.join(f'``{key}``' for key in summaries)}.", ""]


def process_docstring(app: Sphinx, what: str, name: str, value: Any, options: object, lines: list[str]) -> None:
    """What autodoc calls for each docstring."""
    if isinstance(value, Mapping):
        attribute = name.rpartition(".")[2]
        module, _, _ = definition(attribute, value)
        text = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", attribute), [])
        lines[:] = [*convert("\n".join(text)), *keys(value)]
    else:
        lines[:] = convert("\n".join(lines), parameters_of(value))


def process_signature(
    app: Sphinx, what: str, name: str, value: Any, options: object, signature: str, result: str
) -> tuple[str, str] | None:
    """What autodoc calls for each signature; None: as it is.

    Classes with fields get types without validators, and defaults that are classes or functions by name.
    """
    if what != "class" or not (dataclasses.is_dataclass(value) or hasattr(value, "model_fields")):
        return None
    hints, parameters = typing.get_type_hints(value), []
    for field in inspect.signature(value).parameters.values():
        field = field.replace(annotation=hints[field.name])
        if field.default is not field.empty:
            field = field.replace(default=DefaultValue(getattr(field.default, "__name__", repr(field.default))))
        parameters.append(field)
    return stringify_signature(inspect.Signature(parameters), unqualified_typehints=True), ""


def skip_member(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: object) -> bool | None:
    """Whether autodoc leaves a member out; None: as it would by itself.

    Fields are in the signature of their class, registries have entries of their own, and a method without a docstring
    that overrides one of a base class is explained there.
    """
    if isinstance(member, property):
        return None
    if not (inspect.isroutine(member) or inspect.isclass(member)) or member.__name__ != name:
        return True
    owner = vars(sys.modules[member.__module__]).get(member.__qualname__.partition(".")[0])
    bases = owner.__mro__[1:] if inspect.isclass(owner) else ()
    return True if not member.__doc__ and any(name in vars(base) for base in bases) else None


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Any) -> Any:
    """What Sphinx calls for a name that it does not find: in a module of a package, it may be that of the package."""
    if node.get("refdomain") != "py":
        return None
    domain, target = env.get_domain("py"), (node["reftype"], node["reftarget"], node, content)
    for node["py:module"] in FACES:
        if (found := domain.resolve_xref(env, node["refdoc"], app.builder, *target)) is not None:
            return found
    return None


def link(repository: str, domain: str, info: Mapping[str, str]) -> str:
    """Where the source of an entry is in the repository, for sphinx.ext.linkcode."""
    value: Any = sys.modules[info["module"]]
    for part in info["fullname"].split("."):
        value = inspect.getattr_static(value, part)
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)  # of a property, of a class method
    module, first, last = definition(info["fullname"], value)
    return f"{repository}/{Path(FOLDER, *module.split('.')).as_posix()}.py#L{first}-L{last}"


def configure(app: Sphinx, config: Config) -> None:
    """Point the links at the repository that _config.yml tells Jupyter Book of."""
    theme = config.html_theme_options
    config["linkcode_resolve"] = partial(link, f"{theme['repository_url']}/blob/{theme['repository_branch']}")


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.linkcode")
    app.connect("config-inited", configure)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
