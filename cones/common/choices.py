"""What a person chooses among on the command line, where importing more would take seconds."""

from typing import Literal

Task = Literal["classification", "detection", "segmentation", "generation"]
Values = Literal["classes", "instances", "shades"]
"""What the values of masks stand for, where there are several: classes, single objects, or shades of one mask."""
REVISION = "^[0-9a-f]{40}$"
"""Of a hub model: its commit."""
