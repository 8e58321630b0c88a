"""What is where in a picture: detection and instance segmentation."""
