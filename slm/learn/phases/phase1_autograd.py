"""Phase 1: automatic differentiation. A number that records how it was computed, and a network made of such numbers.

Plain Python, after micrograd (Karpathy, 2020). The chain rule: if a result L depends on y, and y = f(x), then
dL/dx = dL/dy * dy/dx. If x is used several times, dL/dx is the sum over its uses.
"""

import math
from itertools import count, pairwise

numbers = count()


class Value:
    """A number `data`; `grad`, after `backward` the derivative of the result by this number; `parents`, what it was
    computed from, as pairs (value, derivative by that value); `number`, its place in the order of creation."""

    def __init__(self, data, parents=(), operation=""):
        self.data, self.grad = float(data), 0.0
        self.parents, self.operation, self.number = parents, operation, next(numbers)

    def __repr__(self):
        return f"Value(data={self.data:.4g}, grad={self.grad:.4g})"

    def __add__(self, other):
        """a + b: the derivative by a is 1, and by b. Written as an example for the other operations."""
        other = as_value(other)
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)], "+")

    def __mul__(self, other):
        """a * b. What is the derivative by a, and what by b?"""
        # your code
        other = as_value(other)
        return Value(self.data * other.data, [(self, other.data), (other, self.data)], "*")

    def __pow__(self, power):
        """a ** n for a plain number n: the derivative by a is n * a ** (n - 1)."""
        # your code
        return Value(self.data**power, [(self, power * self.data ** (power - 1))], f"**{power}")

    def tanh(self):
        """tanh(a): the derivative is 1 - tanh(a) ** 2."""
        # your code
        result = math.tanh(self.data)
        return Value(result, [(self, 1 - result**2)], "tanh")

    def relu(self):
        """max(a, 0): the derivative is 1 where a is above 0, else 0."""
        # your code
        return Value(max(self.data, 0.0), [(self, 1.0 if self.data > 0 else 0.0)], "relu")

    def backward(self):
        """Sets `grad` of every value that this one was computed from.

        1. Collect this value and all its ancestors, each once (`parents` of `parents`, with a stack or a recursion).
        2. The gradient of a computed value begins at 0, that of this value is 1: dL/dL. Values without parents keep
           what they have, so that several results can be summed.
        3. Go through them from the last created to the first, so that a gradient is complete before it is passed on,
           and add to the gradient of each parent: local gradient * own gradient.
        """
        # your code
        found, stack = {self}, [self]
        while stack:
            for parent, _ in stack.pop().parents:
                if parent not in found:
                    found.add(parent)
                    stack.append(parent)
        for value in found:
            if value.parents:
                value.grad = 0.0
        self.grad = 1.0
        for value in sorted(found, key=lambda value: value.number, reverse=True):
            for parent, local_gradient in value.parents:
                parent.grad += local_gradient * value.grad

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -as_value(other)

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        return self * as_value(other) ** -1

    __radd__, __rmul__ = __add__, __mul__


def as_value(number):
    """The number itself if it is a Value, else a Value of it."""
    return number if isinstance(number, Value) else Value(number)


class Neuron:
    """tanh(w1 x1 + w2 x2 + ... + b), or without tanh if it is linear."""

    def __init__(self, inputs, random):
        self.weights = [Value(random.gauss(0, 1)) for _ in range(inputs)]
        self.bias, self.linear = Value(0), False

    def __call__(self, x):
        """A list of `inputs` numbers to one Value."""
        # your code
        result = sum((weight * number for weight, number in zip(self.weights, x)), self.bias)
        return result if self.linear else result.tanh()


class MLP:
    """Layers of neurons: each neuron of a layer reads all outputs of the layer before. The last layer is linear.

    `sizes` are the numbers of inputs and of neurons per layer: [2, 8, 1] is 2 inputs, 8 hidden neurons, 1 output.
    """

    def __init__(self, sizes, random):
        self.layers = [[Neuron(before, random) for _ in range(size)] for before, size in pairwise(sizes)]
        for neuron in self.layers[-1]:
            neuron.linear = True

    def __call__(self, x):
        """A list of numbers to the list of the last layer's outputs."""
        # your code
        for layer in self.layers:
            x = [neuron(x) for neuron in layer]
        return x

    def parameters(self):
        """All weights and biases in one list: 33 of [2, 8, 1]."""
        neurons = [neuron for layer in self.layers for neuron in layer]
        return [value for neuron in neurons for value in [*neuron.weights, neuron.bias]]


def train(model, places, labels, steps=100, learning_rate=0.5):
    """Gradient descent on the mean of the hinge loss max(0, 1 - label * output). Returns the loss of each step.

    A step: the loss, all gradients to 0, `backward`, and each parameter moves by -learning_rate * its gradient.
    """
    # your code
    losses = []
    for _ in range(steps):
        loss = sum((1 - label * model(place)[0]).relu() for place, label in zip(places, labels)) / len(places)
        for parameter in model.parameters():
            parameter.grad = 0.0
        loss.backward()
        for parameter in model.parameters():
            parameter.data -= learning_rate * parameter.grad
        losses.append(loss.data)
    return losses
