"""Dense features from unlabeled video; masks carried through a video from one annotated frame."""

__version__ = "0.1.0"
