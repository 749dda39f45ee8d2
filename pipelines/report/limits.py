"""How much a report shows, so that one of a million images opens as fast as one of a thousand."""

from __future__ import annotations

MAX_PICTURE_BYTES = 15_000_000
"""Characters of all pictures together, as they stand in the page. Those for which there is no room are left out."""

LARGE, MEDIUM, SMALL = 384, 256, 112
"""Pixels of a picture's longer side: with overlays, in galleries, in contact sheets and on the map."""

OVERLAYS_WORST, OVERLAYS_EVEN, OVERLAYS_EMPTY = 36, 12, 12
"""Images shown with their labels: the worst, some drawn evenly, some without labels."""

OVERLAY_PARTS = 80
"""Boxes, and words, drawn on one image."""

DUPLICATE_GROUPS, DUPLICATE_MEMBERS = 30, 6

GALLERIES, GALLERY_IMAGES = 12, 12
"""Galleries of one kind of issue each, and images in one; likewise for reasons of dropping."""

FAILURES = 100
"""Failed images that are listed by name; the rest are counted."""

CLUSTERS, CLUSTER_IMAGES = 24, 12

MAP_POINTS = 800
"""Embeddings on the map, drawn evenly."""

CLASSES = 200
"""Classes that charts tell apart, the most frequent; the rest are counted together."""

SCORES = 24
"""Columns of one figure an image that get a histogram."""

TEXT = 400
"""Characters of a text that came with the images or out of a model."""
