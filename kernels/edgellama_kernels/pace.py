"""How many threads run the next step: as many as made the last ones fastest.

More threads are not always faster. Cores may be slower than others, hot, or busy with something
else, and then all threads wait at every meeting for the one that is late. What was fastest
changes no bit, so it can be tried out on the real work.
"""

from __future__ import annotations

WARM_UP_TRIES = 2  # of each number of threads; the first finds caches and pages cold
PROBE_RUNS_MIN = 16  # runs until another number of threads is tried again
PROBE_RUNS_MAX = 256  # after trying in vain, twice as many, up to this
WORSE = 1.5  # times what a run took: the device's load has changed, try again soon
FRESH = 0.25  # weight of the last run in the smoothed time


class Pace:
    """Chooses the number of threads, 1 to ``threads_max``, of runs that are alike."""

    def __init__(self, threads_max: int) -> None:
        self.threads = threads_max
        self._threads_max = threads_max
        numbers = range(1, threads_max + 1) if threads_max > 1 else ()
        self._trials = [n for n in numbers for _ in range(WARM_UP_TRIES)]
        self._seconds: dict[int, float] = {}  # smoothed, by number of threads
        self._confirmed_s = 0.0  # what a run took when the choice was last looked at
        self._interval = self._left = PROBE_RUNS_MIN

    def next_threads(self) -> int:
        """Return how many threads the next run takes."""
        return self._trials[-1] if self._trials else self.threads

    def learn(self, threads: int, seconds: float) -> None:
        """Take note of how long a run took."""
        smoothed = self._seconds.get(threads, seconds)
        in_use = threads == self.threads and not self._trials
        self._seconds[threads] = smoothed + FRESH * (seconds - smoothed) if in_use else seconds
        if self._trials:
            self._trials.pop()
            if not self._trials:
                self._decide()
        elif self._threads_max > 1:
            self._left -= 1
            worse = self._seconds[self.threads] > WORSE * self._confirmed_s
            if self._left <= 0 or (worse and self._interval > PROBE_RUNS_MIN):
                self._interval = PROBE_RUNS_MIN if worse else self._interval
                neighbours = {self.threads - 1, self.threads + 1}
                self._trials = sorted(neighbours & set(range(1, self._threads_max + 1)))

    def _decide(self) -> None:
        """Keep the fastest number of threads; look again later the surer it is."""
        best = min(self._seconds, key=lambda threads: self._seconds[threads])
        changed = best != self.threads
        self._interval = PROBE_RUNS_MIN if changed else min(2 * self._interval, PROBE_RUNS_MAX)
        self.threads, self._left = best, self._interval
        self._confirmed_s = self._seconds[best]
