"""Speed and memory, ours and everybody's; README.md tells how to read them."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which measures memory, is talkative
