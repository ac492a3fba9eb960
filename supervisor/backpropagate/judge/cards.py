"""What cards can do, by the names that the driver gives them. For estimates only: a card that is not here has none of time. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Power:
    """tflops: dense matrix products in 16 bits, summed in float32. watts: what the card may draw."""

    tflops: float
    watts: float


# Round figures of the makers; the range of an estimate is wider than their error. Longer names are looked for first.
_CARDS = {
    "H200": (989, 700), "H100 PCIe": (756, 350), "H100": (989, 700), "A100": (312, 400), "A40": (150, 300), "A10G": (70, 300),
    "A10": (125, 150), "L40S": (362, 350), "L40": (181, 300), "L4": (121, 72), "T4": (65, 70), "V100": (112, 300),
    "RTX 6000 Ada": (182, 300), "RTX A6000": (77, 300), "RTX A5000": (56, 230), "RTX A4000": (38, 140),
    "RTX 5090": (210, 575), "RTX 5080": (113, 360), "RTX 5070 Ti": (88, 300), "RTX 5070": (62, 250), "RTX 5060 Ti": (47, 180),
    "RTX 5060": (38, 145), "RTX 4090": (165, 450), "RTX 4080": (98, 320), "RTX 4070 Ti": (80, 285), "RTX 4070": (58, 200),
    "RTX 4060 Ti": (44, 165), "RTX 4060": (30, 115), "RTX 3090": (71, 350), "RTX 3080": (60, 320), "RTX 3070": (41, 220),
    "RTX 3060": (26, 170), "RTX 2080 Ti": (54, 250), "RTX 2080": (40, 215), "RTX 2070": (30, 175), "RTX 2060": (26, 160),
}  # fmt: skip


def power_of(name: str) -> Power | None:
    """By a card's name, such as `NVIDIA GeForce RTX 4080`; None for one that is not known. Laptops' run at about half."""
    low = name.lower()
    found = next((key for key in sorted(_CARDS, key=len, reverse=True) if key.lower() in low), None)
    if found is None:
        return None
    tflops, watts = _CARDS[found]
    share = 0.5 if "laptop" in low else 1.0
    return Power(tflops * share, watts * share)
