"""Seconds and memory of one call."""
import threading
import time


def resident_mb():
    "Memory of this process now"
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 / 1e6


def measured(call):
    "Result, seconds, and how far memory rose above the start"
    start, peak, done = resident_mb(), [0.], threading.Event()

    def watch():
        while not done.wait(.01):
            peak[0] = max(peak[0], resident_mb() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    t = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - t
    done.set()
    watcher.join()
    return result, seconds, peak[0]
