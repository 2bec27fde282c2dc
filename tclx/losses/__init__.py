"""The mathematics of the five terms: pure functions of tensors that know neither ranks, nor modules, nor files.

Every loss is computed in fp32 at least, whatever precision the network runs in; is finite for every batch, a single pair, an
empty caption and a caption without a masked word included; and never makes the host wait for the device.
"""
