"""Bytes that training takes per weight; without torch, since the planner counts with it."""

OPTIMIZER = {"adamw": 16, "adamw_8bit": 10}  # per trained weight: itself in fp32, its gradient, two moments
SHARE_OF_GPU = 0.7  # for weights, gradients and optimiser; the rest is for activations
