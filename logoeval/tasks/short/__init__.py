"""Short-context benchmarks through lm-evaluation-harness, called as it is; any other of its tasks by the same door.

Questions, prompts and scores are the harness's; ours are the model (adapter merged), what survives a kill, intervals
and the comparison sample by sample.
"""
