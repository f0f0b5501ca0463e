"""Pretrained networks as sources of attention and features: one class each, on `base.Backbone`."""
