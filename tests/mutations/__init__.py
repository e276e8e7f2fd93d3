"""Seeded faults, and which test catches each: whether the tests are worth their minutes."""
