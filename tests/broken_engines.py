"""The real sampling engine, with one thing made to go wrong."""

from dataclasses import replace


class Killed(Exception):
    """Stands for a kill in the middle of sampling."""


class Breaking:
    """Dies after ``left`` responses."""

    def __init__(self, engine, left):
        self.engine, self.left = engine, left

    def sample(self, requests):
        """Yield what the engine yields, until it dies."""
        for text in self.engine.sample(requests):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield text


class Copying:
    """Gives every sample one and the same seed."""

    def __init__(self, engine):
        self.engine = engine

    def sample(self, requests):
        """Yield the engine's texts for requests of one seed."""
        return self.engine.sample(replace(r, seed=7) for r in requests)


class Counting:
    """Notes in ``asked`` what it was asked for."""

    def __init__(self, engine, asked):
        self.engine, self.asked = engine, asked

    def sample(self, requests):
        """Yield what the engine yields."""
        requests = list(requests)
        self.asked += requests
        return self.engine.sample(requests)
