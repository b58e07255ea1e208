"""Text: documents in a fixed order, their tokens, and sequences of one length; what training and features read."""
