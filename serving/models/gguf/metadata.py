"""A GGUF file's metadata by key: typed, with the architecture's prefix, and its faults named.

Used by `config.py` and `tokenizer.py` in the child that prepares a file. No torch.
"""

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from serving.errors import StartupError
from serving.models.gguf.fault import PHASE, refuse
from serving.models.gguf.file import Header

T = TypeVar("T", int, float, str, bool)


class Metadata:
    """What the first of a model's files says, and the tensors of all."""

    def __init__(self, headers: Sequence[Header], architecture: str) -> None:
        """Of files that belong together."""
        self.architecture = architecture
        self._headers, self._header = headers, headers[0]
        self.tensors = {name: one for header in headers for name, one in header.tensors.items()}

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, an `{arch}.` in it filled in; None if it is not there.

        A list with one value for each layer counts as that value, if all layers have the same.
        Raises `StartupError` for a value of another kind.
        """
        name = key.format(arch=self.architecture)
        value = self._header.metadata.get(name)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if value is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            shown = f"{value:.80}" if isinstance(value, str) else str(value)[:80]
            refuse(self._header.path, f"{name} must be one {kind.__name__}. Given: {shown}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """The same for a key that must be there."""
        value = self.get(key, kind)
        if value is None:
            refuse(self._header.path, f"its metadata lacks {key.format(arch=self.architecture)}")
        return value

    def array(self, key: str) -> list[Any]:
        """A list; empty if it is not there."""
        value = self._header.metadata.get(key.format(arch=self.architecture))
        return value if isinstance(value, list) else []

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name, or one that ends so in some layer."""
        return name in self.tensors or any(one.endswith(f".{name}") for one in self.tensors)

    def floats(self, name: str) -> list[float]:
        """The numbers of a small tensor that is there, in whichever file it lies."""
        return next(header for header in self._headers if name in header.tensors).floats(name)

    def unsupported(
        self, cause: str, remedy: str = "use the safetensors checkpoint of this model"
    ) -> NoReturn:
        """Refuse what cannot be served."""
        raise StartupError(PHASE, f"{self._header.path}: {cause}", remedy)
