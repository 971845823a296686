"""What people look at: progress, tables, comparisons of methods."""
