"""Pictures of predictions and of annotations; matplotlib is imported when the first one is drawn."""

from detlib.visualization.video_visualizer import VideoVisualizer
from detlib.visualization.vis_image import VisImage, readable_scale
from detlib.visualization.visualizer import ColorMode, Visualizer

__all__ = ["ColorMode", "VideoVisualizer", "VisImage", "Visualizer", "readable_scale"]
