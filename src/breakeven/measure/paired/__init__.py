"""The comparison without load: rounds of interleaved blocks, and what each block says."""
