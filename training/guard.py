"""What a bad step is: a loss or gradient that is not finite, or a loss far above the recent ones.

The window of recent losses lives on the device, so that judging a step reads nothing back.
"""

import torch
from torch import Tensor

WINDOW = 64
"""Losses that a spike is measured against; judged from the time the window is half full."""


class Guard:
    """Holds the last good losses, and says above which loss a step is a spike."""

    def __init__(self, sigmas: float, device: torch.device) -> None:
        self._sigmas = sigmas
        self._window = torch.zeros(WINDOW, device=device)
        self._count = torch.zeros((), device=device)

    def limit(self) -> Tensor:
        """The largest loss that counts; infinite while there is too little to compare with."""
        infinite = torch.full_like(self._count, torch.inf)
        if not self._sigmas:
            return infinite
        filled = (torch.arange(WINDOW, device=self._count.device) < self._count).to(self._window.dtype)
        total = filled.sum().clamp(min=1)
        mean = (self._window * filled).sum() / total
        spread = ((self._window - mean).square() * filled).sum().div(total).sqrt()
        return torch.where(self._count >= WINDOW // 2, mean + self._sigmas * spread, infinite)

    def push(self, loss: Tensor, is_good: Tensor) -> None:
        """Take a good loss into the window; a bad one leaves it as it is."""
        shifted = torch.cat((loss.reshape(1).to(self._window), self._window[:-1]))
        self._window = torch.where(is_good, shifted, self._window)
        self._count = torch.where(is_good, (self._count + 1).clamp(max=WINDOW), self._count)

    def state(self) -> list[float]:
        """Newest first."""
        return [float(value) for value in self._window[: int(self._count)]]

    def load(self, losses: list[float]) -> None:
        self._window.zero_()
        self._window[: len(losses)] = torch.tensor(losses, dtype=self._window.dtype)
        self._count.fill_(len(losses))
