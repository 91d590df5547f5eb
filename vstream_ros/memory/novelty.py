"""How new what an image encoder sees is to a camera: features against what the camera usually shows, place by place."""

from __future__ import annotations

import math

import numpy as np

TINY = 1e-12
"""Added to a length that may be 0."""
USUAL_S = 30.0
"""Time constant with which the usual follows what is seen. 10 to 60 s measured the same, 5 s keeps more emptiness."""
STRONGEST = 2
"""Places whose mean is the novelty: a small object fills few of them, and neither a mean over all places nor one vector
pooled over them would see it. (vstream-tiny, recall of plain scenes: 98 %, and 89 % pooled.)"""


class NoveltyMeter:
    """Follows one camera. Not thread-safe; holds one array of the features' size.

    What is measured is the cosine distance between a place's features and their running mean: near 0 where nothing
    happens, 0.1 to 1 where an object stands, at most 2. That is the scale of pixel importance, so that tubelets that
    were measured by either can be compared.
    """

    def __init__(self) -> None:
        self._usual: np.ndarray | None = None
        """(places, length) float32: the mean of directions, shorter than 1 where these differ."""
        self._seen = 0
        self._time_s = 0.0

    def observe(self, features: np.ndarray, time_s: float) -> float | None:
        """Measure features and count them among what is usual; see ``compare``.

        ``time_s`` does not fall from call to call. Features of another shape start anew.
        """
        vectors = _directions(features)
        if vectors is None:
            return None
        if self._usual is None or self._usual.shape != vectors.shape:
            self._usual, self._seen, self._time_s = vectors, 1, time_s
            return None
        novelty = self._distance(vectors)
        self._seen += 1
        share = min(max((time_s - self._time_s) / USUAL_S, 1.0 / self._seen), 1.0)  # at first a plain mean
        self._usual = self._usual + share * (vectors - self._usual)
        self._time_s = time_s
        return novelty

    def compare(self, features: np.ndarray) -> float | None:
        """How new features are, >= 0; nothing is learnt from them. None where that can't be said: there are none before
        them, or they are not finite.

        ``features``: (places, length), any float type, the same places in every call: an encoder's tokens of a picture.
        """
        vectors = _directions(features)
        if vectors is None or self._usual is None or self._usual.shape != vectors.shape:
            return None
        return self._distance(vectors)

    def _distance(self, vectors: np.ndarray) -> float:
        assert self._usual is not None
        alike = _products(vectors, self._usual) / (np.sqrt(_products(self._usual, self._usual)) + TINY)
        least = np.sort(alike)[:STRONGEST].tolist()
        return max(1.0 - sum(least) / len(least), 0.0)


def _directions(features: np.ndarray) -> np.ndarray | None:
    """(places, length) float32 of length 1 each; None where a number is not finite."""
    vectors = features.astype(np.float32, copy=False)
    squares = _products(vectors, vectors)
    if not (squares.size and math.isfinite(float(squares.sum()))):
        return None
    directions: np.ndarray = vectors / (np.sqrt(squares) + TINY)[:, None]
    return directions


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(places,): the scalar product at each place. Few calls of numpy: the encoder of a small model takes 3 ms."""
    products: np.ndarray = np.einsum("pd,pd->p", one, other)
    return products
