"""Faithfulness protocols as data. Scores are stored with the name of their protocol, which says what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from study.metrics import protocol_identity


@dataclass(frozen=True)
class Protocol:
    """How a map becomes masked images and these become five numbers.

    ``class_choice``: the class of interest. ``blur_kernel`` (pixels, odd) and ``blur_sigma`` (pixels): the blur from
    which insertion starts; deletion ends at zero in normalised space, the mean colour. ``step_rows``: pixels revealed
    or removed per step, in image rows (a fraction is part of a row); all channels of a pixel at once. ``hidden``: what
    a mask or a deletion leaves: a colour (black under a mask, as the authors' code has it, and the mean colour where
    pixels or cells are deleted), or the blurred image.

    The same in every protocol: the map is min-max normalised once, at its own low resolution, and upsampled bilinearly
    with half-pixel centres. The blur convolves the normalised image, padded with zeros, with a unit impulse of
    ``blur_kernel``² pixels that a Gaussian of ``blur_sigma`` has smoothed between reflecting borders
    (:func:`study.faithfulness.masking.blur_line`): with sigma as wide as the kernel it is nearly a box. The area under
    a curve of n probabilities is (sum - first/2 - last/2)/(n - 1), the trapezoid rule.

    Controls are part of every protocol (:mod:`study.faithfulness.controls`): maps of the calibrated network on the grid
    of :mod:`study.faithfulness.grid` are compared with their own shifts and with other images' maps.

    Pixels of equal salience go in reading order. That is this project's definition: the published evaluations, RISE's
    among them, flip an unstable argsort, which leaves ties undefined and in fact differs between versions of numpy and
    processors. On ReLU maps that are half zeros, reading order reveals more of the pixels that they reveal than the
    reverse order does (91 to 93 % against 86 to 88 %; numpy 1.26 and 2.4, 8×8 maps at 32×32 pixels).
    """

    name: str
    class_choice: Literal["label", "predicted"]
    blur_kernel: int
    blur_sigma: float
    step_rows: float
    hidden: Literal["colour", "blurred"] = "colour"

    @property
    def identity(self) -> str:
        """E.g. ``paper/2``; two scores may be compared only where it is the same."""
        return protocol_identity(self.name)

    def step_pixels(self, width: int) -> int:
        """Pixels per step for images of this width, at least one."""
        return max(1, round(self.step_rows * width))


PROTOCOLS: dict[str, Protocol] = {
    # Reconstructed from the authors' later public evaluation code; not the paper's confirmed settings.
    "paper": Protocol("paper", class_choice="label", blur_kernel=5, blur_sigma=5.0, step_rows=8),
    # RISE's own code (Petsiuk et al. 2018): the predicted class, a wider blur, finer steps.
    "rise": Protocol("rise", class_choice="predicted", blur_kernel=11, blur_sigma=5.0, step_rows=1),
    # The paper's protocol with curves of 129 points at 32×32 instead of 5: the areas without its coarse steps.
    "dense": Protocol("dense", class_choice="label", blur_kernel=5, blur_sigma=5.0, step_rows=0.25),
    # The paper's protocol with the blurred image in the place of a colour: does a score depend on what is put there?
    "blur": Protocol("blur", class_choice="label", blur_kernel=5, blur_sigma=5.0, step_rows=8, hidden="blurred"),
}
