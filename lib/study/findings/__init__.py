"""What the book says of the committed results, as data: one file a chapter."""
