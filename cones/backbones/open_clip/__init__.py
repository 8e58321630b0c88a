"""Base models in the layout of open_clip, made into folders of kinds that are opened here."""
