"""GLIP, through mmdet."""
