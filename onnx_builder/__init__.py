"""Regression networks as ONNX: the `Network` value, its writer, its reader and the onnxruntime parity check.

It knows ONNX and numpy, and nothing of training or sockets.
"""

from onnx_builder.elementwise import Function
from onnx_builder.network import Activation, Clip, Dense, Elementwise, LayerNormalization, Network, NetworkError, Port

__all__ = ["Activation", "Clip", "Dense", "Elementwise", "Function", "LayerNormalization", "Network", "NetworkError", "Port"]
