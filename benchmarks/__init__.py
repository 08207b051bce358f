"""Measurements of training, preparation, scoring, saving and starting, side by side with what people use instead."""
