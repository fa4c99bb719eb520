"""Random values: a Draw makes one from a random.Random; they are put together like the parts of a grammar."""


class Draw:
    """draw(rng) is a value."""

    def __init__(self, function):
        self.draw = function

    def map(self, function):
        return Draw(lambda rng: function(self.draw(rng)))

    def filter(self, good):
        def draw(rng):
            while not good(value := self.draw(rng)):
                pass
            return value

        return Draw(draw)


def just(value):
    return Draw(lambda rng: value)


def sampled(values):
    values = list(values)
    return Draw(lambda rng: values[int(rng.random() * len(values))])


def integers(least, most):
    return Draw(lambda rng: least + int(rng.random() * (most - least + 1)))


def one_of(*draws):
    return Draw(lambda rng: draws[int(rng.random() * len(draws))].draw(rng))


def weighted(pairs):
    """pairs: (weight, Draw)."""
    weights = [weight for weight, _ in pairs]
    draws = [draw for _, draw in pairs]
    return Draw(lambda rng: rng.choices(draws, weights)[0].draw(rng))


def tuples(*draws):
    return Draw(lambda rng: tuple([each.draw(rng) for each in draws]))


def lists(items, least=0, most=10):
    return Draw(lambda rng: [items.draw(rng) for _ in range(rng.randint(least, most))])
