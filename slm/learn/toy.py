"""The toy classification of phase 1: two interleaved half circles."""

import math
from random import Random


def moons(points: int, seed: int) -> tuple[list[list[float]], list[int]]:
    """Points [x, y] with noise, and a label of each: 1 on one half circle, -1 on the other."""
    random, places, labels = Random(seed), [], []
    for index in range(points):
        label, angle = 1 if index % 2 else -1, math.pi * random.random()
        x, y = math.cos(angle), math.sin(angle)
        x, y = (x, y) if label == 1 else (1 - x, 0.5 - y)
        places.append([x + random.gauss(0, 0.1), y + random.gauss(0, 0.1)])
        labels.append(label)
    return places, labels


def accuracy(model, places: list[list[float]], labels: list[int]) -> float:
    """The share of points for which the model's first output has the sign of the label."""
    return sum((model(place)[0].data > 0) == (label > 0) for place, label in zip(places, labels)) / len(places)
