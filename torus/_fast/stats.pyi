class Histogram:
    count: int
    sum_ns: int
    max_ns: int
    def observe(self, ns: int, count: int = 1) -> None: ...
    def snapshot(self) -> list[tuple[int, int]]: ...
    def quantile_ns(self, fraction: float) -> int: ...

class CommandCounter:
    requests: int
    errors: int
    bytes: int
    latency: Histogram
    def add(self, ns: int, requests: int = 1, nbytes: int = 0, errors: int = 0) -> None: ...
