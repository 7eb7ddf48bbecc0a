"""The results folder: tables, outcomes packed in them, where each row comes from."""
