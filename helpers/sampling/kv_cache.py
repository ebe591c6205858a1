"""A key-value cache whose rows can leave and join between decode steps.

transformers' own ``DynamicLayer`` copies the whole cache at every token. The
layer here is built once a segment with room for the tokens of that segment
and writes in place; rows that have finished are left out when it is built
and new rows are put in, aligned at their right end (left padding).
"""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch
from transformers.cache_utils import Cache, DynamicLayer

CUDA_SHARE, HOST_SHARE = 0.6, 0.25


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, ``[rows, heads, length + room, dim]``.

    ``keys`` and ``values`` are views of the filled part, so every method of
    ``DynamicLayer`` that reads them keeps working.
    """

    # generate() would otherwise run one step ahead on some devices and crop.
    is_croppable = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int):
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self._keys, self._values = keys, values
        self._show(filled)
        self.is_initialized = True

    def _show(self, filled: int) -> None:
        self.filled = filled
        self.keys = self._keys[:, :, :filled]
        self.values = self._values[:, :, :filled]

    def get_seq_length(self) -> int:
        """Number of positions filled, padding included."""
        return self.filled

    def update(self, key_states, value_states, *args, **kwargs):
        """Write the new states behind the old ones; return all of them."""
        end = self.filled + key_states.shape[-2]
        if end > self._keys.shape[-2]:
            raise RuntimeError(f"cache room {self._keys.shape[-2]} < {end}")
        self._keys[:, :, self.filled : end] = key_states
        self._values[:, :, self.filled : end] = value_states
        self._show(end)
        return self.keys, self.values


def build_cache(
    old: Cache | None,
    keep: Sequence[int],
    new: Cache | None,
    join: Sequence[int],
    filled: int,
    room: int,
) -> Cache:
    """A cache of the rows ``keep`` of ``old``, then rows ``join`` of ``new``.

    Both parts are aligned at the right end of ``filled`` positions; what a
    row lacks on the left is zero (it is masked, but 0 * NaN would not be 0),
    what it has too much there is padding and is cut. ``join`` may name a row
    several times: samples of one prompt share its prefill. Layers of ``old``
    are emptied one by one, so the peak is one layer above the result.
    """
    parts = [(c, rows) for c, rows in ((old, keep), (new, join)) if rows]
    layers = []
    for index in range(len(parts[0][0].layers)):
        sides = []
        for name in ("keys", "values"):
            pieces = [
                (getattr(cache.layers[index], name), rows)
                for cache, rows in parts
            ]
            sides.append(_merge(pieces, filled, room))
        for cache, _ in parts:
            cache.layers[index] = None
        layers.append(RoomyLayer(*sides, filled))
    return Cache(layers=layers)


def _merge(
    pieces: Sequence[tuple[torch.Tensor, Sequence[int]]],
    filled: int,
    room: int,
) -> torch.Tensor:
    first = pieces[0][0]
    _, heads, _, dim = first.shape
    count = sum(len(rows) for _, rows in pieces)
    out = first.new_empty(count, heads, filled + room, dim)
    start = 0
    for states, rows in pieces:
        width = min(states.shape[-2], filled)
        index = torch.tensor(rows, device=states.device)
        stop = start + len(rows)
        out[start:stop, :, : filled - width] = 0
        out[start:stop, :, filled - width : filled] = states[
            index, :, states.shape[-2] - width :
        ]
        start = stop
    return out


def measure_room(model) -> int:
    """Tokens whose keys and values fit into the free memory of its device.

    ``CUDA_SHARE`` of what the driver calls free, ``HOST_SHARE`` of what is
    available elsewhere; the rest is for activations and everybody else.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // heads
    )
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    per_token = (
        2
        * config.num_hidden_layers
        * kv_heads
        * head_dim
        * model.dtype.itemsize
    )
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0] * CUDA_SHARE
    else:
        free = psutil.virtual_memory().available * HOST_SHARE
    return max(1, int(free // per_token))
