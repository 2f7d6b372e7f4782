"""WHO and OVER WHAT: keys, fingerprints, the token-block chain. Pure but for reading weights."""
