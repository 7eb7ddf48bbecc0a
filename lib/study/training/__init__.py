"""Training: the loop, against an adversary, several seeds or several processes at once."""
