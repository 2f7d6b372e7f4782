"""Things by what they hold: files and folders, images and audio, tables, objects of packages."""
