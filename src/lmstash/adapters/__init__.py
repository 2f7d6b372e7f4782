"""THE TOOLS PEOPLE USE: one host tool a module or folder, in the host's own words."""
