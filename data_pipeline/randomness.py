"""Random numbers that are a function of where they are used.

Every draw of the pipeline is `bits(key, counter)`: no generator carries state from one batch to the next, so any
batch can be drawn alone, on any host, in any order, and by any version of numpy. The function is SplitMix64 (Steele,
Lea and Flood 2014, "Fast splittable pseudorandom number generators") read as a counter-based generator.
"""

import numpy as np

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_WORDS_AT_ONCE = 1 << 16


def key(seed: int, *path: int) -> np.uint64:
    """A key for one place in the stream: `key(seed, epoch, window, ...)`. Paths of any length do not collide."""
    state = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)
    for depth, part in enumerate(path):
        state = bits(_finish(state), np.array([(part << 8) + depth], np.uint64))
    return state[0]


def bits(keys: np.ndarray | np.uint64, counters: np.ndarray) -> np.ndarray:
    """64 random bits for each counter under each key; the two broadcast against each other."""
    state = (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA
    return _finish(state + keys)


def uniform(keys: np.ndarray | np.uint64, counters: np.ndarray) -> np.ndarray:
    """Floats in [0, 1) with 53 random bits."""
    return (bits(keys, counters) >> np.uint64(11)) * 2.0**-53


def integers(keys: np.ndarray | np.uint64, counters: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """int64 in [0, count), count < 2^32. The bias of the multiply-shift is below count / 2^32."""
    high = bits(keys, counters) >> np.uint64(32)
    return ((high * np.asarray(count, np.uint64)) >> np.uint64(32)).astype(np.int64)


def coin_flips(keys: np.ndarray | np.uint64, counters: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """How many of `flips` fair coins show heads, exactly: set bits among `flips` random ones, int64.

    Each counter owns a generator of its own, so a long run of flips does not borrow from its neighbours.
    """
    heads = np.zeros(flips.shape, np.int64)
    if not flips.size:
        return heads
    own = bits(keys, counters)
    left, active = flips.astype(np.int64), np.flatnonzero(flips > 0)
    first = 0
    while active.size:
        # One word of many short runs, or many of a few long ones, as the cut of a sentence of millions of tokens is.
        count = max(1, min(_WORDS_AT_ONCE // active.size, -(-int(left[active].max()) // 64)))
        drawn = bits(own[active, None], first + np.arange(count))
        unused = np.clip(64 * np.arange(1, count + 1) - left[active, None], 0, 64).astype(np.uint64)
        heads[active] += np.bitwise_count(drawn >> unused).sum(axis=1, dtype=np.int64)
        left[active] -= 64 * count
        active = active[left[active] > 0]
        first += count
    return heads


def permutation(key_: np.uint64, count: int) -> np.ndarray:
    """A permutation of range(count), int64 [count]."""
    drawn = bits(key_, np.arange(count, dtype=np.uint64))
    order = np.argsort(drawn)  # in half the time of a stable sort, and the same where no two are equal
    ordered = drawn[order]
    return order if (ordered[1:] > ordered[:-1]).all() else np.argsort(drawn, kind="stable")


def _finish(state: np.ndarray) -> np.ndarray:
    """Scrambles the state in place: most of the work of a batch is here, and a third of that would be new memory."""
    state ^= state >> np.uint64(30)
    state *= _MIX_1
    state ^= state >> np.uint64(27)
    state *= _MIX_2
    state ^= state >> np.uint64(31)
    return state
