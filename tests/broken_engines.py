"""A real sampling engine, with one thing made to go wrong."""

from dataclasses import replace


class Killed(Exception):
    """Stands for a kill in the middle of sampling."""


class Wrapped:
    """Does all that the engine inside does, and counts its closings."""

    closed = 0

    def __init__(self, engine):
        self.engine, self.tokenizer = engine, engine.tokenizer

    def __enter__(self):
        self.engine.__enter__()
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Close the engine inside."""
        type(self).closed += 1
        self.engine.close()

    def describe(self):
        """What the engine inside says."""
        return self.engine.describe()

    def sample(self, requests):
        """Yield what the engine yields."""
        return self.engine.sample(requests)


class Breaking(Wrapped):
    """Dies after ``left`` responses."""

    def __init__(self, engine, left):
        super().__init__(engine)
        self.left = left

    def sample(self, requests):
        """Yield what the engine yields, until it dies."""
        for text in self.engine.sample(requests):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield text


class Copying(Wrapped):
    """Gives every sample of a problem what one seed gives."""

    def sample(self, requests):
        """Yield the engine's texts for requests of one seed."""
        seeds = {}

        def iter_copies():
            for request in requests:
                seeds[request.problem_id, request.sample] = request.seed
                yield replace(request, seed=7)

        for text in self.engine.sample(iter_copies()):
            key = (text.request.problem_id, text.request.sample)
            yield replace(text, request=replace(text.request, seed=seeds[key]))


class Counting(Wrapped):
    """Notes in ``asked`` what it was asked for."""

    def __init__(self, engine, asked):
        super().__init__(engine)
        self.asked = asked

    def sample(self, requests):
        """Yield what the engine yields."""
        requests = list(requests)
        self.asked += requests
        return self.engine.sample(requests)
