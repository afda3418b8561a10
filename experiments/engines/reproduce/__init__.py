"""Published tables, row by row: theirs, ours, and how far we got."""
