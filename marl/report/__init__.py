"""Reports on runs: read them (`find`), compare them (`compare`), and draw, tabulate and publish what comes out."""
