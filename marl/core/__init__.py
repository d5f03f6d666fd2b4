"""What every part needs: errors, files, seeds, devices, processes, and the check of names and kinds."""
