"""tclx: a declarative spec in, a trained and evaluated vision-language model out."""

__version__ = "0.1.0"
