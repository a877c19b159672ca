"""The ONNX graph of a merged model, and what is done to its products."""
