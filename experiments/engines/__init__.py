"""What the commands run: a folder for each, and the harness that all of them share."""
