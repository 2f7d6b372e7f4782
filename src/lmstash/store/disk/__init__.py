"""The disk store: append-only segment files plus an SQLite index.

    <folder>/stash.json            format and limit, for people and for recovery
    <folder>/index.db (-wal,-shm)  where each key is; can be rebuilt from the segments
    <folder>/recency               when each entry was last used, mapped by every process
    <folder>/segments/<id>.seg     the records

From the bytes up: `files` (records, segments and the folder, as bytes), `indexing` (SQLite: where each key is),
`accounting` (uses and room), `reading`, `writing`, `reclaiming` (evicting and merging), `recovery` (after a crash or
damage), `intake` (from values to indexed records), `opened` (the parts together), `putting` (writes in groups),
`survey` (all entries), `store` (the public class); beside them `guarded` (interrupts) and `forks` (what else happens to
a process). They import one way, in this order. The format is specified in `docs/format.md`.
"""
