"""Where a network looks: class activation maps and pixel attributions, batched, on the device, by one call."""

from study.saliency.maps import REGISTRY, SCALE_DEPENDENT, SaliencyMaps, distinct_methods, saliency_maps, same_maps
from study.saliency.method import PixelOptions

__all__ = [
    "REGISTRY",
    "SCALE_DEPENDENT",
    "PixelOptions",
    "SaliencyMaps",
    "distinct_methods",
    "saliency_maps",
    "same_maps",
]
