"""The disk store: append-only segment files plus an SQLite index.

    <folder>/stash.json            format and limit, for people and for recovery
    <folder>/index.db (-wal,-shm)  where each key is; can be rebuilt from the segments
    <folder>/recency               when each entry was last used, mapped by every process
    <folder>/segments/<id>.seg     the records

The files here, from the bytes up: `format` (records and segments as bytes), `folder` (paths, permissions, what file
system this is), `segment` (one file), `rows`, `schema` and `index` (SQLite), `recency` (the mapped file), `room` (the
limit), `appender` (this process's open segments), `reclaim` and `moving` (evicting and merging), `shrinking` (a
lowered limit), `renumbering` (a shorter `recency`), `recovery` (after a crash or damage), `reading` and `lookup`
(from keys to values), `cold_reading` and `kernel_reads` (around the page cache), `intake` and `putting` (from values
to records), `sheet_reading` and `sheet_writing` (the same for thousands of small values), `value_reading` (of any
lengths), `tables` (rows and headers as arrays), `locating` (thousands of keys at once), `survey` (all entries),
`opened` (the parts together), `guarded` (interrupts), `forks` (what else happens to a process), `store` (the public
class). The format is specified in `docs/format.md`.
"""
