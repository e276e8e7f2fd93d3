from amkd_fast.ops import schemas  # noqa: F401
