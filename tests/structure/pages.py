"""The pages that people read, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [
    README,
    CONTRIBUTING,
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("projects/*/README.md")),
]


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        env: variables set before it, by `export` in its block or on its line.
        words: the rest.
    """

    env: tuple[tuple[str, str], ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.env), *self.words])

    @property
    def program(self) -> str:
        """Of `focal-det train ...`, "train"; empty for others."""
        return self.words[1] if self.words[0] == "focal-det" else ""

    def get_value(self, name: str) -> str:
        """The word after a flag or a config key; empty if the command has no such flag."""
        if name not in self.words:
            return ""
        return self.words[self.words.index(name) + 1]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read_blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def read_commands(page: Path) -> list[list[Command]]:
    """The commands of each shell block, in order."""
    return [_parse(block) for block in read_blocks(page, "sh")]


def _parse(block: str) -> list[Command]:
    exported: dict[str, str] = {}
    commands = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        is_export = words[0] == "export"
        env = {} if is_export else dict(exported)
        rest = words[1:] if is_export else words
        while rest and re.match(r"[A-Z_]+=", rest[0]):
            name, value = rest.pop(0).split("=", 1)
            env[name] = value
        if is_export:
            exported.update(env)
        else:
            commands.append(Command(tuple(env.items()), tuple(rest)))
    return commands
