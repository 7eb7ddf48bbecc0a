"""What training and inference cost: clocks, and a table a question."""
