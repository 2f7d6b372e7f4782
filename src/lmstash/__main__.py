"""`python -m lmstash` is `lmstash`."""

from lmstash.cli.main import script

if __name__ == "__main__":
    script()
