"""Reading records, one or many, copied or lent, each checked before it is served."""
