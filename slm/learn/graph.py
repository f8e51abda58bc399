"""The graph of a computation as a picture: a box per value of phase 1, from the inputs at the left to the result."""

from pathlib import Path


def draw(result, path: Path, names: dict | None = None) -> None:
    """Writes a PNG of the graph of `result`, a Value with data, grad, parents and operation; for some fifty values.

    `names` are those of inputs: {value: name}.
    """
    from matplotlib.figure import Figure

    columns = levels(result)
    height = max(map(len, columns))
    figure = Figure(figsize=(2.1 * len(columns), 0.9 * height + 0.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    place = {
        value: (column, (len(values) - 1) / 2 - row)
        for column, values in enumerate(columns)
        for row, value in enumerate(values)
    }
    for value, end in place.items():
        for parent, _ in value.parents:
            axes.annotate("", end, place[parent], arrowprops={"arrowstyle": "->", "color": "0.6", "shrinkB": 30})
    for value, (x, y) in place.items():
        text = f"{value.operation or (names or {}).get(value, 'input')}\n{value.data:.4g}\ngradient {value.grad:.4g}"
        color = "#dbe9f6" if value.parents else "#fdebc8"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox={"boxstyle": "round", "facecolor": color})
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-height / 2, height / 2)
    figure.savefig(path, dpi=120)


def levels(result) -> list[list]:
    """The values of the graph in columns: each one column right of its last parent."""
    depth = {}

    def column_of(value) -> int:
        if value not in depth:
            depth[value] = 1 + max((column_of(parent) for parent, _ in reversed(value.parents)), default=-1)
        return depth[value]

    columns = [[] for _ in range(column_of(result) + 1)]
    for value, column in depth.items():
        columns[column].append(value)
    return columns
