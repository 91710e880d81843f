"""How many tokens a model reads at once; without torch, for the planner."""

PROMPT_TOKENS = 2**15  # of prompts, padded: the activations of 32,768 take gigabytes in a 7B model
