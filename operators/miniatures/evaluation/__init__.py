"""How right the miniatures are, on scenes, words and pairs that no training saw."""

SEED = 2
"""The world that scores come from; training sees `operators.miniatures.training.scenes.SEED`."""
