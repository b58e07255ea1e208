"""What explained attention says, and what it costs."""
