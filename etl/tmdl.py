"""TMDL, the text of a Power BI semantic model: the part of it that hive/powerbi needs, read into a tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from etl.errors import WarehouseError


class PowerBiError(WarehouseError):
    """The Power BI project is damaged."""


_COMMON = frozenset({"lineageTag", "annotation", "isHidden", "changedProperty", "displayFolder"})
GRAMMAR: dict[str, frozenset[str]] = {
    "": frozenset({"database", "model", "table", "expression", "relationship", "annotation", "ref"}),
    "database": frozenset({"compatibilityLevel", "compatibilityMode"}),
    "model": frozenset(
        {"culture", "defaultPowerBIDataSourceVersion", "discourageImplicitMeasures", "sourceQueryCulture", "dataAccessOptions"}
    ),
    "dataAccessOptions": frozenset({"legacyRedirects", "returnErrorValuesAsNull"}),
    "table": _COMMON | {"dataCategory", "column", "measure", "partition"},
    "column": _COMMON | {"dataType", "isKey", "formatString", "summarizeBy", "sourceColumn", "sortByColumn", "dataCategory"},
    "measure": _COMMON | {"formatString"},
    "partition": _COMMON | {"mode", "source"},
    "expression": _COMMON,
    "relationship": _COMMON | {"fromColumn", "toColumn", "relyOnReferentialIntegrity", "isActive", "crossFilteringBehavior"},
}
"""What may stand in what."""
_LINE = re.compile(r"(?P<kind>[a-zA-Z]\w*)(?P<rest>.*)")
_NAME = r"'(?:[^']|'')*'|[\w.-]+"
_OBJECT = re.compile(rf"(?: (?P<name>(?:table )?(?:{_NAME})))?(?: (?P<equals>=)(?: (?P<value>.*))?)?")


@dataclass
class Node:
    """One object or property, with what is indented below it."""

    kind: str
    name: str = ""
    value: str = ""
    description: str = ""
    children: list[Node] = field(default_factory=list)

    def all(self, kind: str) -> list[Node]:
        """Return the children of a kind."""
        return [child for child in self.children if child.kind == kind]

    def get(self, kind: str) -> str:
        """Return a property's value; empty where it is not there."""
        return next((child.value for child in self.all(kind)), "")


def unquoted(name: str) -> str:
    """Return a name without its quotes."""
    return name[1:-1].replace("''", "'") if name.startswith("'") else name


def parse(text: str, where: str) -> Node:
    """Parse a text; the root holds what stands at its left edge.

    Raises
    ------
    PowerBiError
        Naming the line that is none.
    """
    stack, description = [Node("")], ""
    # The object whose expression goes on in the lines below it, and how deep those are.
    continued, deep = stack[0], 0
    for number, line in enumerate(text.splitlines(), 1):
        content = line.lstrip("\t")
        depth = len(line) - len(content)
        if deep and (depth >= deep or not content):
            continued.value += f"\n{line[deep:]}"
            continue
        continued.value, deep = continued.value.strip("\n"), 0
        if not content.strip():
            continue
        if content.startswith("///"):
            description = f"{description} {content[3:].strip()}".strip()
            continue
        matched = _LINE.fullmatch(content)
        found = matched and _OBJECT.fullmatch(matched["rest"])
        if matched is None or depth >= len(stack) or not (found or matched["rest"].startswith(":")):
            raise PowerBiError(f"{where}, line {number}, is no TMDL: {content[:60]!r}; correct it, or save the project in Power BI Desktop")
        parent, kind = stack[depth], matched["kind"]
        if kind not in GRAMMAR.get(parent.kind, frozenset()):
            raise PowerBiError(
                f"{where}, line {number}: {kind} cannot stand in {parent.kind or 'a file'}; correct it or extend etl/tmdl.py"
            )
        if found:
            node = Node(kind, unquoted(found["name"] or ""), found["value"] or "", description)
            if found["equals"] and not found["value"]:
                continued, deep = node, depth + 2
        else:
            node = Node(kind, value=matched["rest"][1:].strip())
        description = ""
        parent.children.append(node)
        stack[depth + 1 :] = [node]
    continued.value = continued.value.strip("\n")
    return stack[0]
