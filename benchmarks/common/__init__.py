"""What benchmarks of every subject share."""
