"""griffe extension: add the builders' arguments to the API pages, and leave out empty headings.

A function makes the builders, so their arguments are not in the source.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re

import griffe

_NAME = re.compile(r"`(keras_vgg(?:\.\w+)+)`")


class Builders(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        if pkg.path != "keras_vgg":
            return
        self._builders(pkg["models"])
        self._tidy(pkg)

    def _builders(self, models: griffe.Module) -> None:
        """Document each builder as `vgg` without its first parameter, as `__signature__` states."""
        vgg = models["vgg"]
        os.environ.setdefault("KERAS_BACKEND", "numpy")  # the backend that imports fastest
        module = importlib.import_module(models.path)
        for name, member in list(models.members.items()):
            if member.is_alias or not (
                member.is_attribute and str(member.value).startswith("_builder(")
            ):
                continue
            builder = getattr(module, name)
            parameters = [
                griffe.Parameter(p.name, annotation=p.annotation, kind=p.kind, default=p.default)
                for p in list(vgg.parameters)[1:]
            ]
            for parameter in parameters:
                if parameter.name == "name":
                    parameter.default = repr(inspect.signature(builder).parameters["name"].default)
            function = griffe.Function(
                name,
                parameters=griffe.Parameters(*parameters),
                returns=vgg.returns,
                lineno=member.lineno,
                endlineno=member.endlineno,
                docstring=griffe.Docstring(
                    inspect.getdoc(builder), parent=None, lineno=member.lineno
                ),
                parent=models,
            )
            function.docstring.parent = function
            models.set_member(name, function)

    def _tidy(self, obj: griffe.Object) -> None:
        """Link `keras_vgg.vgg` in a docstring to its page, if there is one; remove empty headings.

        Special methods have no text, and a class explains its fields under Attributes or not at
        all. They would be headings without text; the signature shows the fields.
        """
        if obj.docstring is not None:
            obj.docstring.value = _NAME.sub(
                r'<autoref identifier="\1" optional><code>\1</code></autoref>', obj.docstring.value
            )
        for name, member in list(obj.members.items()):
            if member.is_alias:
                continue
            is_field = member.is_attribute and "property" not in member.labels
            is_special = (
                name.startswith("__") and name != "__init__"
            )  # __init__ shows the signature
            if obj.is_class and not member.docstring and (is_field or is_special):
                obj.del_member(name)
            else:
                self._tidy(member)
