"""What the helper says while it works, kept apart from what it does.

Leaf module. `deployment.py` and its neighbours speak to a `Reporter`; `console.py` shows it on a
terminal, and a script of one's own may leave it silent.
"""

from dataclasses import dataclass, field


@dataclass
class Reporter:
    """Keeps what was said and shows nothing; override the methods to show it."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Something was done, or deliberately not done."""
        self.notes.append(line)

    def warn(self, line: str) -> None:
        """Something that the person should know before it hurts."""
        self.warnings.append(line)

    def progress(self, line: str) -> None:
        """What is being waited for at the moment; replaces the last such line."""
