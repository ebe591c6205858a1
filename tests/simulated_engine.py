"""An engine without a model: its texts depend on the request alone."""

from collections import deque

from helpers.sampling.engine import SampledText

PROMPT = "What is {} + {}?"


class SimulatedEngine:
    """Answers a sum; every third sample (by seed) is wrong.

    Args:
        window: how many requests it has in its hands, answered last first
            within the window, as real engines answer in any order.
        finish: ``{(problem id, sample): finish_reason}`` where not "stop".
        name: what it says it is.
    """

    tokenizer = None

    def __init__(self, window=8, finish=(), name="simulated"):
        self.window, self.finish, self.name = window, dict(finish), name
        self.asked = self.most_ahead = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Nothing to free."""

    def describe(self):
        """Its name."""
        return {"name": self.name}

    def sample(self, requests):
        """Yield texts, ``window`` requests behind the reading."""
        held, given = deque(), 0
        for request in requests:
            self.asked += 1
            held.append(request)
            self.most_ahead = max(self.most_ahead, self.asked - given)
            if len(held) == self.window:
                yield self.answer(held.pop())
                given += 1
        while held:
            yield self.answer(held.pop())

    def answer(self, request):
        """The text of one request."""
        finish = self.finish.get((request.problem_id, request.sample), "stop")
        numbers = [int(w) for w in request.prompt[8:-1].split(" + ")]
        value = sum(numbers) + (request.seed % 3 == 0)
        response = f"{numbers[0]} + {numbers[1]} = {value}\n\\boxed{{{value}}}"
        tokens = 0 if finish == "too_long" else len(response.split())
        return SampledText(
            request=request,
            response="" if finish in ("too_long", "empty") else response,
            finish_reason="stop" if finish == "empty" else finish,
            tokens=tokens,
            mean_logprob=-0.5 if tokens else 0.0,
        )
