"""What int8 sums of the interaction become: dots of the real vectors.

Plain definition, for a pair (i, j) of one item, z = factor * q with q in -127 .. 127:

    dot(z_i, z_j) = factor_i * factor_j * (sum_d (q[i, d] + 128) * q[j, d]  -  128 * sum_d q[j, d])

The 128s come with the multiplication of unsigned by signed bytes (forms.py). The second sum is one number per vector
of an item, taken with the same instruction before its dots: 128 * q is a dot with bytes of 128.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from .forms import Form
from .interaction import Lanes, sum_lanes
from .vectors import LANES, floats, padded, store, zeros


class Int8Dots:
    """Emits the surplus and the factors of one item's vectors, then turns its sums into dots.

    vectors: of an item, x among them.
    """

    def __init__(self, vectors: int) -> None:
        self._vectors = vectors
        self._surplus = T.alloc_buffer((padded(vectors),), "int32", scope="global")
        self.factors = T.alloc_buffer((padded(vectors),), "float32", scope="global")

    def start(self, words: int, row: Callable, first_row: Callable, form: Form) -> None:
        """Take the surplus of an item's vectors, given as dot_interaction takes them."""
        bytes_of_128 = T.bind(form.left(zeros()))
        for first in range(0, self._vectors, LANES):
            sums = []
            for i in range(first, min(first + LANES, self._vectors)):
                vector, total = first_row() if i == 0 else row(i), form.no_sum()
                for chunk in range(words // LANES):
                    total = T.bind(form.dot(total, bytes_of_128, vector(chunk)))
                sums.append(total)
            store(self._surplus, first, sum_lanes(sums, form))

    def dots(self, sums, i: Lanes, j: Lanes):
        """16 dots, float32."""
        factors = T.bind(i.of(self.factors) * j.of(self.factors))
        return floats(sums - j.of(self._surplus)) * factors
