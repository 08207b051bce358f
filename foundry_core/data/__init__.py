"""From documents to batches.

preparation   corpora, tokenizer and token files of one experiment, each reused while its inputs are unchanged
token_file    a corpus as one flat array of token ids on the disk
rows          that array cut into what a model reads at once, alike for every objective; nothing is dropped
order         which row is trained at which position: a function of seed and position alone
batches       rows in that order, collated by this process or by `workers`, the same bit for bit
collators     padding and labels; `masking` decides which tokens are hidden
"""
