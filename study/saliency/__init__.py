"""Where a network looks: class activation maps and pixel attributions, batched, on the device, by one call."""

from study.saliency.activation import SCALE_DEPENDENT
from study.saliency.maps import SaliencyMaps, distinct_methods, evaluating, saliency_maps, same_maps
from study.saliency.pixel import PixelOptions, attributions

__all__ = [
    "SCALE_DEPENDENT",
    "PixelOptions",
    "SaliencyMaps",
    "attributions",
    "distinct_methods",
    "evaluating",
    "saliency_maps",
    "same_maps",
]
