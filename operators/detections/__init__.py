"""What operators on detections share: boxes, crops, tiles, what belongs together."""
