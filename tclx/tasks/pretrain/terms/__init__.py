"""The terms of the loss, a file each: settings in the spec, what is needed of model and data, and how it is computed.

`tclx.spec.objectives` is their table. A term's file is read with every spec, so it imports tensors where it computes only.
"""
