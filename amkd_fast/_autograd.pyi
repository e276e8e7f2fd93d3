from typing import Any

# csrc/autograd.cpp has the functions; row_loss.py, alone, calls them, through whatever backends.autograd_node() gives.
def __getattr__(name: str) -> Any: ...
