"""What all commands share: options, run folders, tables, pictures, training in chunks."""
