"""Checks of phase 1: each operation, the chain rule, 200 random expressions against torch, a network."""

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from slm.learn.exercises import place_beside
from slm.learn.graph import draw
from slm.learn.verdict import close, require

EXPRESSIONS = 200
TOLERANCE = 1e-12
ACCURACY = 0.95


def checks(own) -> Iterator[str]:
    operations(own)
    yield "each operation has the right value and derivative"
    repeated_use(own)
    order_of_backward(own)
    yield "a value that is used several times has the sum of its gradients"
    largest = max(expression(own, Random(seed)) for seed in range(EXPRESSIONS))
    yield f"{EXPRESSIONS} random expressions: all gradients equal torch's in float64, to {largest:.1e} (at most 1e-12)"
    network(own)
    yield "neuron and MLP equal torch's linear layers"
    share = classification(own)
    yield f"the MLP [2, 8, 1] classifies {share:.1%} of 200 new points correctly (at least 95 %)"
    yield f"the graph of a neuron is drawn: {picture(own)}"


def operations(own):
    """Each at a = 3, b = -2; for one argument at a = 0.5."""
    for name, formula, a, b in (
        ("a + b", lambda a, b: a + b, 3.0, -2.0),
        ("a * b", lambda a, b: a * b, 3.0, -2.0),
        ("a ** 3", lambda a, b: a**3, 3.0, -2.0),
        ("a.tanh()", lambda a, b: a.tanh(), 0.5, 0.0),
        ("a.relu()", lambda a, b: a.relu(), 0.5, 0.0),
        ("a.relu()", lambda a, b: a.relu(), -0.5, 0.0),
    ):
        first, second = own.Value(a), own.Value(b)
        result = formula(first, second)
        require(isinstance(result, own.Value), f"{name} must return a Value, and returns {type(result).__name__}.")
        x, y = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (a, b))
        expected = formula(x, y)
        where = f"at a={a}, b={b}"
        close(f"The data of {name} {where}", result.data, expected, tolerance=TOLERANCE)
        by_a, by_b = torch.autograd.grad(expected, (x, y), allow_unused=True)
        for parent, local in result.parents:
            letter, derivative = ("a", by_a) if parent is first else ("b", by_b)
            close(f"The derivative of {name} by {letter} {where}", local, derivative, tolerance=TOLERANCE)


def repeated_use(own):
    a = own.Value(3)
    (a * a + a).backward()
    hint = (
        "The gradient was overwritten: one use of the value replaced the other. Add to it: grad += ..., not grad = ..."
    )
    close("The gradient of a in a * a + a at a=3", a.grad, 7.0, {hint: (1.0, 3.0, 6.0)})
    a = own.Value(3)
    (a * 2).backward()
    (a * 5).backward()
    close("The gradient of a after backward of a * 2 and of a * 5", a.grad, 7.0, {"A leaf keeps its gradient.": 5.0})


def order_of_backward(own):
    """A value is used early and late: its gradient must be complete before its parents receive theirs."""
    a = own.Value(2)
    b = a * 3
    c = b * b
    result = c * b + b
    result.backward()
    hint = (
        "A value passed its gradient on before all its own uses had added to it: go from the last created to the first."
    )
    lines = (f"The gradient of a in b ** 3 + b with b = 3 a at a=2 must be 327, and is {a.grad}.", hint)
    require(abs(a.grad - 327) < 1e-9, *lines)
    require(result.grad == 1, f"The gradient of the result itself must be 1, and is {result.grad}.")
    result.backward()
    hint = "A second `backward` must begin with 0 at every computed value, and adds to the leaves as torch does."
    require(abs(a.grad - 654) < 1e-9, f"After a second backward it must be 654, and is {a.grad}.", hint)


def expression(own, random: Random) -> float:
    """Compares a random expression of three numbers in both systems. Returns the largest difference of a gradient."""
    numbers = [random.uniform(-2, 2) for _ in range(3)]
    values, tensors = [own.Value(number) for number in numbers], []
    for number in numbers:
        tensors.append(torch.tensor(number, dtype=torch.float64, requires_grad=True))
    leaves, steps = list(tensors), []
    for _ in range(random.randint(3, 12)):
        name, left, right = random.choice(list(FORMULAS)), random.randrange(len(values)), random.randrange(len(values))
        values.append(FORMULAS[name](values[left], values[right]))
        tensors.append(FORMULAS[name](tensors[left], tensors[right]))
        steps.append(f"v{len(values) - 1} = {name.format(a=f'v{left}', b=f'v{right}')}")
    result, expected = sum(values) * 0.1, sum(tensors) * 0.1
    result.backward()
    expected.backward()
    what = f"with v0, v1, v2 = {', '.join(f'{number:.3f}' for number in numbers)} and {'; '.join(steps)}: the gradient"
    pairs = enumerate(zip(values, leaves))
    return max(close(f"{what} of v{i}", value.grad, leaf.grad, tolerance=TOLERANCE) for i, (value, leaf) in pairs)


FORMULAS = {  # of moderate values, so that a chain of twelve does not overflow
    "{a} + {b}": lambda a, b: a + b,
    "{a} - {b}": lambda a, b: a - b,
    "({a} * {b}).tanh()": lambda a, b: (a * b).tanh(),
    "{a} / ({b} ** 2 + 1)": lambda a, b: a / (b**2 + 1),
    "{a}.tanh() ** 3": lambda a, b: a.tanh() ** 3,
    "{a}.relu() * 0.5 - {b}": lambda a, b: a.relu() * 0.5 - b,
}


def network(own):
    model, x = own.MLP([3, 4, 2], Random(0)), [0.5, -1.0, 2.0]
    y = torch.tensor(x, dtype=torch.float64)
    neuron = model.layers[0][0]
    neuron.bias.data = 0.25
    expected = (torch.tensor([weight.data for weight in neuron.weights], dtype=torch.float64) @ y + 0.25).tanh()
    close("The output of a neuron for x = [0.5, -1.0, 2.0]", neuron(x).data, expected, tolerance=1e-9)
    for layer in model.layers:
        weights = torch.tensor([[weight.data for weight in neuron.weights] for neuron in layer], dtype=torch.float64)
        y = weights @ y + torch.tensor([neuron.bias.data for neuron in layer], dtype=torch.float64)
        y = y if layer is model.layers[-1] else y.tanh()
    for index, (output, reference) in enumerate(zip(model(x), y, strict=True)):
        close(f"Output {index} of MLP([3, 4, 2])", output.data, reference, tolerance=1e-9)


def classification(own) -> float:
    model = own.MLP([2, 8, 1], Random(0))
    losses = own.train(model, *moons(60, seed=1))
    require(bool(losses), "train must return the list of losses, one per step.")
    hint = "Are the gradients set to 0 before each backward, and does each parameter move against its gradient?"
    require(losses[-1] < losses[0], f"The loss must fall, and goes from {losses[0]:.3f} to {losses[-1]:.3f}.", hint)
    share = accuracy(model, *moons(200, seed=2))
    line = f"After {len(losses)} steps {share:.1%} of 200 new points are right, and 95 % are needed."
    require(share >= ACCURACY, line, f"The loss went from {losses[0]:.3f} to {losses[-1]:.3f}. {hint}")
    return share


def moons(points: int, seed: int) -> tuple[list[list[float]], list[int]]:
    """Points [x, y] with noise on two interleaved half circles, and a label of each: 1 on one, -1 on the other."""
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


def picture(own) -> Path:
    """The graph of a neuron with two inputs."""
    neuron, x = own.Neuron(2, Random(1)), [own.Value(0.5), own.Value(-0.2)]
    result = neuron(x)
    result.backward()
    names = dict(zip([*x, *neuron.weights, neuron.bias], ["x1", "x2", "w1", "w2", "b"]))
    path = place_beside(own) / "phase1_graph.png"
    draw(result, path, names)
    return path
