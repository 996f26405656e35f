"""Faithfulness protocols as data. A score means nothing without its protocol, so its name travels with the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """How a map becomes masked images and these become five numbers.

    ``class_choice``: the class of interest. ``step_rows``: pixels revealed or removed per step, in image rows.
    ``area``: the trapezoidal area over the steps. Everywhere: the map is min-max normalised at its own low resolution
    and upsampled bilinearly (half-pixel centres), not renormalised; AD, AI and AG multiply pixels in [0, 1] by it
    (black background); insertion starts from the Gaussian blur, deletion ends at zero in normalised space.
    """

    name: str
    version: int
    class_choice: Literal["label", "predicted"]
    blur_kernel: int
    blur_sigma: float
    step_rows: int

    @property
    def identity(self) -> str:
        """E.g. ``paper/1``; two scores may be compared only where it is the same."""
        return f"{self.name}/{self.version}"


PROTOCOLS: dict[str, Protocol] = {
    # Reconstructed from the authors' later public evaluation code; not the paper's confirmed settings.
    "paper": Protocol("paper", 1, class_choice="label", blur_kernel=5, blur_sigma=5.0, step_rows=8),
    # RISE (Petsiuk et al. 2018): the predicted class, a wider blur, finer steps.
    "rise": Protocol("rise", 1, class_choice="predicted", blur_kernel=11, blur_sigma=5.0, step_rows=1),
}
