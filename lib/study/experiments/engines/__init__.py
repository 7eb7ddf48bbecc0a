"""Where work is carried out."""
