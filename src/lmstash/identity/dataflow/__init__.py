"""What expressions in code may give, told from bytecode without running anything."""
