"""Where a network looks: class activation maps and pixel attributions, batched, on the device, by one call."""

from study.saliency.activation import SAME_MAP
from study.saliency.maps import SaliencyMaps, distinct_methods, evaluating, saliency_maps, same_maps
from study.saliency.pixel import PixelOptions, attributions

__all__ = [
    "SAME_MAP",
    "PixelOptions",
    "SaliencyMaps",
    "attributions",
    "distinct_methods",
    "evaluating",
    "saliency_maps",
    "same_maps",
]
