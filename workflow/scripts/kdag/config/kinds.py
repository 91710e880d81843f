"""Whose answers a row of the training set can be learned with, and the loss without a divergence, by name."""

SOURCES = ("dataset", "teacher", "student")
DATASET, TEACHER, STUDENT = SOURCES
NO_DIVERGENCE = "none"  # only cross-entropy
