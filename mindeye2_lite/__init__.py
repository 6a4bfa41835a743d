"""MindEye2 in the open: voxels in; pictures, captions and scores out."""

__version__ = "0.1.0"
