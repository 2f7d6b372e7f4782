"""The bytes on disk: the folder, segment files, records in them, and the rows that say where."""
