"""The verdict on a learner's result: what was expected, what came, where they differ first, and the likely mistake."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slm.errors import printable


class Wrong(Exception):
    """A check that is not passed. The message is for the learner: one sentence per line."""


def require(holds: bool, *sentences: str) -> None:
    """Raises: Wrong: of these sentences, unless it holds."""
    if not holds:
        raise Wrong("\n".join(sentences))


def shown(value: object) -> str:
    """A value in at most 120 printable characters."""
    return printable(repr(value), 120)


def same(what: str, given: object, expected: object, mistakes: Mapping[str, object] | None = None) -> None:
    """Checks an exact result, such as a list of ids. `mistakes` as in `close`. Raises: Wrong: if it is another one."""
    require(given is not None, f"{what} returned None.", "Is there a `return` at the end?")
    if given == expected:
        return
    lines = [f"{what} must be {shown(expected)},", f"and is {shown(given)}."]
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        pairs = enumerate(zip(given, expected))
        place = next((place for place, (one, other) in pairs if one != other), min(len(given), len(expected)))
        lines.append(f"The first difference is at place {place}; the lengths are {len(given)} and {len(expected)}.")
    raise Wrong("\n".join([*lines, *named(mistakes or {}, lambda result: given == result)]))


def close(
    what: str, given: object, expected: object, mistakes: Mapping[str, object] | None = None, tolerance: float = 1e-6
) -> float:
    """Checks numbers, as a tensor or a float, and returns the largest difference.

    `mistakes`: a sentence that names a mistake -> the numbers that result from it, or a tuple of possible results.
    Raises: Wrong: if a number differs by more than `tolerance`, relative for numbers above 1.
    """
    require(given is not None, f"{what} returned None.", "Is there a `return` at the end?")
    is_number = isinstance(given, Tensor | int | float)
    require(is_number, f"{what} must be a number or a tensor, and is a {type(given).__name__}.")
    given, expected = tensor(given), tensor(expected)
    shapes = f"{tuple(expected.shape)}, and is {tuple(given.shape)}"
    require(given.shape == expected.shape, f"{what} must have the shape {shapes}.")
    difference = distance(given, expected)
    if not (difference <= tolerance).all():  # not <=: also a NaN
        place = tuple((~(difference <= tolerance)).nonzero()[0].tolist())
        where = f"At {list(place)} it" if place else "It"
        lines = [
            f"{what} differs from the reference.",
            f"{where} must be {expected[place].item():.6g}, and is {given[place].item():.6g}.",
        ]

        def explains(result: object) -> bool:
            result = tensor(result).double()
            settings = {"rtol": 0, "atol": 10 * tolerance, "equal_nan": True}
            return result.shape == given.shape and torch.allclose(given.double(), result, **settings)

        raise Wrong("\n".join([*lines, *named(mistakes or {}, explains)]))
    return difference.max().item() if difference.numel() else 0.0


def tensor(numbers: object) -> Tensor:
    """The numbers without their gradients; a float in float64."""
    return numbers.detach() if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=torch.float64)


def distance(given: Tensor, expected: Tensor) -> Tensor:
    """The differences in float64, relative for expected numbers above 1; equal infinities differ by 0."""
    given, expected = given.double(), expected.double()
    difference = (given - expected).abs() / expected.abs().clamp(min=1)
    return torch.where(given == expected, 0.0, difference)


def named(mistakes: Mapping[str, object], explains: Callable[[object], bool]) -> list[str]:
    """The sentences of those mistakes of which a result explains what came."""
    results = {text: result if isinstance(result, tuple) else (result,) for text, result in mistakes.items()}
    return [text for text, possible in results.items() if any(map(explains, possible))]
