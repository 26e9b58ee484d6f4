"""The bounds of docs/security-proof.md as numbers, from the parameters in use: `python -m benchmarks.bounds`."""

from __future__ import annotations

from math import log2, sqrt

from he_engine.params import RINGS, Parameters, Profile
from he_engine.verify import CHECKS

SEGMENT_BYTES = 64 << 20  #: of index, at most
SECRETS = 2**52  #: blocks and queries under one public a, for which the gate accounts
REJECTED, GROUPS = 2**16, 2**10  #: answers with one fingerprint, at most; what of a collection is verified by itself


def render() -> str:
    """A line for each bound."""
    lines = []

    def line(name: str, value: float) -> None:
        lines.append(f"{name:64} 2^{log2(value):.2f}")

    least = min(q for ring in RINGS.values() for q in ring.primes)
    passes = (1 / least + 2**-64) ** CHECKS
    line("a changed answer passes, one try", passes)
    line("... one of 2^16 with one fingerprint", REJECTED * passes)
    line("... one of 2^16 with each of 2^10", REJECTED * GROUPS * passes)

    rest = 2**64 % 81  # so many of the 81 outcomes have one word more than the others
    line("four digits of a secret: statistical distance from uniform", rest * (81 - rest) / 81 / 2**64)
    chi_square = (rest * (1 - rest / 81) ** 2 + (81 - rest) * (rest / 81) ** 2) * 81 / 2**128
    line("... chi-square divergence", chi_square)
    for profile in (Profile.COMPACT, Profile.EXACT):
        words = RINGS[profile].degree // 4
        line(
            f"N = {RINGS[profile].degree}: a whole secret, statistical distance",
            words * rest * (81 - rest) / 81 / 2**64,
        )
        line("... 2^52 secrets that are known, advantage", sqrt(words * SECRETS * chi_square) / 2)

    for profile in (Profile.COMPACT, Profile.EXACT):
        p = Parameters.choose(profile, 512)
        blocks = SEGMENT_BYTES // (4 * p.block_words)
        errors = blocks * p.planes * p.ring.degree // 2  # blocks of AES: a word of 8 bytes for each coefficient
        query = (p.ring.degree // 4 + p.planes * p.ring.degree) // 2
        line(f"{profile.value}, d = 512: AES-CTR, the errors of a segment of 64 MiB", errors**2 / 2**129)
        line("... all segments of 2^52 blocks", SECRETS / blocks * errors**2 / 2**129)
        line("... a query", query**2 / 2**129)
    worst = min(Parameters.choose(profile, dim).failure_bits for profile in Profile for dim in range(1, 1025))
    line("a score decodes wrongly, the worst of d = 1 to 1024", 2**-worst)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
