"""Pictures through a frozen encoder, kept or live."""
