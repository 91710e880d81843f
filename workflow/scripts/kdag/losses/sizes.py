"""How much of the logits there is at a time; without torch, since the planner counts with it."""

CHUNK_ELEMENTS = 2**26  # logits of a chunk, 128 MiB in bf16: the products want many rows
BLOCK_ELEMENTS = {"cpu": 2**17, "cuda": 2**25}  # of an fp32 buffer; on a CPU, of each thread's L2
