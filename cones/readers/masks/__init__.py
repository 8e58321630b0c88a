"""Pictures with their masks: in a folder of masks, beside the pictures, or in a folder for each picture."""
