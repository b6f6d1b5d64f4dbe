"""What a scheme makes of one decoder layer. Leaf module of this package."""

from dataclasses import dataclass, field

import torch


@dataclass
class LayerResult:
    """Names are those of modules and parameters inside the layer."""

    packed: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # by linear layer
    changed: dict[str, torch.Tensor] = field(default_factory=dict)  # float parameters, new values
    errors: dict[str, float] = field(default_factory=dict)  # |change of output|^2 / |output|^2

    def summary(self) -> str:
        """The errors in words: their mean and the largest."""
        if not self.errors:
            return "nothing to quantize"
        worst = max(self.errors, key=self.errors.__getitem__)
        mean = sum(self.errors.values()) / len(self.errors)
        return f"relative output error {mean:.2e}, largest {self.errors[worst]:.2e} ({worst})"
