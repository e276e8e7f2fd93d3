from typing import Any

# csrc/autograd.cpp has the functions; row_loss.py, and attacks/folding.py for its ReLUs, call them through whatever
# backends.autograd_node() gives.
def __getattr__(name: str) -> Any: ...
