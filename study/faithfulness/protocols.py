"""Faithfulness protocols as data. A score means nothing without its protocol, so its name travels with the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """How a map becomes masked images and these become five numbers.

    ``class_choice``: the class of interest. ``blur_kernel`` (pixels, odd) and ``blur_sigma`` (pixels): the Gaussian
    from which insertion starts; deletion ends at zero in normalised space, the mean colour. ``step_rows``: pixels
    revealed or removed per step, in image rows (a fraction is part of a row); all channels of a pixel at once, ties in
    reading order.

    What follows has one value so far; whoever adds another adds the code for it and a protocol of a new name.
    ``mask_baseline``: AD, AI and AG multiply pixels in [0, 1] by the mask. ``renormalisation``: the map is min-max
    normalised at its own low resolution, and not again. ``upsampling``: half-pixel centres. ``area``: (sum -
    first/2 - last/2)/(n - 1) over a curve of n probabilities.
    """

    name: str
    version: int
    class_choice: Literal["label", "predicted"]
    blur_kernel: int
    blur_sigma: float
    step_rows: float
    mask_baseline: Literal["black pixels"] = "black pixels"
    renormalisation: Literal["before upsampling"] = "before upsampling"
    upsampling: Literal["bilinear"] = "bilinear"
    area: Literal["trapezoid"] = "trapezoid"

    @property
    def identity(self) -> str:
        """E.g. ``paper/1``; two scores may be compared only where it is the same."""
        return f"{self.name}/{self.version}"

    def step_pixels(self, width: int) -> int:
        """Pixels per step for images of this width, at least one."""
        return max(1, round(self.step_rows * width))


PROTOCOLS: dict[str, Protocol] = {
    # Reconstructed from the authors' later public evaluation code; not the paper's confirmed settings.
    "paper": Protocol("paper", 1, class_choice="label", blur_kernel=5, blur_sigma=5.0, step_rows=8),
    # RISE (Petsiuk et al. 2018): the predicted class, a wider blur, finer steps.
    "rise": Protocol("rise", 1, class_choice="predicted", blur_kernel=11, blur_sigma=5.0, step_rows=1),
    # The paper's protocol with curves of 129 points at 32×32 instead of 5: the areas without its coarse steps.
    "dense": Protocol("dense", 1, class_choice="label", blur_kernel=5, blur_sigma=5.0, step_rows=0.25),
}
