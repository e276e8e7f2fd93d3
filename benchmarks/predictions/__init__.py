"""Times on an H200 that are predicted from machine code, for a measurement to be put beside them."""
