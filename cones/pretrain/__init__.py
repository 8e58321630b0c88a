"""How the built-in base models were made."""
