"""What only a GPU can show: launches, waiting, counters, timelines. Times are compared by ``benchmarks.compare``."""
