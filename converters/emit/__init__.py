"""Files that are written: TFLite graphs, their reader and their lint."""
