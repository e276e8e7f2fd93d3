"""Speed of amkd_fast against PyTorch and other libraries: see README.md in this folder."""
