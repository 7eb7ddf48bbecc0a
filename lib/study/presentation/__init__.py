"""Tables, figures and sentences, in one style."""
