"""WHO and OVER WHAT: keys, fingerprints, the token-block chain. Pure but for reading weights.

From the bytes up: `encoding` (one byte string per value), `keys`, `tokens` and `chain` (over what), `fingerprint`
(who); `content` (files and other things by what they hold), `memory` (tensors' bytes, and whether anything was
written), `dataflow` (what expressions in code may give), `code` (code and all that it leads to), `describe` (any Python
value), `models` and `tokenizer` (the two that have fingerprints), `live_tokenizers`. They import one way, in this
order.
"""
